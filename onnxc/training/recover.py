"""A compressed model wins back what it lost. In: the original, the compressed model, calibration data. Out: Trained.

No labels are needed: the original tells what each answer should be. Block by block first, then as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from onnxc.data import Sample
from onnxc.errors import DataError, ModelError
from onnxc.judge import Judge
from onnxc.model import Model
from onnxc.search import Trial
from onnxc.session import Options, Session
from onnxc.training.losses import Loss, matched
from onnxc.training.trainer import Lesson, Trained, Trainer
from onnxc.training.tuning import Say, Settings


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
) -> Trained:
    """Fine-tune what ``compressed`` holds (weights, codes, scales, biases) so that it answers as ``original`` does.

    Args:
        original, compressed: neither is changed.
        samples: calibration data; an eighth of it is held back and decides what is best.
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
        )
        trainer = Trainer(original, compressed, lesson, loss, settings, options, say)
    except ModelError as error:
        raise ModelError(f"recovery: {error}") from error
    return trainer.run(blockwise=blockwise)


def recovering(
    judge: Judge, trials: Iterable[Trial], settings: Settings, say: Say = lambda message: None
) -> Iterator[Trial]:
    """``trials`` with the first one trained, if the judge finds that better; the others as they are."""
    rest = iter(trials)
    for first in rest:
        yield recovered(judge, first, settings, say)
        break
    yield from rest


def recovered(judge: Judge, trial: Trial, settings: Settings, say: Say) -> Trial:
    """The better one of ``trial`` before and after training; what was done is among its notes."""
    try:
        trained = recover(judge.original, trial.model, judge.samples, settings, judge.options, say)
    except (ModelError, DataError) as error:
        return replace(trial, notes=(*trial.notes, str(error)))
    notes = (*trial.notes, *(f"recovery: {note}" for note in trained.notes))
    if not trained.improved:
        return replace(trial, notes=notes)
    quality, score, missed = judge.judge(trained.model)
    new = Trial(trial.plan, trained.model, quality, score, missed, notes)
    if worth(new) > worth(trial):
        return new
    reason = missed or f"an SQNR of {quality.sqnr_db:.1f} dB after {trial.quality.sqnr_db:.1f} dB"
    return replace(trial, notes=(*notes, f"recovery: undone, {reason}"))


def worth(trial: Trial) -> tuple[bool, float, float]:
    """What makes a trial better: that it holds the floors, then its score, then its signal to noise ratio."""
    return trial.missed is None, trial.score or 0.0, trial.quality.sqnr_db
