"""The contract of passes: what a pass author reads.

An exact pass edits a model in place and says what it did; the frame checks that the outputs stayed equal.
A structural pass makes smaller graphs out of one, each of which is then compressed like any other.
A lossy pass looks at one site or weight at a time and proposes candidates: specifications with estimated damage and
bytes. What the planner chooses is applied through a Rewriter, which shares codes and quantized activations between
sites.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from onnxc.codes.floats import PackedFloats, fits_bfloat16
from onnxc.codes.formats import FLOATS
from onnxc.codes.sheets import Packed, Sheet, emit_together
from onnxc.encoding import BlockCodes, Codes
from onnxc.model import Constant, Graph, Model, Node, Tensor
from onnxc.session import Options

if TYPE_CHECKING:
    from onnxc.data import Calibration, Sample
    from onnxc.observe import Observations
    from onnxc.recipe import Recipe
    from onnxc.sites import Site, Sites, Weight
    from onnxc.targets import Target


LONG_BIAS = 32  # values from which on a bias's scale is not stored
FEW_SCALES = 128  # in a model: their unfolding would take as many bytes as it saves


@dataclass(frozen=True)
class Outcome:
    """What an exact pass did: how many places it changed, and sentences worth telling the user."""

    changed: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExactPass(ABC):
    """A rewrite after which every output is equal to float rounding (rtol 1e-3, atol 1e-5)."""

    name: ClassVar[str]

    @abstractmethod
    def run(self, model: Model) -> Outcome:
        """Edit ``model`` in place."""

    def run_checked(self, model: Model, samples: Sequence[Sample], options: Options) -> Outcome:
        """``run`` for a pass that itself tries and measures on ``samples``; the frame calls this."""
        return self.run(model)


@dataclass(frozen=True)
class FinishingPass(ABC):
    """An exact rewrite of what is about to be delivered, after everything is decided."""

    name: ClassVar[str]

    @abstractmethod
    def finish(self, model: Model, *, told: bool = False) -> Outcome:
        """Edit ``model`` in place; ``told``: it was asked for with fields, and acts whether or not it pays."""


@dataclass(frozen=True)
class Refusal:
    """Why a pass does not act on a site."""

    pass_name: str
    place: str
    reason: str


@dataclass(frozen=True)
class Activation:
    """How a tensor is quantized where int8 operators read it: uint8, one scale, any zero point.

    Attributes:
        tensor: name of the float tensor.
        source: the tensor whose values it holds, another one behind data movement; both are rounded alike.
        signed: int8 around zero instead of uint8.
        low, high: the range, zero included; ignored where ``dynamic``.
        dynamic: the range is taken from the data at run time.
    """

    tensor: str
    low: float = 0.0
    high: float = 0.0
    dynamic: bool = False
    source: str = ""
    signed: bool = False

    @property
    def scale(self) -> np.float32:
        if self.signed:
            return np.float32(max(abs(self.low), abs(self.high), 127e-12) / 127.0)
        return np.float32(max((self.high - self.low) / 255.0, 1e-12))

    @property
    def zero_point(self) -> np.uint8 | np.int8:
        if self.signed:
            return np.int8(0)
        return np.uint8(np.clip(np.rint(-self.low / float(self.scale)), 0, 255))


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to compute a site, or to store a weight.

    Attributes:
        pass_name: the pass that proposes it.
        kind: "compute" (of a site) or "storage" (of a weight).
        place: the site's node name or the weight's name.
        mode: "static", "dynamic", "rows" (compute); the name of a format, or "float16" (storage).
        specification: what the report says, e.g. "int8 per channel, activations uint8 by squared error".
        reads: activations that must be quantized for it, empty for storage.
        writes: the activation its result is quantized to, None where the result stays float.
        weights: weights that it needs as codes besides the site's own: the recurrent one of an LSTM.
        form: the format of its weight, where the operator reads none but that.
        bytes: of the stored weight (storage candidates, and compute candidates with a form).
        apply: writes the candidate into a model; storage is applied by the Rewriter itself.
    """

    pass_name: str
    kind: Literal["compute", "storage"]
    place: str
    mode: str
    specification: str
    reads: tuple[Activation, ...] = ()
    writes: Activation | None = None
    weights: tuple[str, ...] = ()
    form: str = ""
    bytes: int = 0
    apply: Callable[[Rewriter], None] | None = None


