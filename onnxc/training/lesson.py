"""What is learned from: samples with the teacher's answers. In: two sessions, samples. Out: inputs, answers.

The teacher answers all samples once; mixed ones (mixing.py) as they are made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from onnxc.data import Sample
from onnxc.errors import DataError, ModelError
from onnxc.session import Session
from onnxc.training.losses import Classes
from onnxc.training.mixing import Mixture
from onnxc.training.operators.table import to_numpy
from onnxc.training.samples import Arrays, Shelf, batches, joined, plain, split

ALIKE = 1e-2  # squared error over power up to which joined samples give what single ones give


@dataclass
class Lesson:
    """Samples with the teacher's answers.

    Attributes:
        rows: the student's inputs. answers: the teacher's outputs. labels: class numbers, where the data has them.
        learning, held: numbers of the samples to learn from and to judge by.
        theirs: the student's name of an input -> the teacher's.
    """

    rows: Shelf
    answers: Shelf
    labels: list[int] | None
    learning: list[int]
    held: list[int]
    digest: str
    theirs: Mapping[str, str]

    @classmethod
    def given(
        cls,
        teacher: Session,
        student: Session,
        samples: Iterable[Sample],
        outputs: Sequence[str],
        seed: int,
        labels: list[int] | None = None,
        held: Collection[int] = (),
    ) -> Lesson:
        """Run the teacher over ``samples``, once.

        Args:
            held: positions of samples that nothing may learn from; an eighth of all by default.

        Raises:
            DataError: the inputs of the two models have nothing in common, or there are fewer than two samples.
        """
        theirs, mine = ([each.name for each in session.inputs] for session in (teacher, student))
        optional = [each.name for session in (teacher, student) for each in session.optional]
        renamed: Mapping[str, str] = {}
        if set(theirs) != set(mine):
            if set(theirs) & set(mine) or len(theirs) != len(mine):
                names = ", ".join(theirs), ", ".join(mine)
                raise DataError(f"the inputs of the teacher ({names[0]}) and of the student ({names[1]}) do not match")
            renamed = dict(zip(theirs, mine, strict=True))
        rows, answers, digest = Shelf(), Shelf(), hashlib.sha256()
        for sample in samples:
            row = plain(sample, [*theirs, *optional])
            for name, array in sorted(row.items()):
                digest.update(f"{name}{array.shape}{array.dtype}".encode() + np.ascontiguousarray(array).tobytes())
            rows.append({renamed.get(name, name): array for name, array in row.items()})
            answers.append(teacher.run(row, list(outputs)))
        if len(rows) < 2:
            raise DataError("training needs two samples at least, one to learn from and one to judge by")
        learning, judging = split(len(rows), seed)
        if held:
            learning, judging = [each for each in range(len(rows)) if each not in held], sorted(held)
        back = {renamed.get(name, name): name for name in (*theirs, *optional)}
        return cls(rows, answers, labels, learning, judging, digest.hexdigest(), back)

    def wanted(self, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """The teacher's answers to a batch."""
        return joined(self.answers[number] for number in numbers)

    def label(self, numbers: Sequence[int]) -> Classes | None:
        """The classes of a batch."""
        if self.labels is None:
            return None
        rows = [int(next(iter(self.answers[number].values())).shape[0]) for number in numbers]
        if any(row != 1 for row in rows):
            raise DataError("hard labels need samples of one item each")
        return Classes.certain([self.labels[number] for number in numbers])

    def mixed_label(self, mixture: Mixture) -> Classes | None:
        """The two classes of every mixed sample, each by its share (Zhang et al., 2018)."""
        own, other = self.label(mixture.numbers), self.label(mixture.partners)
        if own is None or other is None:
            return None
        return Classes(own.first, other.first, torch.tensor(mixture.shares))


class Asked:
    """A teacher that answers what is not among the samples.

    Args:
        session: of the teacher. outputs: its names of what is asked for. lesson: samples that it answered.
    """

    def __init__(self, session: Session, outputs: Sequence[str], lesson: Lesson) -> None:
        self.session, self.outputs, self.theirs = session, list(outputs), lesson.theirs
        self.together = self._together(lesson)

    def _together(self, lesson: Lesson) -> bool:
        """Whether it answers joined samples as it does single ones."""
        pair = next((each for each in batches(lesson.rows, lesson.learning, 2) if len(each) == 2), None)
        if pair is None or any(not array.shape for array in lesson.rows[pair[0]].values()):
            return False
        try:
            both = self._answer(joined(lesson.rows[number] for number in pair))
            return alike(both, [joined([lesson.answers[number]]) for number in pair])
        except (ModelError, DataError):  # one at a time is all that it takes
            return False

    def _answer(self, row: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return joined(
            [self.session.run({self.theirs[name]: to_numpy(each) for name, each in row.items()}, self.outputs)]
        )

    def __call__(self, rows: Sequence[Arrays]) -> dict[str, torch.Tensor]:
        """Its answers to a batch, by its names of the outputs.

        Args:
            rows: inputs by the student's names, sample by sample.
        """
        if self.together:
            return self._answer(joined(rows))
        single = ({self.theirs[name]: array for name, array in row.items()} for row in rows)
        return joined(self.session.run(row, self.outputs) for row in single)


def alike(joint: Mapping[str, torch.Tensor], single: Sequence[Mapping[str, torch.Tensor]]) -> bool:
    """Whether the outputs of joined samples are those of single ones, one after the other."""
    for name, value in joint.items():
        apart = [each[name] for each in single]
        if any(not each.ndim for each in apart) or torch.cat(apart).shape != value.shape:
            return False
        error = (torch.cat(apart).double() - value.double()).square().sum()
        if not bool(error <= ALIKE * value.double().square().sum() + 1e-12):
            return False
    return True
