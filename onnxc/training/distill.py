"""Any student learns from any teacher. In: two files, inputs. Out: the student's file with other weights, and a report.

The student may be a network with random or trained weights, the teacher's compressed self, or "width=0.5" or
"compact": made out of the teacher (students.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxc.answers import class_scores
from onnxc.data import Calibration
from onnxc.errors import DataError, ModelError, UsageError
from onnxc.model import Model
from onnxc.recipe import parse_student
from onnxc.reference import ReferenceOutputs
from onnxc.samples.inputs import index_limits
from onnxc.samples.readers import Raw, Reader, open_reader
from onnxc.session import Options, Session
from onnxc.training.lesson import Lesson
from onnxc.training.losses import Loss, matched
from onnxc.training.trainer import Trained, Trainer
from onnxc.training.tuning import Settings

if TYPE_CHECKING:
    from rich.console import Console


@dataclass
class Distilled:
    """What a distillation did.

    Attributes:
        teacher, student, output: files. parameters: of the teacher and of the student.
        bytes_teacher, bytes_student: of their files.
        improved: whether training made the student better on samples held back; otherwise it is written as it was.
        loss_before, loss_after: on the samples held back, in ONNX Runtime.
        sqnr_before, sqnr_after: of the worst output against the teacher over all samples, in dB.
        agreement_before, agreement_after: share of equal top-1 answers, None where outputs are no class scores.
        steps, seconds: of the training. parity: of the interpreter against ONNX Runtime, in dB.
    """

    teacher: str
    student: str
    output: str
    bytes_teacher: int
    bytes_student: int
    improved: bool
    loss_before: float
    loss_after: float
    sqnr_before: float
    sqnr_after: float
    agreement_before: float | None
    agreement_after: float | None
    steps: int
    seconds: float
    parity: float
    notes: list[str] = field(default_factory=list)

    def render(self, console: Console) -> None:
        """The page."""
        from onnxc.reports.figures import amount, decibels, percent
        from onnxc.reports.tables import print_sentences, print_table

        rows = [["loss on held-back samples", f"{self.loss_before:.4g}", f"{self.loss_after:.4g}"]]
        rows.append(["SQNR against the teacher", decibels(self.sqnr_before), decibels(self.sqnr_after)])
        if self.agreement_before is not None and self.agreement_after is not None:
            rows.append(["equal top-1 answers", percent(self.agreement_before), percent(self.agreement_after)])
        print_table(console, ["", "student", "trained"], rows, right=[1, 2])
        print_sentences(self.notes, console)
        sizes = f"{amount(self.bytes_student)}, the teacher has {amount(self.bytes_teacher)}"
        console.print(f"\nwrote {self.output}: {sizes}; {self.steps} steps, {self.seconds:.1f} s", highlight=False)


@dataclass
class Data:
    """The samples of a reader without their labels.

    Attributes:
        samples: what the teacher reads. labels: class numbers, None where none are asked for.
    """

    samples: Calibration
    labels: list[int] | None

    @classmethod
    def open(cls, spec: Any, session: Session, model: Model, name: str | None) -> Data:
        """Read the inputs, and the array ``name`` as labels.

        Raises:
            DataError: they do not fit the model, or there is no such array.
        """
        reader = open_reader(spec, session.inputs)
        limits = index_limits(model)
        if name is None:
            return cls(Calibration.open(spec, session.inputs, optional=session.optional, limits=limits), None)
        labels = [_label(raw, name, index, reader.count) for index, raw in enumerate(reader.stream())]

        def stripped(raw: Raw) -> Raw:
            return raw[0], {key: value for key, value in raw[1].items() if key != name}

        def stream() -> Iterator[Raw]:
            return map(stripped, reader.stream())

        read = reader.read
        each: Callable[[int], Raw] | None = None if read is None else lambda index: stripped(read(index))
        bare = Reader(reader.kind, stream, each, reader.count)
        from onnxc.data import Check

        check = Check(tuple(session.inputs), tuple(session.optional), dict(limits))
        return cls(Calibration.checked(bare, check), labels)


def _label(raw: Raw, name: str, index: int, count: int | None) -> int:
    where, arrays = raw
    if name not in arrays:
        raise DataError(f"{where}: there is no array {name!r} for --labels; it holds {', '.join(arrays)}")
    array = np.asarray(arrays[name])
    if array.size == 1:
        return int(array.reshape(-1)[0])
    if array.ndim and count == len(array) and array.size == count:  # one array for all samples of a file
        return int(array.reshape(-1)[index])
    raise DataError(f"{where}: {name!r} has shape {list(array.shape)}, but a sample has one class number")


def distill(
    teacher: str | Path,
    student: str | Path,
    output: str | Path,
    *,
    data: Any,
    minutes: float = 10.0,
    steps: int = 6000,
    batch: int = 16,
    rate: float = 2e-3,
    measure: str = "auto",
    temperature: float = 1.0,
    labels: str | None = None,
    label_weight: float = 0.5,
    mix: float = 0.5,
    outputs: str | None = None,
    blockwise: bool = False,
    seed: int = 0,
    work: str | Path | None = None,
    options: Options = Options(),
    progress: Callable[[str], None] | None = None,
) -> Distilled:
    """Train ``student`` to answer as ``teacher`` does, and write it to ``output``.

    Args:
        teacher: a file.
        student: a file, or "width=0.5" or "compact".
        data: inputs, in any form that calibration data may have.
        measure: "auto", "kl", "mse" or "cosine"; see losses.py.
        labels: the array of the data that holds class numbers; label_weight: 0 to 1 of the loss.
        mix: 0 to 1, the share of the samples of a step that are mixed with others, where inputs are quantities; see
            mixing.py.
        outputs: "student=teacher,..." where their names differ.
        blockwise: reconstruct block by block first, for a student whose tensors have the teacher's names.
        work: a folder for the state of an interrupted training.

    Raises:
        UsageError: the call is wrong. InputError: a model or the data is bad, or torch is missing.
    """
    say = progress or (lambda message: None)
    _check(teacher, student, output)
    original = Model.load(teacher)
    teaching = Session(original.path or original, options)
    found = Data.open(data, teaching, original, labels)
    say("making the student")
    pupil, notes = made(str(student), original, found.samples, options, seed)
    loss = Loss(matched(original, pupil, _pairs(outputs)), measure, temperature, label_weight)
    say("asking the teacher")
    learning = Session(pupil, options)
    lesson = Lesson.given(
        teaching, learning, found.samples, [each.teacher for each in loss.outputs], seed, found.labels
    )
    folder = Path(work) if work is not None else None
    settings = Settings(minutes, steps, rate, batch=batch, mix=mix, seed=seed, threads=options.threads, work=folder)
    trained = Trainer(original, pupil, lesson, loss, settings, options, say).run(blockwise=blockwise)
    trained.model.metadata.update({"onnxc": f'{{"distilled":true,"seed":{seed}}}'} if trained.improved else {})
    size = trained.model.save(Path(output))
    say("measuring the result")
    return _report(original, pupil, trained, found.samples, teaching, options, size, notes, str(student), str(output))


def _check(teacher: str | Path, student: str | Path, output: str | Path) -> None:
    place = Path(output)
    for each in (teacher, student):
        if place.exists() and Path(each).exists() and place.samefile(each):
            raise UsageError(f"OUT and '{each}' are the same file; write the result elsewhere")
    if place.is_dir() or not place.absolute().parent.is_dir():
        raise UsageError(f"'{output}' cannot be written: name a file in a folder that exists")


def _pairs(text: str | None) -> dict[str, str] | None:
    """``a=b,c=d`` as a dict."""
    if text is None:
        return None
    pairs = dict(each.partition("=")[::2] for each in text.split(","))
    if not all(key and value for key, value in pairs.items()):
        raise UsageError(f"'{text}' names no outputs: write STUDENT=TEACHER,...")
    return pairs


def made(student: str, teacher: Model, samples: Calibration, options: Options, seed: int) -> tuple[Model, list[str]]:
    """The student that ``student`` names: a file, or one made out of the teacher."""
    if Path(student).exists() or not (student == "compact" or student.startswith("width=")):
        return Model.load(student), []
    from onnxc.training.students import compact, narrow

    width = parse_student(student)
    if width is None:
        return compact(teacher, samples, options, seed)
    return narrow(teacher, width, samples, options, seed)


def _report(
    teacher: Model,
    student: Model,
    trained: Trained,
    samples: Calibration,
    teaching: Session,
    options: Options,
    size: int,
    notes: list[str],
    name: str,
    output: str,
) -> Distilled:
    """Student before and after, against the teacher, in ONNX Runtime."""
    reference = ReferenceOutputs(teaching, samples, class_scores(teacher))
    before, after = (reference.judge(Session(each, options)) for each in (student, trained.model))
    if after.problem:
        raise ModelError(f"the trained student: {after.problem}")
    return Distilled(
        str(teacher.path),
        name,
        output,
        teacher.source_bytes,
        size,
        trained.improved,
        trained.before,
        trained.after,
        before.sqnr_db,
        after.sqnr_db,
        before.agreement,
        after.agreement,
        trained.steps,
        trained.seconds,
        trained.parity,
        [*notes, *trained.notes],
    )
