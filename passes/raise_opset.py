"""A model of an old opset gets a newer one: quantization per channel needs 13, much else is best from 17 on.

before: opset 11, Squeeze(axes=[2])        after: opset 17, Squeeze(x, [2])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import onnx
from onnx import ModelProto, defs, version_converter

from onnxc.contract.fields import Between, Readable
from onnxc.contract.passes import ExactPass, Outcome
from onnxc.data import generate
from onnxc.errors import ModelError, OnnxcError
from onnxc.exactness import Exactness, Sample
from onnxc.model import Model
from onnxc.session import Options

from .facts import standard
from .skeletons import adopt, through_skeleton

# Same inputs and attributes, another meaning: the converter must see to these, and it skips bodies.
_NEW_MEANING = {"Softmax", "LogSoftmax", "Hardmax", "BatchNormalization", "Dropout", "Upsample", "Resize"}
OLDEST, NEWEST = 7, defs.onnx_opset_version()  # that ONNX Runtime promises to run; that the converter knows


def operators(text: str) -> list[str]:
    """The operators named in ``text``, separated by spaces; ValueError for one that there is none of."""
    for word in text.split():
        if not defs.has(word):
            raise ValueError(f"there is no operator '{word}'; write some as MatMul Conv, or none")
    return text.split()


@dataclass(frozen=True)
class RaiseOpset(ExactPass):
    """Convert the default domain's operators to a newer version with ONNX's version converter.

    1. Models below ``version``; newer ones are left as they are, other domains always.
    2. Left alone when no operator in it has codes per channel to gain. Refused when the converter fails, when outputs
       change (it has errors), or when a body of If, Loop or Scan
       holds an operator that changed in between: the converter does not look into bodies.
    3. A pass that was told what to do, on a model too old for the operators it writes, has it raised to what these need
       (onnxc/structure/raising.py).

    Attributes:
        version: the opset to reach; 13 is the lowest with scales per channel.
        gaining: operators of which one must be there, separated by spaces; none: raise any model.
    """

    name: ClassVar[str] = "raise-opset"
    version: Annotated[int, Between(OLDEST, NEWEST)] = 13
    gaining: Annotated[str, Readable(operators)] = "MatMul Gemm Conv ConvTranspose Gather LSTM GRU RNN"

    def _gains(self, model: Model) -> bool:
        wanted = operators(self.gaining)
        return not wanted or any(node.op in wanted for node in model.nodes())

    def run(self, model: Model) -> Outcome:
        """Edit ``model`` in place, checked on generated inputs."""
        return self.run_checked(model, None, Options())

    def run_checked(
        self, model: Model, samples: Sequence[Sample] | None, options: Options, original: Model | None = None
    ) -> Outcome:
        """Edit ``model`` in place; ``samples`` are inputs to check it with, made up when there are none."""
        old = model.opset
        asked = self != type(self)()
        if old >= self.version:
            return Outcome(0, (f"opset {old} was kept: it is {self.version} or newer",) if asked else ())
        if not self._gains(model):
            why = f"opset {old} was kept: the model has none of {self.gaining}; with gaining= it is raised all the same"
            return Outcome(0, (why,) if asked else ())
        made = samples if samples is not None else lambda session: generate(model, session, count=3).take(3)
        try:
            if (operator := _changed_inside(model, self.version)) is not None:
                raise ModelError(f"{operator} in a body has changed since")
            new = through_skeleton(model, self._convert)
            reason = Exactness(model, made, options).differs(new)
        except (OnnxcError, RuntimeError, ValueError, TypeError, IndexError) as error:
            reason = said(error)
        if reason is not None:
            return Outcome(0, (f"opset {old} was kept: converting it to {self.version} fails: {reason}",))
        if new.opset < self.version:
            return Outcome()  # the converter leaves a file without operators of its own as it is
        adopt(model, new)
        return Outcome(1, (f"opset {old} became {model.opset}",))

    def _convert(self, proto: ModelProto) -> ModelProto:
        if proto.ir_version < 4:  # initializers are inputs there, which the newer file must not have
            held = {tensor.name for tensor in proto.graph.initializer}
            inputs = [info for info in proto.graph.input if info.name not in held]
            del proto.graph.input[:]
            proto.graph.input.extend(inputs)
            proto.ir_version = 4
        converted: ModelProto = version_converter.convert_version(proto, self.version)
        converted.ir_version = max(converted.ir_version, _oldest_ir(converted))
        return converted


def said(error: Exception) -> str:
    """What an error says, of a failed assertion in C++ only what it is about."""
    return " ".join(str(error).rpartition(" failed: ")[2].split())[:200]


def _oldest_ir(proto: ModelProto) -> int:
    return int(onnx.helper.find_min_ir_version_for(proto.opset_import, ignore_unknown=True))


def _changed_inside(model: Model, version: int) -> str | None:
    """The first operator in a body that lost an attribute or means something else in ``version``."""
    for graph in model.graphs():
        if graph is model.graph:
            continue
        for node in graph.nodes:
            if not standard(node) or node.op == "Constant":
                continue
            try:
                old, new = (defs.get_schema(node.op, each, "") for each in (model.opset, version))
            except defs.SchemaError:
                return node.op
            if old.since_version == new.since_version:
                continue
            if node.op in _NEW_MEANING or not set(old.attributes) <= set(new.attributes):
                return node.op
    return None
