"""What can be learned in a model, and where it lies in the file. In: a Model. Out: latents: parameters and write-back.

    float initializer ─────────────────────────── itself; zeros of a pruned weight stay zero
    scale of a Quantize-, DequantizeLinear, Mul ─ its logarithm; scales that are equal stay equal
    int8, int4 ... codes ─ Cast ─ Mul             real numbers, rounded on the way: learned rounding
    words ─ Cast ─ Gather(all digit combinations) the digits, rounded; written back as the word that holds them
    int32 bias ─ DequantizeLinear                 the real bias; written back in units of the learned scales

Rounding passes the gradient straight through (Bengio et al., 2013); scales learn as in LSQ (Esser et al., 2020).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from onnxc.file.shell import is_constant
from onnxc.model import Constant, Model, Node, Tensor
from onnxc.training.interpreter import Program
from onnxc.training.operators.table import from_numpy, straight

FLOATS = frozenset({"float32", "float16", "float64", "bfloat16"})
CODES = frozenset({"int8", "uint8", "int4", "uint4", "int2", "uint2"})
LARGEST = 1e6  # beyond it a constant is a mask or a limit, not a weight
# Share of zeros from which on they were pruned, not rounded: codes of few levels hold many zeros anyway.
FEW_ZEROS, MANY_ZEROS = 0.05, 0.75
WORD = 16  # most codes in a word, which may be filled up
ROUNDED = 0.5  # squared error over power up to which a weight is a rounded form of another

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


@dataclass(eq=False)
class Latent:
    """Something that is learned.

    Attributes:
        tensors: of the model, whose values ``value`` gives; an initializer, or what a node makes of one.
        parameter: what the optimizer changes. rate: its step, in units of the rate of the training.
        kind: "float", "scale", "codes", "words" or "bias", for reports.
    """

    tensors: list[Tensor]
    parameter: torch.Tensor
    rate: float
    kind: str

    def value(self) -> torch.Tensor:
        """What the model computes with, with a gradient to the parameter."""
        return self.parameter

    def write(self) -> None:
        """Put the learned value where it came from."""
        assign(self.tensors[0], self.value().detach().cpu().double().numpy())

    def weight(self) -> torch.Tensor:
        """The parameter as a weight decays or is measured: itself."""
        return self.parameter


@dataclass(eq=False)
class FloatLatent(Latent):
    """A float initializer. What was pruned stays zero.

    Attributes:
        mask: 0 where the file has a zero that stays, else 1; None where all of it is learned.
        dtype: of the file; halves are rounded on the way.
    """

    mask: torch.Tensor | None = None
    dtype: torch.dtype = torch.float32
    cast: bool = False

    def value(self) -> torch.Tensor:
        value = self.parameter if self.mask is None else self.parameter * self.mask
        if self.dtype == torch.float32:
            return value
        if self.cast:  # its readers cast it to float32: in halves small gradients would be lost
            return straight(value.to(self.dtype).to(value.dtype), value)
        return value.to(self.dtype)


@dataclass(eq=False)
class ScaleLatent(Latent):
    """A scale: the file's value times the exponential of the parameter, which starts at 0."""

    start: torch.Tensor = field(default_factory=lambda: torch.ones(()))
    dtype: torch.dtype = torch.float32

    def value(self) -> torch.Tensor:
        value = self.start * torch.exp(self.parameter)
        return value if self.dtype == torch.float32 else straight(value.to(self.dtype).float(), value)

    def write(self) -> None:
        value = self.value().detach().cpu().double().numpy()
        for constant in self.tensors:
            assign(constant, value)


@dataclass(eq=False)
class CodesLatent(Latent):
    """Codes: the parameter, rounded and kept in the range that the file's codes have."""

    low: float = -127
    high: float = 127
    mask: torch.Tensor | None = None

    def value(self) -> torch.Tensor:
        value = straight(torch.round(self.parameter), self.parameter).clamp(self.low, self.high)
        return value if self.mask is None else value * self.mask


@dataclass(eq=False)
class WordsLatent(Latent):
    """Digits behind a table of all their combinations.

    Attributes:
        source: the initializer that holds words. levels: of a digit. low, step: digit d stands for low + step d.
        rows: number of a combination, its first digit counting least -> row of the table; single: the table is flat.
    """

    source: Constant | None = None
    levels: int = 16
    low: float = 0.0
    step: float = 1.0
    rows: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    single: bool = False

    def digits(self) -> torch.Tensor:
        """Whole numbers from 0 to levels - 1."""
        return straight(torch.round(self.parameter), self.parameter).clamp(0, self.levels - 1)

    def value(self) -> torch.Tensor:
        return self.low + self.step * self.digits()

    def write(self) -> None:
        assert self.source is not None
        digits = self.digits().detach().long()
        if self.single:
            digits = digits.unsqueeze(-1)
        powers = self.levels ** torch.arange(digits.shape[-1], device=digits.device)
        words = self.rows[(digits * powers).sum(-1)].cpu().numpy()
        assign(self.source, words)


@dataclass(eq=False)
class BiasLatent(Latent):
    """An int32 bias as a real number; written after the scales it is measured in.

    Attributes:
        source, scale: initializers: the codes and their scale.
        factors: the scales of input and weight whose product the scale is, where it is.
    """

    source: Constant | None = None
    scale: Constant | None = None
    factors: tuple[Constant, Constant] | None = None

    def write(self) -> None:
        assert self.source is not None
        assert self.scale is not None
        if self.factors is not None:
            first, second = (np.asarray(each.values, np.float32) for each in self.factors)
            product = np.asarray(first * second, np.float32)
            assign(self.scale, np.broadcast_to(product.reshape(-1), self.scale.shape or (1,)))
        real = self.parameter.detach().cpu().double().numpy()
        codes = np.rint(real / np.asarray(self.scale.values, np.float64))
        assign(self.source, np.clip(codes, -(2**31), 2**31 - 1))


