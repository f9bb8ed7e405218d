"""How far a student's outputs are from what they should be. In: outputs by name. Out: one number, differentiable.

Class scores: KL(teacher || student), at a temperature T times T squared (Hinton et al., 2015); probabilities of a
Sigmoid: the same for two classes. Everything, class scores too: squared error over the teacher's power, the inverse
of the signal to noise ratio that a compressed model is judged by. Directions only: one minus the cosine. Hard
labels: cross-entropy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from onnxc.answers import class_scores
from onnxc.errors import DataError, ModelError
from onnxc.model import Model, Node, Tensor

TINY = 1e-9  # of a probability
CLASSES = frozenset({"logits", "probabilities", "log-probabilities"})


@dataclass(frozen=True)
class Output:
    """One output that is learned from.

    Attributes:
        name: in the student; teacher: in the teacher.
        kind: "logits", "probabilities", "log-probabilities", "sigmoid" or "values".
        axis: of the classes.
        theirs: the teacher's kind where it is another one: logits may learn from probabilities. Then only what both
            say of the classes is compared.
    """

    name: str
    teacher: str
    kind: str = "values"
    axis: int = -1
    theirs: str = ""


def matched(teacher: Model, student: Model, mapping: Mapping[str, str] | None = None) -> list[Output]:
    """The float outputs that both have: by ``mapping`` (student's name -> teacher's), by name, else by position.

    Raises:
        ModelError: no output of the student belongs to one of the teacher.
    """
    theirs = {each.name: each for each in teacher.graph.outputs}
    mine = [each.name for each in student.graph.outputs]
    if mapping:
        for name, other in mapping.items():
            if name not in mine or other not in theirs:
                missing = name if name not in mine else other
                raise ModelError(f"no output is called {missing!r}: there are {', '.join((*mine, *theirs))}")
        pairs = list(mapping.items())
    elif set(mine) & set(theirs):
        pairs = [(name, name) for name in mine if name in theirs]
    elif len(mine) == len(theirs):
        pairs = list(zip(mine, theirs, strict=True))
    else:
        raise ModelError("the outputs of teacher and student have different names: say which belong together")
    classes, teaching = class_scores(student), class_scores(teacher)
    made = []
    for name, other in pairs:
        tensor = next(each for each in student.graph.outputs if each.name == name)
        if tensor.dtype is not None and tensor.dtype.kind in "iubOSU":
            continue
        axis = classes.get(name, None)
        if name in classes and axis is None:
            continue
        kind = kind_of(tensor, "logits" if name in classes else "values")
        known = kind_of(theirs[other], "logits" if other in teaching else "values")
        differs = known != kind and {kind, known} <= CLASSES
        made.append(Output(name, other, kind, -1 if axis is None else axis, known if differs else ""))
    if not made:
        raise ModelError("the student has no float output that the teacher has too: there is nothing to learn from")
    return made


def kind_of(tensor: Tensor, otherwise: str) -> str:
    """The kind of an output by the operator that makes it."""
    node = made_by(tensor)
    kinds = {"Softmax": "probabilities", "LogSoftmax": "log-probabilities", "Sigmoid": "sigmoid"}
    return kinds.get(node.op if node is not None else "", otherwise)


def made_by(tensor: Tensor) -> Node | None:
    """The node behind changes of type and shape; None where there is none."""
    while tensor.inputs and tensor.inputs[0].op in {"Identity", "Cast", "Reshape", "Squeeze", "Flatten"}:
        tensor = tensor.inputs[0].inputs[0]
    node: Node | None = tensor.inputs[0] if tensor.inputs else None
    return node


def logarithms(values: torch.Tensor, output: Output, temperature: float = 1.0, kind: str = "") -> torch.Tensor:
    """Log-probabilities of an output of class scores, of another kind than the student's where one is given."""
    if (kind or output.kind) == "probabilities":
        values = torch.log(values.clamp(min=TINY))
    return torch.log_softmax(values.float() / temperature, output.axis)


@dataclass(frozen=True)
class Classes:
    """Hard labels of a batch [N].

    Attributes:
        first, second: class numbers. share: 0 to 1, of the first; 1 where there is one class only.
    """

    first: torch.Tensor
    second: torch.Tensor
    share: torch.Tensor

    @classmethod
    def certain(cls, numbers: Sequence[int]) -> Classes:
        """One class for each sample."""
        only = torch.tensor(numbers)
        return cls(only, only, torch.ones(len(numbers)))

    def unlikely(self, scores: torch.Tensor) -> torch.Tensor:
        """The cross-entropy of log-probabilities [N, classes, ...], mean over the batch."""
        found = []
        for numbers, share in ((self.first, self.share), (self.second, 1 - self.share)):
            each = functional.nll_loss(scores, numbers.to(scores.device), reduction="none")
            found.append((share.to(scores.device) * each).mean())
        return found[0] + found[1]


@dataclass(frozen=True)
class Loss:
    """The number that is made smaller.

    Attributes:
        outputs: what is compared.
        measure: "auto" (KL where it applies, plus squared error), "kl", "mse" or "cosine".
        temperature: of the class scores.
        labels: weight of the hard labels, 0 to 1, where the data has them.
    """

    outputs: Sequence[Output]
    measure: str = "auto"
    temperature: float = 1.0
    labels: float = 0.5

    def __call__(
        self, got: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], labels: Classes | None = None
    ) -> torch.Tensor:
        """The loss of a batch.

        Args:
            got: the student's outputs. wanted: the teacher's, by the teacher's names. labels: its classes.

        Raises:
            DataError: shapes differ.
        """
        total = torch.zeros(())
        for output in self.outputs:
            new, old = got[output.name], wanted[output.teacher].to(got[output.name].device)
            if new.shape != old.shape:
                shapes = f"{list(new.shape)}, the teacher's {output.teacher!r} {list(old.shape)}"
                raise DataError(f"output {output.name!r} has shape {shapes}")
            part = self.part(output, new.float(), old.float())
            if labels is not None and output.kind in CLASSES:
                scores = logarithms(new, output).movedim(output.axis, 1)
                part = (1 - self.labels) * part + self.labels * labels.unlikely(scores)
            total = total.to(new.device) + part
        return total / len(self.outputs)

    def part(self, output: Output, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
        """The loss of one output against the teacher."""
        squares = (new - old).square().sum() / old.square().sum().clamp(min=1e-12)
        if self.measure == "mse":
            return squares
        if self.measure == "cosine":
            return 1 - functional.cosine_similarity(new.flatten(1), old.flatten(1)).mean()
        divergence = None
        if output.kind in CLASSES:
            t = self.temperature
            mine, theirs = logarithms(new, output, t), logarithms(old, output, t, output.theirs)
            divergence = (theirs.exp() * (theirs - mine)).sum(output.axis).mean() * t * t
        elif output.kind == "sigmoid":
            mine, theirs = new.clamp(TINY, 1 - 1e-6), old.clamp(TINY, 1 - 1e-6)
            divergence = (theirs * (theirs / mine).log() + (1 - theirs) * ((1 - theirs) / (1 - mine)).log()).mean()
        if divergence is None:
            return squares
        return divergence if self.measure == "kl" or output.theirs else divergence + squares