@dataclass(frozen=True)
class Stakes:
    """What a plan of the whole model has at stake in each weight: in shares of the plan's bytes and time, added.

    Attributes:
        gains: weight name -> what would be won if all its bytes, and the time of its sites, went.
        costs: weight name -> what damage 1 (E|y - y'|^2 / E|y|^2 of its site's output) costs at the plan's price of
            noise: others would need so much more bytes and time to make it good.
        damages: weight name -> damage of the codes that the plan stores it in.
        kernel: what the time of one more kernel counts.
    """

    gains: Mapping[str, float]
    costs: Mapping[str, float]
    damages: Mapping[str, float]
    kernel: float = 0.0

    def gain(self, weight: str) -> float:
        return self.gains.get(weight, 0.0)

    @cached_property
    def total(self) -> float:
        """What all weights are worth."""
        return max(sum(self.gains.values()), 1e-12)

    @cached_property
    def usual(self) -> float:
        """The median of all costs."""
        return float(np.median(list(self.costs.values()))) if self.costs else 0.0

    def cost(self, weight: str) -> float:
        """Of one that was not measured, the median; and of none less than that: costs are those of rounding, which
        pooling averages out. What is cut is missing everywhere alike.
        """
        return max(self.costs.get(weight, 0.0), self.usual)


@dataclass(frozen=True)
class Context:
    """What a pass may know when it proposes.

    Attributes:
        model: the simplified model, its sites, and what was observed of them on real data.
        told: the pass was asked for with fields: it acts whether or not it pays.
        samples: calibration data or generated inputs; None where a pass only proposes.
        stakes: what weights are worth to a plan of this model; None where there is no plan yet.
    """

    model: Model
    sites: Sites
    observations: Observations
    recipe: Recipe
    target: Target
    told: bool = False
    samples: Calibration | None = None
    options: Options = field(default_factory=Options)
    stakes: Stakes | None = None


@dataclass(frozen=True)
class Level:
    """A smaller form of a model, refitted.

    Attributes:
        model: a model of its own, with the inputs and outputs of the original.
        specification: what the report says of it, e.g. "48 % of the MACs of 19 convolutions cut".
        notes: sentences worth telling the user: what was refused, and why.
    """

    model: Model
    specification: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Offer:
    """A smaller form of a model that is not made yet.

    Attributes:
        saved: share of what all weights are worth that goes.
        cost: what its damage is estimated to cost, as a share of the same.
        make: makes it.
    """

    saved: float
    cost: float
    make: Callable[[], Level]


@dataclass(frozen=True)
class Offers:
    """What a structural pass could do for a plan.

    Attributes:
        found: least saved first.
        reason: why there are none, or no others; empty where that is not so.
        refusals: places that no offer touches, with the reason.
    """

    found: tuple[Offer, ...] = ()
    reason: str = ""
    refusals: tuple[Refusal, ...] = ()


@dataclass(frozen=True)
class StructuralPass(ABC):
    """A pass that makes the graph or its weights smaller before anything is planned.

    Attributes:
        needs_data: whether it does anything without calibration data.
        automatic: it runs also where no passes are named; its outputs stay equal, so that no level is judged.
        unasked: whether it is tried where nobody named it: it makes offers.
    """

    name: ClassVar[str]
    needs_data: ClassVar[bool] = False
    automatic: ClassVar[bool] = False
    unasked: ClassVar[bool] = False

    @abstractmethod
    def levels(self, context: Context) -> Iterable[Level]:
        """Smaller models, least cut first, each made from a copy of ``context.model``. Where the pass was told what
        to do, exactly that one; none where there is nothing to cut. The caller may stop at any of them.
        """

    def offers(self, context: Context) -> Offers:
        """Forms of ``context.model`` that may be worth planning, by ``context.stakes``."""
        return Offers()


@dataclass(frozen=True)
class LossyPass(ABC):
    """A pass that changes numbers, one place at a time.

    Attributes:
        needs_data: whether it does anything without calibration data.
        opset: lowest opset of the model that has the operators it writes.
    """

    name: ClassVar[str]
    needs_data: ClassVar[bool] = False
    opset: ClassVar[int] = 7

    def propose(self, site: Site, context: Context) -> Iterable[Candidate | Refusal]:
        """Ways to compute ``site``, or why not."""
        return ()

    def store(self, weight: Weight, context: Context) -> Iterable[Candidate | Refusal]:
        """Ways to store ``weight``, or why not."""
        return ()


