"""The same model with less in it: constants computed, BatchNormalization and padding folded, idle nodes gone.

before: x -> Identity -> Conv -> BatchNormalization -> Reshape(Concat(Shape(y)[0], -1)) -> y
after:  x -> Conv -> Reshape([0, -1]) -> y

Our own rewrites do what touches weights and bodies; onnxsim does the rest on a skeleton without large
weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from onnx import ModelProto

from onnxc.contract.passes import ExactPass, Outcome
from onnxc.data import generate
from onnxc.errors import ModelError, OnnxcError
from onnxc.exactness import Exactness, Sample, file_bytes
from onnxc.model import Model
from onnxc.runtime.diagnosis import nodes as every_node
from onnxc.session import Options, basic_simplified

from .fold_batchnorm import FoldBatchNorm
from .fold_constants import FoldConstants
from .inline_branches import InlineBranches
from .inline_functions import InlineFunctions
from .merge_duplicates import MergeDuplicates
from .merge_pads import MergePads
from .onnxsim_process import SimplifierError, onnxsim
from .remove_identities import RemoveIdentities
from .skeletons import adopt, through_skeleton

OWN: tuple[ExactPass, ...] = (
    InlineFunctions(),
    RemoveIdentities(),
    FoldConstants(),
    InlineBranches(),
    FoldBatchNorm(),
    MergePads(),
    MergeDuplicates(),
)
ROUNDS = 4  # one rewrite makes room for another: folded conditions for branches, branches for identities


@dataclass(frozen=True)
class Simplify(ExactPass):
    """Rewrite the graph as small as it gets without a trace in the outputs.

    1. Our own rewrites, inside If, Loop and Scan bodies too.
    2. onnxsim on a skeleton, in a process of its own; where it raises, crashes, hangs or changes an output,
       ONNX Runtime's BASIC level; where that fails too, or does not pay, only our own.
    3. Each result must give equal outputs on samples (rtol 1e-3, atol 1e-5) and must pay: not larger, and not
       slower than the model was. If none does, the model stays as it is, and the notes say why.
    Kept as they are: names, types and axes of inputs and outputs, metadata, opset imports, custom operators,
    MatMul + Add (which fuses better than Gemm), tied weights.
    """

    name: ClassVar[str] = "simplify"

    def run(self, model: Model) -> Outcome:
        """Edit ``model`` in place, checked on generated inputs."""
        return self.run_checked(model, None, Options())

    def run_checked(
        self, model: Model, samples: Sequence[Sample] | None, options: Options, original: Model | None = None
    ) -> Outcome:
        """Edit ``model`` in place.

        Args:
            model: any model.
            samples: inputs to check and time it with; made up when there are none.
            options: how sessions run.
        """
        made = samples if samples is not None else lambda session: generate(model, session, count=3).take(3)
        notes: list[str] = []
        own = model.copy()
        try:
            exactness = Exactness(model, made, options)
            _own(own)
        except OnnxcError as error:
            return Outcome(0, (f"not simplified: {error}",))
        for label, library in LIBRARIES:
            try:
                new = _with(library, own)
            except (OnnxcError, SimplifierError) as error:
                notes.append(f"{label} was left out: {error}")
                continue
            if _nothing_gained(model, new):
                return Outcome(0, tuple(notes))
            if (reason := exactness.refuses(new)) is None:
                return _adopt(model, new, notes)
            notes.append(f"{label} was left out: {reason}")
            if not reason.startswith("output"):
                break  # it works, but does not pay: neither will the next
        if _nothing_gained(model, own):
            return Outcome(0, tuple(notes))
        if (reason := exactness.refuses(own)) is None:
            return _adopt(model, own, notes)
        return Outcome(0, (*notes, f"not simplified: {reason}"))


def _own(model: Model) -> None:
    """Our own rewrites until nothing changes any more."""
    for _ in range(ROUNDS):
        if not sum(each.run(model).changed for each in OWN):
            break


def _with(library: Callable[[ModelProto], ModelProto], model: Model) -> Model:
    """A library's rewrites and our own in turn, until nothing is gained any more."""
    for _ in range(ROUNDS):
        new = through_skeleton(model, library)
        _own(new)
        if _nothing_gained(model, new):
            break
        model = new
    return model


def _basic(proto: ModelProto) -> ModelProto:
    """ONNX Runtime's BASIC level. ModelError when it brings operators that are none of the opset's."""
    after = basic_simplified(proto)
    domains = {node.domain for node in every_node(proto.graph)}
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    for node in every_node(after.graph):
        if node.domain not in domains or (node.op_type == "LayerNormalization" and versions.get("", 1) < 17):
            raise ModelError(f"it brings {node.domain or 'ai.onnx'}::{node.op_type}")
    return after


LIBRARIES: tuple[tuple[str, Callable[[ModelProto], ModelProto]], ...] = (
    ("onnxsim", onnxsim),
    ("ONNX Runtime's BASIC level", _basic),
)


def _nothing_gained(model: Model, new: Model) -> bool:
    """Whether ``new`` has as many nodes and bytes: then the model stays as it was written."""
    before, after = ((sum(1 for _ in each.nodes()), file_bytes(each)) for each in (model, new))
    return before == after


def _adopt(model: Model, new: Model, notes: Sequence[str]) -> Outcome:
    """Make ``model`` what ``new`` is, and say by how much it shrank."""
    before, after = (sum(1 for _ in each.nodes()) for each in (model, new))
    adopt(model, new)
    return Outcome(max(1, before - after), (f"{before} nodes became {after}", *notes))
