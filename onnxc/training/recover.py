"""A compressed model wins back what it lost. In: the original, the compressed model, calibration data. Out: Trained.

No labels are needed: the original tells what each answer should be. What has a closed form comes first: rounding,
layer by layer, on what the compressed model feeds each. Then blocks are trained, then the model as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from time import monotonic

from onnxc.data import Sample
from onnxc.errors import DataError, ModelError
from onnxc.judge import Judge
from onnxc.model import Model
from onnxc.quality import FLOOR_CHANGED, FLOOR_DROP
from onnxc.recipe import Budget
from onnxc.session import Options, Session
from onnxc.training.lesson import Lesson
from onnxc.training.losses import Loss, matched
from onnxc.training.trainer import Trained, Trainer
from onnxc.training.tuning import Say, Settings
from onnxc.trial import Trial

ROOM_DB, ROOM = 8.0, 4.0  # what training is trusted to win back: decibels, times the changed answers and the drop
NO_FLOOR_DB = -40.0  # of what was told: a model whose noise is louder than its signal can be trained all the same


def recover(
    original: Model,
    compressed: Model,
    samples: Iterable[Sample],
    settings: Settings = Settings(),  # noqa: B008 - frozen
    options: Options = Options(),
    say: Say = lambda message: None,
    *,
    loss: Loss | None = None,
    blockwise: bool = True,
    held: Collection[int] = (),
) -> Trained:
    """Fine-tune what ``compressed`` holds (weights, codes, scales, biases) so that it answers as ``original`` does.

    Args:
        original, compressed: neither is changed.
        samples: calibration data. held: positions of those that are held back and decide what is best; an eighth of
            them where none are given.
        loss: "auto" by default (see losses.py).
        blockwise: reconstruct block by block first.

    Raises:
        ModelError: an operator cannot be trained through; names it.
        DataError: the samples do not fit both, or there is one only.
    """
    loss = loss or Loss(matched(original, compressed))
    try:
        say("training: asking the original")
        lesson = Lesson.given(
            Session(original.path or original, options),
            Session(compressed, options),
            samples,
            [each.teacher for each in loss.outputs],
            settings.seed,
            held=held,
        )
        trainer = Trainer(original, compressed, lesson, loss, settings, options, say)
    except ModelError as error:
        raise ModelError(f"recovery: {error}") from error
    return trainer.run(blockwise=blockwise)


def recovering(
    judge: Judge,
    trials: Callable[[], Iterator[Trial]],
    settings: Settings,
    say: Say = lambda message: None,
    *,
    again: Callable[[Trial], Trial | None] = lambda trial: None,
    told: bool = False,
    notes: list[str],
) -> Iterator[Trial]:
    """The trials to deliver, the first one trained.

    What was asked for may lose more than the floors allow: they hold for what training makes of it. Where that is not
    enough, the trials that hold them without training follow.

    Args:
        trials: makes them, best first, by the judge's budget of that moment.
        again: a trial with the same formats and other codes, None where there are none better.
        told: the passes were told what to do; then no floor keeps it from being trained. With a limit of size or
            speed floors are lower by ROOM before training, otherwise they are what they are.
        notes: gets a sentence where training was in vain.
    """
    floors = judge.budget
    judge.budget = lowered(judge, told=told)
    try:
        first = next(trials(), None)
    finally:
        judge.budget = floors
    if first is not None:
        start = monotonic()
        first = closer(judge, first, again, say)
        left = max(settings.minutes - (monotonic() - start) / 60, 0.0)
        trained = recovered(judge, first, replace(settings, minutes=left), say)
        yield trained
        if trained.missed is not None and judge.budget == floors:
            notes += trained.notes
            notes.append(f"recovery: undone, {trained.missed}; what was written was not trained")
            yield from trials()


def closer(judge: Judge, trial: Trial, again: Callable[[Trial], Trial | None], say: Say) -> Trial:
    """``trial``, or its weights solved layer by layer, if that is nearer to the original."""
    say("training: solving the codes on what the compressed model feeds them")
    solved = again(trial)
    if solved is None or (worth(solved), solved.quality.sqnr_db) <= (worth(trial), trial.quality.sqnr_db):
        return trial
    before, after = trial.quality.sqnr_db, solved.quality.sqnr_db
    note = f"recovery: codes solved on what the compressed model feeds them, {before:.1f} dB became {after:.1f} dB"
    return replace(solved, notes=(*solved.notes, note))


def lowered(judge: Judge, *, told: bool) -> Budget:
    """The floors of what will be trained."""
    budget = judge.budget
    if told:
        return replace(budget, min_sqnr=NO_FLOOR_DB, min_agreement=0.0, max_drop=None if judge.score is None else 1.0)
    if budget.size is None and budget.speed is None:
        return budget
    changed = FLOOR_CHANGED if budget.min_agreement is None else 1 - budget.min_agreement
    drop = FLOOR_DROP if budget.max_drop is None else budget.max_drop
    return replace(
        budget,
        min_sqnr=max(judge.lowest_sqnr - ROOM_DB, 0.0),
        min_agreement=max(1 - ROOM * changed, 0.0),
        max_drop=None if judge.score is None else min(ROOM * drop, 1.0),
    )


def recovered(judge: Judge, trial: Trial, settings: Settings, say: Say) -> Trial:
    """The better one of ``trial`` before and after training; what was done is among its notes."""
    try:
        trained = recover(
            judge.original, trial.model, judge.samples, settings, judge.options, say, held=judge.samples.apart
        )
    except (ModelError, DataError) as error:
        return rejudged(judge, replace(trial, notes=(*trial.notes, str(error))))
    notes = (*trial.notes, *(f"recovery: {note}" for note in trained.notes))
    trial = rejudged(judge, replace(trial, notes=notes))
    if not trained.improved:
        return trial
    quality, score, missed = judge.judge(trained.model)
    new = Trial(trial.plan, trained.model, quality, score, missed, notes)
    if worth(new) >= worth(trial):
        return new
    reason = missed or f"a score of {score:.6g} after {trial.score:.6g}"
    return replace(trial, notes=(*notes, f"recovery: undone, {reason}"))


def rejudged(judge: Judge, trial: Trial) -> Trial:
    """``trial`` by the floors of now, which may be higher than those it was found by."""
    quality, score, missed = judge.judge(trial.model)
    return replace(trial, quality=quality, score=score, missed=missed)


def worth(trial: Trial) -> tuple[bool, float]:
    """What makes a trial better: that it holds the floors, then its score. Both alike, the loss on samples held back
    decides: classes are learned better at some cost of the signal to noise ratio.
    """
    return trial.missed is None, trial.score or 0.0