def assign(tensor: Tensor, values: np.ndarray) -> None:
    """Give a constant other values of its own type and shape; equal ones leave it as it is in the file."""
    assert is_constant(tensor)
    fresh = values.reshape(tensor.shape).astype(tensor.dtype)
    if not np.array_equal(fresh, np.asarray(tensor.values)):
        tensor.values = fresh


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
        for stored in (_words(node, program), _bias(node, program)):
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


def _weights_of(original: Model) -> dict[str, Constant]:
    return {each.name: each for graph in original.graphs() for each in graph.weights if each.dtype.name in FLOATS}


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
    if made is None or not is_constant(scale) or len(codes.outputs) != 1 or len(scale.outputs) != 1:
        return None
    if uses(node.outputs[0]) - {"weight"}:
        return None
    factors = None
    for reader in node.outputs[0].outputs:
        sides = [_scale_of(each) for each in reader.inputs[:2]]
        if sides[0] is not None and sides[1] is not None:
            product = np.asarray(sides[0].values, np.float32) * np.asarray(sides[1].values, np.float32)
            if np.allclose(np.ravel(product), np.ravel(scale.values), rtol=1e-5):
                factors = (sides[0], sides[1])
    step = float(made.double().square().mean().sqrt()) or 1e-2
    return BiasLatent([node.outputs[0]], made.float().clone(), step, "bias", codes, scale, factors)


def _scale_of(tensor: Tensor) -> Constant | None:
    """The scale of the DequantizeLinear behind a tensor."""
    while tensor.inputs and tensor.inputs[0].op in {"Transpose", "Reshape", "Identity"}:
        tensor = tensor.inputs[0].inputs[0]
    if tensor.inputs and tensor.inputs[0].op == "DequantizeLinear" and is_constant(tensor.inputs[0].inputs[1]):
        found: Constant = tensor.inputs[0].inputs[1]
        return found
    return None


def values_of(found: Iterable[Latent]) -> dict[Tensor, torch.Tensor]:
    """The current values, for a Program."""
    made: dict[Tensor, torch.Tensor] = {}
    for latent in found:
        value = latent.value()
        for tensor in latent.tensors:
            shaped = is_constant(tensor) and tuple(value.shape) != tuple(tensor.shape)
            made[tensor] = value.reshape(tensor.shape) if shaped else value
    return made


def tensors_of(found: Iterable[Latent]) -> list[Tensor]:
    """The tensors whose values latents give."""
    return [tensor for latent in found for tensor in latent.tensors]


def write(found: Iterable[Latent]) -> None:
    """Write everything back into the model; biases last, since they are measured in scales."""
    for latent in sorted(found, key=lambda each: each.kind == "bias"):
        latent.write()


def lean(program: Program, found: Sequence[Latent], original: Model) -> int:
    """Let every code start where the original weight lies within its rounding; the number of codes that lean.

    What unfolds to a weight of the original is told by its name. A weight y depends on one code v each, so with
    g = dy / dv, which one backward pass gives for all of them, the code leans by (original - y) / g, less than a half.
    """
    exact, data = _weights_of(original), program.from_data()
    coded = [each for each in found if each.kind in {"codes", "words"}]
    for latent in coded:
        latent.parameter.requires_grad_(True)
    scope = dict(values_of(found))
    nodes = [node for node in program.nodes if not any(each in data for each in node.outputs)]
    program.run_nodes(nodes, scope)
    count = 0
    for tensor in [each for node in nodes for each in node.outputs if each in scope]:
        value = scope[tensor]
        weight = _closest(tensor.name, value, exact)
        some = [each for each in coded if 0 <= each.parameter.numel() - value.numel() < WORD]
        if weight is None or not some or not value.requires_grad:
            continue
        rest = (weight - value).detach()
        parameters = [each.parameter for each in some]
        slopes = torch.autograd.grad(value.sum(), parameters, retain_graph=True, allow_unused=True)
        pulls = torch.autograd.grad((value * rest).sum(), parameters, retain_graph=True, allow_unused=True)
        with torch.no_grad():
            for latent, slope, pull in zip(some, slopes, pulls, strict=True):
                if slope is None or pull is None:
                    continue
                step = torch.where(slope == 0, torch.zeros_like(slope), pull / (slope * slope))
                latent.parameter.copy_(torch.round(latent.parameter) + step.nan_to_num(0.0).clamp(-0.49, 0.49))
                count += latent.parameter.numel()
    for latent in coded:
        latent.parameter.requires_grad_(False)
    return count


def _closest(name: str, value: torch.Tensor, exact: Mapping[str, Constant]) -> torch.Tensor | None:
    """The original weight that ``value``, called ``name``, is a rounded form of."""
    names = [each for each in exact if name.startswith(each) and exact[each].shape == tuple(value.shape)]
    if not names or not value.dtype.is_floating_point:
        return None
    weight = from_numpy(np.asarray(exact[max(names, key=len)].values).astype(np.float32), value.device)
    apart = (weight - value.detach()).square().sum() / weight.square().sum().clamp(min=1e-30)
    return weight if float(apart) < ROUNDED else None
