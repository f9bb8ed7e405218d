"""What can be learned in a model, and where it lies in the file. In: a Model. Out: latents: parameters and write-back.

    float initializer ─────────────────────────── itself; zeros of a pruned weight stay zero
    scale of a Quantize-, DequantizeLinear, Mul ─ its logarithm; scales that are equal stay equal
    places ─ Cast ─ Gather(list of scales) ────── the same; written back as the place of the nearest one
    int8, int4 ... codes ─ Cast ─ Mul             real numbers, rounded on the way: learned rounding
    words ─ Cast ─ Gather(all digit combinations) the digits, rounded; written back as the word that holds them
    int32 bias ─ DequantizeLinear                 the real bias; written back in units of the learned scales

What rounding does to the gradient, and how scales learn, is in latents.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch

from onnxc.file.shell import is_constant
from onnxc.model import Constant, Model, Node, Tensor
from onnxc.training.interpreter import Program
from onnxc.training.latents import (
    BiasLatent,
    CodesLatent,
    FloatLatent,
    Latent,
    ListedLatent,
    ScaleLatent,
    WordsLatent,
)
from onnxc.training.operators.table import Value, from_numpy

FLOATS = frozenset({"float32", "float16", "float64", "bfloat16"})
CODES = frozenset({"int8", "uint8", "int4", "uint4", "int2", "uint2"})
LARGEST = 1e6  # beyond it a constant is a mask or a limit, not a weight
# Share of zeros from which on they were pruned, not rounded: codes of few levels hold many zeros anyway.
FEW_ZEROS, MANY_ZEROS = 0.05, 0.75
PASSING = frozenset(
    {
        "Cast",
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Identity",
        "Flatten",
        "Expand",
        "Slice",
        "Split",
        "Concat",
    }
)
ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})
# Operator -> inputs that are weights. "*" stands for all of them.
PLACES: Mapping[str, frozenset[int] | str] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "MatMul", "Gemm", "Einsum", "FusedMatMul"), "*"),
    **dict.fromkeys(("Conv", "ConvTranspose", "BatchNormalization", "InstanceNormalization"), frozenset({1, 2})),
    **dict.fromkeys(("GroupNormalization", "LayerNormalization", "RMSNormalization"), frozenset({1, 2})),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), frozenset({1, 2, 3, 7})),
    "PRelu": frozenset({1}),
    "SimplifiedLayerNormalization": frozenset({1, 2}),
    "QuantizeLinear": frozenset({0}),
    "DequantizeLinear": frozenset({0}),
    "MatMulInteger": frozenset({0, 1}),
    "ConvInteger": frozenset({1}),
    "QLinearConv": frozenset({3}),
    "QLinearMatMul": frozenset({3}),
    "MatMulIntegerToFloat": frozenset({1, 6}),
    "DynamicQuantizeMatMul": frozenset({1, 4}),
    "DynamicQuantizeLSTM": frozenset({1, 2, 3, 7}),
    "Attention": frozenset({1, 2}),
}
SCALES: Mapping[str, frozenset[int]] = {
    "QuantizeLinear": frozenset({1}),
    "DequantizeLinear": frozenset({1}),
    "MatMulIntegerToFloat": frozenset({2, 3}),
    "DynamicQuantizeMatMul": frozenset({2}),
    "DynamicQuantizeLSTM": frozenset({8, 10}),
    "QLinearConv": frozenset({1, 4}),
    "QLinearMatMul": frozenset({1, 4}),
}


def plain_domain(node: Node) -> bool:
    """Whether the operator is ONNX's own or ONNX Runtime's."""
    return node.domain in {None, "", "ai.onnx", "com.microsoft"}


def uses(tensor: Tensor, depth: int = 0) -> set[str]:
    """What becomes of a constant: "weight", "scale", "product" (an operand of Mul), "index", or "other"."""
    found: set[str] = set()
    for node in dict.fromkeys(tensor.outputs):
        for place, each in enumerate(node.inputs):
            if each is tensor:
                found |= _use(node, place, depth)
    return found


def _use(node: Node, place: int, depth: int) -> set[str]:
    if not plain_domain(node) or depth > 12:
        return {"other"}
    if place in SCALES.get(node.op, ()):
        return {"scale"}
    if node.op in ARITHMETIC and looked_up(node.outputs[0], depth + 1):
        return {"index"}
    places = PLACES.get(node.op)
    if places is not None and (places == "*" or place in places):
        return {"product"} if node.op == "Mul" else {"weight"}
    if node.op == "Gather" and place == 1:
        return {"index"}
    if node.op in PASSING and (place == 0 or node.op == "Concat"):
        return set[str]().union(*(uses(each, depth + 1) for each in node.outputs))
    if node.op == "Gather" and place == 0 and not constant_made(node.inputs[1]):
        return uses(node.outputs[0], depth + 1)
    if node.op == "Gather" and place == 0 and is_constant(node.inputs[0]):
        return uses(node.outputs[0], depth + 1) if len(node.inputs[0].outputs) == 1 else {"other"}
    if node.op == "Loop" and place >= 2:
        return uses(node.attrs["body"].inputs[place], depth + 1)
    return {"other"}


def looked_up(tensor: Tensor, depth: int = 0) -> bool:
    """Whether arithmetic makes a place in a table of a tensor: path bits and words of a trellis."""
    for node in dict.fromkeys(tensor.outputs) if depth <= 12 else ():
        if node.op == "Gather" and node.inputs[1] is tensor:
            return True
        if node.op in ARITHMETIC | PASSING and any(looked_up(each, depth + 1) for each in node.outputs):
            return True
    return False


def constant_made(tensor: Tensor) -> bool:
    """Whether a tensor is a constant, or made of one by a Cast or a change of shape."""
    while not is_constant(tensor) and tensor.inputs and tensor.inputs[0].op in PASSING:
        tensor = tensor.inputs[0].inputs[0]
    return is_constant(tensor) or bool(tensor.inputs and tensor.inputs[0].op == "Constant")


def root(tensor: Tensor) -> Tensor:
    """The tensor behind casts and changes of shape."""
    while not is_constant(tensor) and tensor.inputs and tensor.inputs[0].op in {"Cast", "Reshape", "Identity"}:
        tensor = tensor.inputs[0].inputs[0]
    return tensor


def latents(model: Model, device: torch.device | str = "cpu") -> list[Latent]:
    """Everything in ``model`` that can be learned, in the order of the file.

    Args:
        model: the student; ``Latent.write`` changes it.
        device: of the parameters.
    """
    program = Program(model, outputs=_floats(model), device=device)
    read = {each for node in model.nodes() for each in node.inputs}
    found: list[Latent] = []
    taken: set[Constant] = set()
    for node in program.nodes:
        for stored in (_listed(node, program) or _words(node, program), _bias(node, program)):
            if stored is not None and stored.source is not None:
                found.append(stored)
                taken.add(stored.source)
    scales: dict[bytes, ScaleLatent] = {}
    for graph in model.graphs():
        for constant in graph.weights:
            if constant in taken or constant not in read or constant in graph.outputs:
                continue
            made = _latent(constant, scales, torch.device(device))
            if made is not None:
                found.append(made)
    return found


def _floats(model: Model) -> list[str]:
    """Names of the outputs that are, or may be, quantities."""
    return [each.name for each in model.graph.outputs if each.dtype is None or each.dtype.kind not in "iubOSU"]


def _latent(constant: Constant, scales: dict[bytes, ScaleLatent], device: torch.device) -> Latent | None:
    """The latent of an initializer; None where it is not learned, or shares another's."""
    name, found = constant.dtype.name, uses(constant)
    if not found or "other" in found or "index" in found or name not in FLOATS | CODES:
        return None
    size = int(np.prod(constant.shape, dtype=np.int64))
    if size <= 1 and "scale" not in found:
        return None
    values = np.asarray(constant.values).astype(np.float32)
    if not np.isfinite(values).all() or np.abs(values).max(initial=0.0) > LARGEST:
        return None
    start = from_numpy(values, device)
    if name in CODES:
        return _codes(constant, start)
    dtype = {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(name, torch.float32)
    if "scale" in found or ("product" in found and found == {"product"} and bool((values > 0).all())):
        key = values.tobytes() if size == 1 else constant.name.encode()
        if key in scales:
            scales[key].tensors.append(constant)
            return None
        scales[key] = ScaleLatent([constant], torch.zeros_like(start), 1.0, "scale", start, dtype)
        return scales[key]
    if name == "float64":
        return None
    zeros = float((values == 0).mean())
    mask = from_numpy((values != 0).astype(np.float32), device) if FEW_ZEROS < zeros < 1 and values.ndim > 1 else None
    cast = all(node.op == "Cast" for node in constant.outputs)
    return FloatLatent([constant], start.clone(), step_of(start), "float", mask, dtype, cast)


def step_of(values: torch.Tensor) -> float:
    """The root mean square of what is not zero: the unit of a weight's steps."""
    some = values[values != 0]
    return float(some.double().square().mean().sqrt()) if some.numel() else 1e-2


def _codes(constant: Constant, start: torch.Tensor) -> CodesLatent:
    low, high = float(start.min()), float(start.max())
    if low < 0 < high:
        high = max(-low, high)
        low = -high
    zeros = float((start == 0).float().mean())
    pruned = min(MANY_ZEROS, max(FEW_ZEROS, 3.0 / max(high, 1.0)))
    mask = (start != 0).float() if zeros > pruned and constant.dtype.name.startswith("int") else None
    return CodesLatent([constant], start.clone(), step_of(start), "codes", low, high, mask)


def _listed(node: Node, program: Program) -> ListedLatent | None:
    """Scales, where a Gather looks places up in a list of them that ascends."""
    if node.op != "Gather" or int(node.attrs.get("axis", 0)) != 0 or not plain_domain(node):
        return None
    source, entries, made = root(node.inputs[1]), program.folded(node.inputs[0]), program.folded(node.outputs[0])
    if not is_constant(source) or source.dtype != np.uint8 or len(source.outputs) != 1 or made is None:
        return None
    if entries is None or entries.ndim != 1 or not uses(node.outputs[0]) <= {"scale", "product"}:
        return None
    entries = entries.float()
    if not bool((entries > 0).all()) or not bool((entries[1:] > entries[:-1]).all()):
        return None
    start = made.float().clone()
    return ListedLatent(
        [node.outputs[0]], torch.zeros_like(start), 1.0, "scale", start, torch.float32, source, entries.clone()
    )


def _words(node: Node, program: Program) -> WordsLatent | None:
    """Digits, where a Gather looks words up in a table of all combinations of them."""
    if node.op != "Gather" or int(node.attrs.get("axis", 0)) != 0 or not plain_domain(node):
        return None
    source = root(node.inputs[1])
    table, made = program.folded(node.inputs[0]), program.folded(node.outputs[0])
    if not is_constant(source) or (source.dtype.kind not in "iu" and source.dtype.name not in CODES):
        return None
    if table is None or made is None or not 1 <= table.ndim <= 2 or len(source.outputs) != 1:
        return None
    if uses(node.outputs[0]) & {"other", "index"} or not uses(node.outputs[0]):
        return None
    rows = table.double().reshape(table.shape[0], -1)
    values = torch.unique(rows)
    levels, count = len(values), rows.shape[1]
    if levels < 2 or levels**count != len(rows):
        return None
    step = float((values[-1] - values[0]) / (levels - 1))
    digits = torch.round((rows - values[0]) / step).long()
    even = values[0] + step * torch.arange(levels, device=values.device)
    numbers = (digits * levels ** torch.arange(count, device=digits.device)).sum(1)
    if not torch.allclose(values, even.to(values), rtol=1e-4, atol=1e-6) or len(torch.unique(numbers)) != len(rows):
        return None
    order = torch.empty_like(numbers)
    order[numbers] = torch.arange(len(rows), device=numbers.device)
    low = float(values[0])
    start = torch.round((made.double() - low) / step).float()
    rate = step_of(start - (levels - 1) / 2)
    return WordsLatent(
        [node.outputs[0]], start.clone(), rate, "words", source, levels, low, step, order, table.ndim == 1
    )


def _bias(node: Node, program: Program) -> BiasLatent | None:
    """A bias behind DequantizeLinear of int32."""
    if node.op != "DequantizeLinear" or not is_constant(node.inputs[0]) or node.inputs[0].dtype != np.int32:
        return None
    codes, scale = node.inputs[0], node.inputs[1]
    made = program.folded(node.outputs[0])
    if made is None or len(codes.outputs) != 1 or len(scale.outputs) != 1 or uses(node.outputs[0]) - {"weight"}:
        return None
    if not is_constant(scale):
        if program.folded(scale) is None:
            return None
        step = float(made.double().square().mean().sqrt()) or 1e-2
        again = partial(_computed, scale, program)
        return BiasLatent([node.outputs[0]], made.float().clone(), step, "bias", codes, made=again)
    factors = None
    for reader in node.outputs[0].outputs:
        sides = [_scale_of(each) for each in reader.inputs[:2]]
        if sides[0] is not None and sides[1] is not None:
            product = np.asarray(sides[0].values, np.float32) * np.asarray(sides[1].values, np.float32)
            if np.allclose(np.ravel(product), np.ravel(scale.values), rtol=1e-5):
                factors = (sides[0], sides[1])
    step = float(made.double().square().mean().sqrt()) or 1e-2
    return BiasLatent([node.outputs[0]], made.float().clone(), step, "bias", codes, scale, factors)


def _computed(tensor: Tensor, program: Program) -> np.ndarray:
    """The value that a tensor made of constants has now that they may be others."""
    chain, scope = list[Node](), dict[Tensor, Value]()
    waiting = [tensor]
    while waiting:
        each = waiting.pop()
        if is_constant(each):
            scope[each] = program.moved(each.values)
        elif each.inputs:
            chain.append(each.inputs[0])
            waiting += [other for other in each.inputs[0].inputs if other.name or is_constant(other)]
    for node in dict.fromkeys(reversed(chain)):
        program.compute(node, scope)
    value: np.ndarray = program.value(tensor, scope).detach().cpu().numpy()
    return value


def _scale_of(tensor: Tensor) -> Constant | None:
    """The scale of the DequantizeLinear behind a tensor."""
    while tensor.inputs and tensor.inputs[0].op in {"Transpose", "Reshape", "Identity"}:
        tensor = tensor.inputs[0].inputs[0]
    if tensor.inputs and tensor.inputs[0].op == "DequantizeLinear" and is_constant(tensor.inputs[0].inputs[1]):
        found: Constant = tensor.inputs[0].inputs[1]
        return found
    return None
