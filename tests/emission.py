"""What passes write, as ONNX Runtime runs it. In: a small model, samples, passes. Out: an Emission."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxc.coder import Coder
from onnxc.contract.context import Context
from onnxc.contract.passes import LossyPass
from onnxc.cost import Prices
from onnxc.judge import build
from onnxc.kernels import leftover_weights, operators
from onnxc.model import Model
from onnxc.naming import name_nodes
from onnxc.observe import Observations, observe
from onnxc.passes.quantize_static import QuantizeStatic
from onnxc.planner import plan
from onnxc.problem import Plan
from onnxc.propose import Proposals, collect
from onnxc.recipe import Recipe
from onnxc.session import Options, Session
from onnxc.sites import find
from onnxc.targets import target

Sample = dict[str, np.ndarray]
Shape = Sequence[int | str]
random = np.random.default_rng(0)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    """A node named after its first output; "_" leaves an input or output out."""
    given = [["" if name == "_" else name for name in text.split()] for text in (inputs, outputs)]
    return helper.make_node(op, *given, name=f"{given[1][0]}_node", **attributes)


def weight(*shape: int, scale: float | None = None) -> np.ndarray:
    """Gaussian weights that keep the size of activations: the last axes are summed over."""
    scale = scale if scale is not None else float(1 / np.sqrt(np.prod(shape[1:]) or 1))
    return (random.standard_normal(shape) * scale).astype(np.float32)


def model(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Shape],
    outputs: Mapping[str, Shape | None],
    weights: Mapping[str, np.ndarray],
    *,
    opset: int = 17,
    integers: Sequence[str] = (),
) -> ModelProto:
    """A model of float inputs and outputs; ``integers`` are int64 inputs."""
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info(n, TensorProto.INT64 if n in integers else TensorProto.FLOAT, s)
            for n, s in inputs.items()
        ],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def samples(count: int = 4, **shapes: Sequence[int]) -> list[Sample]:
    """Gaussian samples of the given shapes."""
    return [
        {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(count)
    ]


@dataclass
class Emission:
    """A model after passes, and the graph that ONNX Runtime makes of it.

    Attributes:
        proposals, plan, codes: how it came about.
        model: what would be written.
        kernels: operator -> number in the optimized graph; leftovers: weights that are unfolded at every run.
        sqnr_db: of the worst output against the float model.
    """

    context: Context
    proposals: Proposals
    plan: Plan
    codes: Coder
    model: Model
    session: Session
    kernels: Counter[str]
    leftovers: list[str]
    sqnr_db: float

    def kernel(self, name: str) -> NodeProto:
        """The one kernel of an operator in the optimized graph."""
        (found,) = [each for each in self.session.optimized().graph.node if each.op_type == name]
        return found

    def reasons(self) -> str:
        return "; ".join(f"{r.place}: {r.reason}" for r in self.proposals.refusals)


def proposed(
    proto: ModelProto, data: Sequence[Sample], *passes: LossyPass, ops: str = "standard", told: bool = True
) -> tuple[Context, Proposals]:
    """Everything up to the candidates, observed when a pass needs ranges."""
    loaded = Model.load(proto)
    name_nodes(loaded)
    where = target("cpu")
    found = find(loaded, where)
    seen = Observations()
    if any(isinstance(each, QuantizeStatic) for each in passes):
        main = [s for s in found if s.graph is loaded.graph and s.kind in {"linear", "convolution", "joint"}]
        tensors = [t for s in main for t in (*s.inputs, s.result) if found.is_float(t)]
        seen = observe(loaded, data, len(data), tensors, main, Options())
    context = Context(loaded, found, seen, Recipe(ops=ops), where)
    return context, collect([(each, told) for each in passes], context)


def emitted(
    proto: ModelProto,
    data: Sequence[Sample],
    *passes: LossyPass,
    ops: str = "standard",
    without: Sequence[str] = (),
) -> Emission:
    """The model with every candidate applied, except at the places called ``without``."""
    context, proposals = proposed(proto, data, *passes, ops=ops)
    problem = proposals.problem(context, Prices({}, 1.0))
    problem.told -= set(without)
    problem.forbidden |= set(without)
    chosen = plan(problem)
    codes = Coder(context, proposals)
    made = build(context.model, chosen, codes)
    session = Session(made, dump=True)
    before = Session(context.model)
    signal: Counter[str] = Counter()
    noise: Counter[str] = Counter()
    for sample in data:
        expected, got = before.run(sample), session.run(sample)
        for name, values in expected.items():
            signal[name] += float(np.square(values, dtype=np.float64).sum())
            noise[name] += float(np.square(values - got[name], dtype=np.float64).sum())
    worst = min(10 * float(np.log10(signal[name] / max(noise[name], 1e-30))) for name in signal)
    optimized = session.optimized()
    return Emission(
        context,
        proposals,
        chosen,
        codes,
        made,
        session,
        operators(optimized),
        leftover_weights(optimized),
        worst,
    )
