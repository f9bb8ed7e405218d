"""What each rounding alone does to the model's outputs. In: the model, its candidates, a few samples. Out: noise.

One probe model holds every rounding behind a switch: tensor t becomes Where(switch, rounded t, t), for quantized
activations and for weights. One session, run once with each switch alone on, gives the relative noise of the
outputs that each causes. Noise powers of different roundings add, so a plan's noise is estimated by a sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter

import numpy as np

from onnxc.encoding import Codes
from onnxc.model import Model, Tensor, Variable
from onnxc.rewrite import Activation, Rewriter
from onnxc.session import Options, Session

Noise = dict[str, float]


def activation_key(activation: Activation) -> str:
    return f"{'dynamic' if activation.dynamic else 'static'} {activation.tensor}"


def weight_key(name: str) -> str:
    return f"weight {name}"


def build_probe(
    model: Model, activations: Sequence[Activation], weights: Mapping[str, Codes]
) -> tuple[Model, dict[str, str]]:
    """The probe model, and key -> name of the switch input (a bool scalar)."""
    probe = model.copy()
    rewriter = Rewriter(probe, dict(weights))
    switches: dict[str, str] = {}

    def switched(key: str, tensor: Tensor, rounded: Tensor, keep: set[int]) -> None:
        switch = Variable(probe.unique(f"switch_{len(switches)}"), np.dtype(np.bool_), [])
        probe.graph.inputs.append(switch)
        switches[key] = switch.name
        chosen = probe.insert("Where", [switch, rounded, tensor], [f"{tensor.name}_chosen"]).outputs[0]
        select = chosen.inputs[0]
        probe.redirect(tensor, chosen, only=[n for n in tensor.outputs if n is not select and id(n) not in keep])
        rewriter.tensors[tensor.name] = chosen

    for name in weights:
        tensor = rewriter.tensors[name]
        cast = probe.insert("Cast", [rewriter.weight_codes(name)], [f"{name}_cast"], to=1).outputs[0]
        scaled = probe.insert("Mul", [cast, rewriter.weight_scale(name, "broadcast")], [f"{name}_float"]).outputs[0]
        switched(weight_key(name), tensor, scaled, set())
    for activation in activations:
        tensor = rewriter.tensors[activation.tensor]
        if activation.dynamic:
            codes = probe.insert(
                "DynamicQuantizeLinear", [tensor], [f"{tensor.name}_{part}" for part in ("dyn", "dyn_scale", "dyn_zero")]
            )
            rounded = probe.insert("DequantizeLinear", list(codes.outputs), [f"{tensor.name}_dyn_dq"]).outputs[0]
        else:
            parameters: list[Tensor] = [
                probe.constant(f"{tensor.name}_probe_scale", np.asarray(activation.scale, np.float32)),
                probe.constant(f"{tensor.name}_probe_zero", np.asarray(activation.zero_point, np.uint8)),
            ]
            codes = probe.insert("QuantizeLinear", [tensor, *parameters], [f"{tensor.name}_probe_q"])
            rounded = probe.insert(
                "DequantizeLinear", [codes.outputs[0], *parameters], [f"{tensor.name}_probe_dq"]
            ).outputs[0]
        switched(activation_key(activation), tensor, rounded, {id(codes)})
    probe.tidy()
    return probe, switches


def measure(
    model: Model,
    activations: Sequence[Activation],
    weights: Mapping[str, Codes],
    samples: Sequence[Mapping[str, np.ndarray]],
    options: Options,
    seconds: float = 15.0,
) -> Noise:
    """key -> noise power over signal power of the worst float output, each rounding alone.

    As many samples are used as fit in about ``seconds``, at least one.
    """
    probe, switches = build_probe(model, activations, weights)
    session = Session(probe, options)
    off = {name: np.asarray(False) for name in switches.values()}
    outputs = [info.name for info in session.outputs]
    signal: dict[str, float] = {}
    noise: dict[str, dict[str, float]] = {key: {} for key in switches}
    start = perf_counter()
    for count, sample in enumerate(samples):
        reference = session.run({**sample, **off}, outputs)
        floats = {n: v for n, v in reference.items() if is_float(v)}
        for name, value in floats.items():
            signal[name] = signal.get(name, 0.0) + power(value)
        for key, switch in switches.items():
            result = session.run({**sample, **off, switch: np.asarray(True)}, outputs)
            for name, value in floats.items():
                other = np.asarray(result[name])
                difference = power(other - value) if other.shape == value.shape else power(value)
                noise[key][name] = noise[key].get(name, 0.0) + difference
        spent = perf_counter() - start
        if spent * (count + 2) / (count + 1) > seconds:
            break
    return {
        key: max((value / signal[name] for name, value in found.items() if signal[name] > 0), default=0.0)
        for key, found in noise.items()
    }


def is_float(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def power(value: np.ndarray) -> float:
    """Sum of squares of the finite entries."""
    finite = np.nan_to_num(np.asarray(value, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    return float((finite**2).sum())
