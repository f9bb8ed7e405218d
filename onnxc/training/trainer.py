"""A student learns from a teacher. In: two models and samples. Out: the student with other weights, never a worse one.

samples ──ONNX Runtime── teacher's outputs, once
samples ──interpreter─── student's outputs ── loss ── gradients ── latents        block by block, then as a whole
latents ──────────────── the file's initializers ──ONNX Runtime── is it better?   else the student as it was
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from time import monotonic

import numpy as np
import torch

from onnxc.errors import Interrupted, ModelError
from onnxc.file import editing
from onnxc.model import Model
from onnxc.session import Options, Session
from onnxc.training import blocks as cut
from onnxc.training.devices import device, named, orderly, within_memory
from onnxc.training.interpreter import Program
from onnxc.training.latents import Latent, tensors_of, values_of, write
from onnxc.training.leaning import lean
from onnxc.training.lesson import Asked, Lesson, alike
from onnxc.training.losses import Loss
from onnxc.training.mixing import Mixer, Mixture, quantities, told
from onnxc.training.operators.table import from_numpy
from onnxc.training.parity import check_parity
from onnxc.training.samples import Shelf, batches, joined
from onnxc.training.tuning import Diary, Say, Settings, restore, snapshot, tune
from onnxc.training.weights import latents

BLOCK_SHARE = 0.4  # of the time, for the blocks
BLOCK_STEPS = 300
BLOCK_SAMPLES = 256  # at most, to learn from in the blocks
PROBES = 3  # samples that the interpreter is held against ONNX Runtime with


@dataclass
class Trained:
    """What came out.

    Attributes:
        model: the better one of the student before and after, as ONNX Runtime computes them.
        improved: whether that is the one after.
        before, after: loss on the samples held back, in ONNX Runtime.
        steps: of the end-to-end training. seconds: all of it. parity: of the interpreter, in dB.
        notes: sentences for a report.
    """

    model: Model
    improved: bool
    before: float
    after: float
    steps: int
    seconds: float
    parity: float
    notes: list[str] = field(default_factory=list)


class Trainer:
    """One student, one teacher.

    Args:
        teacher: what is learned from. student: is copied.
        lesson: the samples. loss: the number to make smaller.
        original: whose weights tell how codes were rounded; the teacher by default.

    Raises:
        ModelError: an operator cannot be trained through, nothing can be learned, or the interpreter disagrees with
            ONNX Runtime.
    """

    def __init__(
        self,
        teacher: Model,
        student: Model,
        lesson: Lesson,
        loss: Loss,
        settings: Settings,
        options: Options,
        say: Say = lambda message: None,
    ) -> None:
        self.teacher, self.start, self.student = teacher, student, student.copy()
        self.lesson, self.loss, self.settings, self.options, self.say = lesson, loss, settings, options, say
        self.device = device()
        self.diary = Diary()
        say(f"training on {named(self.device)}")
        with within_memory(self.device):
            self._prepare()

    def _prepare(self) -> None:
        """The program, what it learns, and whether it computes what ONNX Runtime does."""
        lesson, loss, student = self.lesson, self.loss, self.start
        names = [each.name for each in loss.outputs]
        self.latents: list[Latent] = latents(self.student, self.device)
        self.program = Program(self.student, trainable=tensors_of(self.latents), outputs=names, device=self.device)
        reached = {tensor for node in self.program.nodes for tensor in (*editing.reads(node), *node.outputs)}
        self.latents = [each for each in self.latents if any(tensor in reached for tensor in each.tensors)]
        if not self.latents:
            raise ModelError("the model has no weight that can be learned")
        lean(self.program, self.latents, self.teacher)
        probes = [lesson.rows[number] for number in lesson.learning[:PROBES]]
        self.parity = check_parity(self.program, student, probes, self.options)
        self.joinable = self._joinable()
        self.mixer = self._mixer()
        self.asked: Asked | None = None
        if self.mixer.on:
            session = Session(self.teacher.path or self.teacher, self.options)
            self.asked = Asked(session, [each.teacher for each in loss.outputs], lesson)

    def _mixer(self) -> Mixer:
        lesson, share = self.lesson, self.settings.mix
        names: frozenset[str] = frozenset()
        if share:
            mine = {theirs: name for name, theirs in lesson.theirs.items()}
            fixed = told(self.start) | {mine.get(name, name) for name in told(self.teacher)}
            names = quantities(lesson.rows, lesson.learning, fixed)
        return Mixer(lesson.rows, lesson.learning, names, share, self.settings.seed)

    def _joinable(self) -> bool:
        """Whether samples joined along their first axis give what they give one by one."""
        rows = self.lesson.rows
        pair = next((each for each in batches(rows, self.lesson.learning, 2) if len(each) == 2), None)
        if pair is None or any(not array.shape for array in rows[pair[0]].values()):
            return False
        values = values_of(self.latents)
        try:
            with torch.no_grad():
                both = self.program(joined(rows[number] for number in pair), values)
                single = [self.program(rows[number], values) for number in pair]
        except (ModelError, RuntimeError):
            return False
        return alike(both, single)

    @property
    def size(self) -> int:
        """Samples in a batch."""
        if not self.joinable:
            return 1
        return max(1, min(self.settings.batch, len(self.lesson.learning) // 8))

    def order(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch, another order in each."""
        random = np.random.default_rng([self.settings.seed, epoch])
        numbers = [self.lesson.learning[int(each)] for each in random.permutation(len(self.lesson.learning))]
        made = batches(self.lesson.rows, numbers, self.size)
        return [made[int(each)] for each in random.permutation(len(made))]

    def batch_loss(self, numbers: Sequence[int]) -> torch.Tensor:
        """The loss of the student as it is now."""
        values = values_of(self.latents)
        got = self.program(joined(self.lesson.rows[number] for number in numbers), values)
        return self.loss(got, self.lesson.wanted(numbers), self.lesson.label(numbers))

    def mixtures(self, epoch: int) -> list[Mixture]:
        """The batches of an epoch, samples mixed into others."""
        return self.mixer.mixtures(self.order(epoch), epoch)

    def mixed_loss(self, mixture: Mixture) -> torch.Tensor:
        """The loss of the student as it is now, between samples; at them where the teacher has no answer there."""
        if self.asked is None or not mixture.mixed:
            return self.batch_loss(mixture.numbers)
        rows, answered = self.mixer.inputs(mixture), mixture.numbers[mixture.mixed :]
        wanted = self.asked(rows[: mixture.mixed])
        if answered:
            known = self.lesson.wanted(answered)
            wanted = {name: torch.cat([each, known[name]]) for name, each in wanted.items()}
        if not all(bool(torch.isfinite(each).all()) for each in wanted.values()):
            return self.batch_loss(mixture.numbers)
        got = self.program(joined(rows), values_of(self.latents))
        return self.loss(got, wanted, self.lesson.mixed_label(mixture))

    def held_back(self) -> float:
        """The loss on the samples held back."""
        groups = batches(self.lesson.rows, self.lesson.held, self.size)
        total = sum(float(self.batch_loss(group)) * len(group) for group in groups)
        return total / len(self.lesson.held)

    def judged(self, model: Model) -> float:
        """The loss of a model on the samples held back, in ONNX Runtime, sample by sample."""
        session, total = Session(model, self.options), 0.0
        names = [each.name for each in self.loss.outputs]
        for number in self.lesson.held:
            answers = session.run(self.lesson.rows[number], names)
            got = {name: from_numpy(answers[name]) for name in names}
            with torch.no_grad():
                total += float(self.loss(got, self.lesson.wanted([number]), self.lesson.label([number])))
        return total / len(self.lesson.held)

    def run(self, *, blockwise: bool) -> Trained:
        """Train, write back, and hold the result against the start.

        Raises:
            ModelError: the memory of the device is full.
            Interrupted: Ctrl-C was pressed when there was a state to go on from; before that KeyboardInterrupt.
        """
        try:
            with within_memory(self.device):
                return self._run(blockwise=blockwise)
        except KeyboardInterrupt:
            if self.diary.kept:
                raise Interrupted from None
            raise

    def _run(self, *, blockwise: bool) -> Trained:
        started, settings, notes = monotonic(), self.settings, list[str]()
        with orderly(settings.seed, settings.threads, self.device) as loose:
            self._open_diary(blockwise)
            before = self.judged(self.start)
            seconds = settings.minutes * 60
            if blockwise:
                notes += self.by_blocks(seconds * BLOCK_SHARE)
            left = max(seconds - (monotonic() - started), 1.0)
            outcome = tune(
                self.latents,
                self.mixed_loss,
                self.mixtures,
                self.held_back,
                settings,
                steps=settings.steps,
                seconds=left,
                label="training",
                diary=self.diary,
                say=self.say,
            )
            write(self.latents)
            after = self.judged(self.student)
            self.diary.done()
        improved = after < before
        done = f"{outcome.steps} steps on {named(self.device)}, {outcome.ended}"
        notes.append(f"{done}; loss on held-back samples {before:.4g} -> {after:.4g}")
        if self.mixer.off:
            notes.append(self.mixer.off)
        if loose:
            kernels = ", ".join(sorted(loose))
            notes.append(f"the same command may give other weights: {kernels} of PyTorch adds up in any order")
        if not improved:
            notes.append("training made it no better: the model stays as it was")
        model = self.student if improved else self.start
        spent = monotonic() - started
        return Trained(model, improved, before, min(before, after), outcome.steps, spent, self.parity, notes)

    def _open_diary(self, blockwise: bool) -> None:
        folder = self.settings.work
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        key = hashlib.sha256(self.start.serialized() + self.lesson.digest.encode())
        asked = replace(self.settings, work=None, minutes=0.0)  # what is left of them differs from run to run
        key.update(repr((asked, self.loss, blockwise)).encode())
        self.diary = Diary(folder / f"training-{key.hexdigest()[:12]}.pt", key.hexdigest())
        self.diary.open()

    def by_blocks(self, seconds: float) -> list[str]:
        """Every block learns to give what the teacher gives at its end; what it did, in sentences."""
        lesson, end = self.lesson, monotonic() + seconds
        some = lesson.learning[:BLOCK_SAMPLES], lesson.held[: BLOCK_SAMPLES // 4]
        groups = [group for numbers in some for group in batches(lesson.rows, numbers, self.size)]
        learning = set(lesson.learning)
        train = [place for place, group in enumerate(groups) if group[0] in learning]
        held = [place for place in range(len(groups)) if place not in set(train)]
        try:
            first = joined(lesson.rows[number] for number in groups[0])
            names = [each.teacher for each in self.loss.outputs]
            theirs = cut.shapes_of(self.teacher, names, first)
            found = cut.blocks(self.program, self.latents, first, theirs)
            if not found:
                return ["the graph cannot be cut into blocks"]
            session = cut.witness(self.teacher, sorted({n for b in found for n in b.targets.values()}), self.options)
        except ModelError as error:
            return [f"no training block by block: {error}"]
        states = Shelf()
        for group in groups:
            row = joined(lesson.rows[number] for number in group)
            states.append({str(p): row[t.name].numpy() for p, t in enumerate(found[0].given) if t.name in row})
        self.say("training: what the original has inside")
        wanted = Shelf()
        for group in groups:
            row = {k: v.numpy() for k, v in joined(lesson.rows[number] for number in group).items()}
            wanted.append(session.run(row, sorted({n for block in found for n in block.targets.values()})))
        gains = []
        for place, block in enumerate(found):
            others = [each for each in self.latents if each not in set(block.latents)]
            with torch.no_grad():
                rest = values_of(others)

            lesson_of = cut.Lesson(self.program, block, states, wanted, rest, train, held, self.settings.seed + place)
            label = f"block {place + 1} of {len(found)}"
            share = (end - monotonic()) / (len(found) - place)
            if share > 0 and f"{label} done" not in self.diary.kept:
                outcome = tune(
                    block.latents,
                    lesson_of.loss,
                    lesson_of.order,
                    lesson_of.held_back,
                    self.settings,
                    steps=BLOCK_STEPS,
                    seconds=share,
                    label=label,
                    diary=self.diary,
                    say=self.say,
                )
                gains.append((outcome.before, outcome.after))
                self.diary.kept.pop(label, None)
                self.diary.save(f"{label} done", snapshot(block.latents))
            elif f"{label} done" in self.diary.kept:
                restore(block.latents, self.diary.kept[f"{label} done"])
            with torch.no_grad():
                now = {**rest, **values_of(block.latents)}
            states = cut.advanced(self.program, block, states, now)
        better = [after / max(before, 1e-30) for before, after in gains]
        if not better:
            return [f"{len(found)} blocks, none of them trained"]
        middle = float(np.median(better))
        return [f"{len(found)} blocks, error at their ends {middle:.0%} of what it was (median)"]
