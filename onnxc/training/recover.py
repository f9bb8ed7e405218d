"""A compressed model wins back what it lost. In: the original, the compressed model, calibration data. Out: Trained.

No labels are needed: the original tells what each answer should be. Block by block first, then as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable

from onnxc.data import Sample
from onnxc.errors import ModelError
from onnxc.model import Model
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