@dataclass(eq=False)
class Rewriter:
    """Writes chosen candidates into one copy of the model.

    Codes of a weight, the Q/DQ pair of an activation and a dynamic quantization are made once and shared.
    ``plain``: nothing is packed, so that codes can be changed after they were written.
    """

    model: Model
    codes: dict[str, Codes]
    nodes: dict[str, Node] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    homes: dict[int, Graph] = field(default_factory=dict)
    _codes: dict[str, Tensor] = field(default_factory=dict)
    _scales: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    _pairs: dict[str, Tensor] = field(default_factory=dict)
    _steps: dict[str, Tensor] = field(default_factory=dict)
    _dynamic: dict[tuple[str, int], list[Tensor]] = field(default_factory=dict)
    _weights: dict[str, Tensor] = field(default_factory=dict)
    _biases: dict[str, Bias] = field(default_factory=dict)
    plain: bool = False
    sheet: Sheet = field(init=False)

    def __post_init__(self) -> None:
        self.sheet = Sheet(self.model)
        for graph in self.model.graphs():
            for tensor in graph.inputs:
                self.tensors.setdefault(tensor.name, tensor)
            for node in graph.nodes:
                self.nodes[node.name] = node
                self.homes[id(node)] = graph
                for tensor in (*node.inputs, *node.outputs):
                    self.tensors.setdefault(tensor.name, tensor)

    def weight_codes(self, weight: str) -> Tensor:
        """The int8 tensor that replaces ``weight``, named after it: an initializer, or what unfolds to it at load.

        Those that unfold do so together, when the first of them is asked for.
        """
        if weight not in self._codes:
            if self.codes[weight].packed is None:
                self._codes[weight] = self.model.constant(f"{weight}_q", self.codes[weight].values)
                return self._codes[weight]
            names = {f"{name}_q": name for name, codes in self.codes.items() if codes.packed is not None}
            forms = {key: packed for key, name in names.items() if (packed := self.codes[name].packed) is not None}
            for key, made in emit_together(self.sheet, forms).items():
                made.dtype, made.shape = np.dtype(np.int8), list(self.codes[names[key]].values.shape)
                self._codes[names[key]] = made
        return self._codes[weight]

    def weight_scale(self, weight: str, form: str = "flat") -> Tensor:
        """Its scale: "flat" [channels], "broadcast" in the weight's rank, or "zero" the int8 zero points.

        Scales lie in the file as bfloat16, all of them together; zero points of one length are one tensor.
        """
        codes = self.codes[weight]
        if form == "zero":
            label = f"zero_{codes.scale.size}" if codes.scale.ndim else "zero"
            return self.sheet.shared(label, np.zeros(codes.scale.shape, np.int8))
        if form == "broadcast" and codes.axis not in (None, codes.values.ndim - 1):
            if (weight, form) not in self._scales:
                shape = codes.broadcast_scale().shape
                self._scales[weight, form] = self.sheet.reshaped(self.weight_scale(weight), shape, f"{weight}_scales")
            return self._scales[weight, form]
        if (weight, "flat") not in self._scales:
            self._scales |= {(name, "flat"): made for name, made in self.scales().items()}
        return self._scales[weight, "flat"]

    def scales(self) -> dict[str, Tensor]:
        """The scale of every weight: those that bfloat16 holds and that are many unfold together."""
        flat = {name: codes for name, codes in self.codes.items() if not isinstance(codes, BlockCodes)}
        short = [name for name, codes in flat.items() if codes.scale.ndim and fits_bfloat16(codes.scale)]
        forms = {f"{name}_scale": PackedFloats.of(self.codes[name].scale, "bfloat16") for name in short}
        if (
            self.plain
            or self.model.opset < FLOATS["bfloat16"][1]
            or sum(form.size for form in forms.values()) < FEW_SCALES
        ):
            forms = {}
        made = {label.removesuffix("_scale"): tensor for label, tensor in emit_together(self.sheet, forms).items()}
        for name, codes in flat.items():
            if name not in made:
                made[name] = self.model.constant(f"{name}_scale", codes.scale)
        return made

    def dequantized(self, weight: str) -> Tensor:
        """DequantizeLinear of the codes, for operators that fuse with it. Zero points are always written:
        without them Gemm does not fuse.
        """
        if weight not in self._weights:
            self._weights[weight] = self.model.insert(
                "DequantizeLinear",
                [self.weight_codes(weight), self.weight_scale(weight), self.weight_scale(weight, "zero")],
                [f"{weight}_dq"],
                name=f"{weight}_dq",
                axis=self.codes[weight].axis,
            ).outputs[0]
        return self._weights[weight]

    def dequantized_transposed(self, weight: str) -> Tensor:
        """The same of a matrix [N, K], as [K, N]."""
        key = f"{weight}_transposed_dq"
        if key not in self._weights:
            self._weights[key] = self.model.insert(
                "DequantizeLinear",
                [self.transposed_codes(weight), self.weight_scale(weight), self.weight_scale(weight, "zero")],
                [key],
                name=key,
                axis=1,
            ).outputs[0]
        return self._weights[key]

    def unfold(self, weight: str) -> None:
        """Let every remaining reader of ``weight`` read Cast(codes) * scale, which ONNX Runtime folds at load."""
        tensor = self.tensors[weight]
        if not tensor.outputs:
            return
        cast = self.model.insert(
            "Cast", [self.weight_codes(weight)], [f"{weight}_cast"], name=f"{weight}_cast", to=1
        ).outputs[0]
        scaled = self.model.insert(
            "Mul",
            [cast, self.weight_scale(weight, "broadcast")],
            [f"{weight}_unfolded"],
            name=f"{weight}_unfolded",
        ).outputs[0]
        scaled.dtype, scaled.shape = np.dtype(np.float32), list(self.codes[weight].values.shape)
        self.model.redirect(tensor, scaled)

    def shorten(self, types: Mapping[str, str]) -> None:
        """Let every remaining reader of these weights read a Cast of a smaller float, which ONNX Runtime folds at load.

        Those of one type unfold together; 8-bit ones have a scale per channel.
        """
        left = {name: kind for name, kind in types.items() if self.tensors[name].outputs}
        forms: dict[str, Packed] = {}
        for name, kind in left.items():
            forms[f"{name}_unfolded"] = PackedFloats.of(np.asarray(self.model.values(self.tensors[name])), kind)
        for label, made in emit_together(self.sheet, forms).items():
            tensor = self.tensors[label.removesuffix("_unfolded")]
            made.dtype, made.shape = np.dtype(np.float32), list(np.asarray(self.model.values(tensor)).shape)
            self.model.redirect(tensor, made)

    def quantized(self, activation: Activation) -> Tensor:
        """DequantizeLinear(QuantizeLinear(tensor)), made once per tensor."""
        name = activation.tensor
        if name not in self._pairs:
            parameters = [
                self.model.constant(f"{name}_scale", np.asarray(activation.scale, np.float32)),
                self.model.constant(f"{name}_zero", np.asarray(activation.zero_point)),
            ]
            self._steps[name] = parameters[0]
            quantize = self.model.insert(
                "QuantizeLinear", [self.tensors[name], *parameters], [f"{name}_q"], name=f"{name}_q"
            )
            restore = self.model.insert(
                "DequantizeLinear", [quantize.outputs[0], *parameters], [f"{name}_dq"], name=f"{name}_dq"
            )
            restore.outputs[0].dtype = np.dtype(np.float32)
            restore.outputs[0].shape = self.tensors[name].shape
            self._pairs[name] = restore.outputs[0]
        return self._pairs[name]

    def quantize_result(self, activation: Activation) -> None:
        """Every reader of the tensor, and the graph output it may be, gets the quantized form."""
        self.model.redirect(self.tensors[activation.tensor], self.quantized(activation))

    def home(self, node: Node) -> Graph:
        """The graph that holds ``node``."""
        return self.homes[id(node)]

    def dynamic(self, tensor: str, graph: Graph) -> list[Tensor]:
        """[codes, scale, zero point] of DynamicQuantizeLinear(tensor), made once per tensor and graph."""
        key = (tensor, id(graph))
        if key not in self._dynamic:
            node = self.model.insert(
                "DynamicQuantizeLinear",
                [self.tensors[tensor]],
                [f"{tensor}_q", f"{tensor}_q_scale", f"{tensor}_q_zero"],
                name=f"{tensor}_q",
                graph=graph,
            )
            self._dynamic[key] = list(node.outputs)
        return self._dynamic[key]

    def transposed_codes(self, weight: str) -> Tensor:
        """The codes of a matrix [N, K] as [K, N], through a Transpose that is folded at load."""
        key = f"{weight}_transposed"
        if key not in self._weights:
            node = self.model.insert("Transpose", [self.weight_codes(weight)], [key], name=key, perm=[1, 0])
            self._weights[key] = node.outputs[0]
        return self._weights[key]

    def bias(self, tensor: Tensor, weight: str, activation: Activation) -> Tensor:
        """The bias [N] as DequantizeLinear(int32, scale of the input times scale of the weight)."""
        base = f"{weight}_bias" if not tensor.name else tensor.name
        values = np.asarray(self.model.values(tensor), np.float64)
        made = Bias(values, weight, activation, self.model.constant(f"{base}_q", np.zeros(values.shape, np.int32)))
        step: Tensor
        if values.size >= LONG_BIAS and activation.tensor in self._steps and not self.plain:
            # made at load: it takes fewer bytes
            factors = [self.weight_scale(weight), self._steps[activation.tensor]]
            step = self.sheet.node("Mul", factors, f"{base}_scale")
        else:
            step = made.step = self.model.constant(f"{base}_scale", made.scale(self.codes[weight]))
        made.write(self.codes[weight])
        self._biases[tensor.name] = made
        axis = 0 if self.codes[weight].scale.ndim else None
        return self.model.insert(
            "DequantizeLinear", [made.codes, step], [f"{base}_dq"], name=f"{base}_dq", axis=axis
        ).outputs[0]

    def recode(self, weight: str, codes: Codes) -> None:
        """``codes`` in place of those that were written for ``weight``, with all that depends on them; only where
        nothing is packed.
        """
        self.codes[weight] = codes
        for held, values in (
            (self._codes.get(weight), codes.values),
            (self._scales.get((weight, "flat")), codes.scale),
        ):
            if isinstance(held, Constant):
                held.values = values
        for bias in self._biases.values():
            if bias.weight == weight:
                bias.write(codes)

    def read_as(self, tensor: str) -> str:
        """The name of what int8 readers of ``tensor`` really see: its quantized form, or itself."""
        pair = self._pairs.get(tensor)
        return str(pair.name) if pair is not None else tensor

    def has_bias(self, name: str) -> bool:
        """Whether the bias called ``name`` can be shifted: it is coded, or a vector of floats that one node reads."""
        held = self.tensors.get(name)
        return name in self._biases or (
            isinstance(held, Constant)
            and len(held.outputs) == 1
            and held.dtype is not None
            and np.dtype(held.dtype) == np.float32
        )

    def shift_bias(self, name: str, error: NDArray[np.float64]) -> None:
        """Take ``error`` [N] out of the bias called ``name``."""
        if name in self._biases:
            made = self._biases[name]
            made.values = made.values - error.reshape(made.values.shape)
            made.write(self.codes[made.weight])
            return
        held = self.tensors[name]
        if isinstance(held, Constant):
            values = np.asarray(self.model.values(held))
            held.values = (values.astype(np.float64) - error.reshape(values.shape)).astype(values.dtype)


@dataclass(eq=False)
class Bias:
    """An int32 bias as written.

    Attributes:
        values: [N], in float; weight: whose codes it is added to the products of; activation: the other factor.
        codes: the constant of its codes; step: that of their scale, None where it is made at load.
    """

    values: NDArray[np.float64]
    weight: str
    activation: Activation
    codes: Constant
    step: Constant | None = None

    def scale(self, weight: Codes) -> NDArray[np.float32]:
        """The input's scale times the weight's."""
        return np.asarray(self.activation.scale * weight.scale, np.float32)

    def write(self, weight: Codes) -> None:
        """Codes and scale, in units of ``weight``."""
        scale, limits = self.scale(weight), np.iinfo(np.int32)
        self.codes.values = np.clip(np.rint(self.values / scale), limits.min, limits.max).astype(np.int32)
        if self.step is not None:
            self.step.values = scale
