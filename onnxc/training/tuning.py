"""One optimization of latents. In: a loss of a batch, samples held back, time. Out: the best values that were seen.

Adam with a cosine schedule after a short warm-up; a step is in units of each weight's own size. The best values on
the samples held back are kept; it stops when they no longer get better. Everything is decided by the seed and the
number of steps, unless time runs out first: then the schedule is shortened and the result says so.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import current_thread, main_thread
from time import monotonic
from types import FrameType
from typing import Any, TypeVar

import torch

from onnxc.errors import DataError
from onnxc.training.latents import Latent

WARM_UP = 0.03  # of the steps
SAVE_EVERY = 20.0  # seconds between two saved states
PATIENCE = 12  # evaluations without a better one
EVALUATIONS = 25
TOLERATED = 5  # batches whose loss is no number

Say = Callable[[str], None]
Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Settings:
    """How training goes.

    Attributes:
        minutes: the longest it may take. steps: of the end-to-end training, if time allows.
        rate: of weights, in units of their size; scale_rate: of logarithms of scales.
        batch: samples in a step, where they can be joined. seed: of everything random.
        mix: 0 to 1, the share of the samples of a step that are mixed with others (mixing.py), end to end.
        threads: of torch; on a machine that others use too one is often the fastest.
        work: a folder for the state, so that an interrupted training goes on; None: nothing is kept.
    """

    minutes: float = 10.0
    steps: int = 20000
    rate: float = 2e-3
    scale_rate: float = 1e-3
    batch: int = 32
    mix: float = 0.0
    seed: int = 0
    threads: int = 1
    work: Path | None = None


@dataclass
class Outcome:
    """What a tuning did: the loss on held-back samples before and after, its steps, and why it ended."""

    before: float
    after: float
    steps: int
    ended: str


@dataclass
class Diary:
    """The state of an interrupted training, in one file.

    Attributes:
        path: None: nothing is kept. key: what it belongs to; a file of something else is passed over.
        kept: what was saved, by section.
    """

    path: Path | None = None
    key: str = ""
    kept: dict[str, Any] = field(default_factory=dict)
    saved: float = field(default_factory=monotonic)

    def open(self) -> None:
        """Read what is there."""
        if self.path is None or not self.path.exists():
            return
        try:
            found = torch.load(self.path, map_location="cpu", weights_only=True)  # wherever it was trained
        except Exception:  # noqa: BLE001 - a file that cannot be read, for whatever reason, is a state we do not have
            return
        if isinstance(found, dict) and found.get("key") == self.key:
            self.kept = found["kept"]

    @property
    def due(self) -> bool:
        """Whether the last state was written SAVE_EVERY seconds ago."""
        return self.path is not None and monotonic() - self.saved >= SAVE_EVERY

    def save(self, section: str, state: Any) -> None:
        """Write the state of a section."""
        if self.path is None:
            return
        self.kept[section] = state
        self.saved = monotonic()
        beside = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        torch.save({"key": self.key, "kept": self.kept}, beside)
        beside.replace(self.path)

    def done(self) -> None:
        """The training is complete: its state is of no more use."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


@contextmanager
def interruptions() -> Iterator[list[int]]:
    """A list that is not empty once Ctrl-C was pressed, so that a step may end before its state is saved; pressed again
    it stops at once.
    """
    pressed: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or current_thread() is not main_thread():
        yield pressed
        return

    def note(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        if len(pressed) > 1:
            before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def snapshot(latents: Sequence[Latent]) -> list[torch.Tensor]:
    """A copy of the parameters."""
    return [each.parameter.detach().clone() for each in latents]


def restore(latents: Sequence[Latent], values: Sequence[torch.Tensor]) -> None:
    """Put copied parameters back."""
    with torch.no_grad():
        for latent, value in zip(latents, values, strict=True):
            latent.parameter.copy_(value)


def minutes_left(seconds: float) -> str:
    """Time in words."""
    return f"{seconds / 60:.1f} minutes left" if seconds >= 60 else f"{max(seconds, 0):.0f} seconds left"


def tune(
    latents: Sequence[Latent],
    loss: Callable[[Batch], torch.Tensor],
    order: Callable[[int], Sequence[Batch]],
    evaluate: Callable[[], float],
    settings: Settings,
    *,
    steps: int,
    seconds: float,
    label: str,
    diary: Diary | None = None,
    say: Say = lambda message: None,
) -> Outcome:
    """Change ``latents`` so that ``evaluate()`` gets smaller; they end at the best that was seen.

    Args:
        loss: of a batch, whatever a batch is.
        order: the batches of an epoch, by its number.
        evaluate: the loss on the samples held back.
        steps, seconds: the most of either.
        label: of the progress, and of the state in ``diary``, which is saved now and then and on Ctrl-C.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed, and the step that it came in is done.
        DataError: the loss of several batches is not a number.
    """
    diary = diary or Diary()
    for latent in latents:
        latent.parameter.requires_grad_(True)
    groups = [
        {"params": [each.parameter], "unit": settings.scale_rate if each.kind == "scale" else settings.rate * each.rate}
        for each in latents
    ]
    optimizer = torch.optim.Adam([{**group, "lr": group["unit"]} for group in groups], betas=(0.9, 0.99), fused=True)
    before = best = _evaluated(evaluate)
    kept, since, step, spent, bad = snapshot(latents), 0, 0, 0.0, 0
    if (saved := diary.kept.get(label)) is not None:
        restore(latents, saved["latents"])
        optimizer.load_state_dict(saved["optimizer"])
        kept, before, best = saved["kept"], saved["before"], saved["best"]
        since, step, spent = saved["since"], saved["step"], saved["spent"]
    every = max(10, steps // EVALUATIONS)
    epoch, queue = -1, list[Batch]()
    started, ended = monotonic() - spent, "all steps done"
    passed = 0

    def state() -> dict[str, Any]:
        return _state(latents, optimizer, kept, before, best, since, step, monotonic() - started)

    with interruptions() as pressed:
        while step < steps and not pressed:
            if not queue:
                epoch += 1
                queue = list(order(epoch))
                if passed + len(queue) <= step:  # epochs before the saved state
                    passed += len(queue)
                    queue = []
                    continue
                queue = queue[step - passed :]
                passed = step
            elapsed = monotonic() - started
            if elapsed > seconds:
                ended = "time was up"
                break
            share = max(step / steps, elapsed / seconds)
            factor = min(1.0, (step + 1) / max(WARM_UP * steps, 1)) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
            for group in optimizer.param_groups:
                group["lr"] = group["unit"] * factor
            optimizer.zero_grad(set_to_none=True)
            value = loss(queue.pop(0))
            if not value.requires_grad:
                ended = "nothing that is learned matters"
                break
            passed, step = passed + 1, step + 1
            if bool(torch.isfinite(value)):
                value.backward()
                _without_nan(latents)
                optimizer.step()
            else:
                bad += 1
                restore(latents, kept)
                if bad > TOLERATED:
                    raise DataError(f"{label}: the loss is not a number in {bad} batches; smaller steps may help")
            if step % every == 0 or step == steps:
                current = _evaluated(evaluate)
                since += 1
                if current < best:
                    best, kept, since = current, snapshot(latents), 0
                left = min(seconds - (monotonic() - started), (monotonic() - started) / step * (steps - step))
                say(f"{label}: step {step} of {steps}, loss {best:.4g} (was {before:.4g}), {minutes_left(left)}")
                if since >= PATIENCE:
                    ended = "no longer getting better"
                    break
            if diary.due:
                diary.save(label, state())
    if pressed:
        diary.save(label, state())
        raise KeyboardInterrupt
    restore(latents, kept)
    for latent in latents:
        latent.parameter.requires_grad_(False)
    return Outcome(before, best, step, ended)


def _state(latents: Sequence[Latent], optimizer: Any, kept: list[torch.Tensor], *numbers: float) -> dict[str, Any]:
    names = ("before", "best", "since", "step", "spent")
    parameters = {"latents": snapshot(latents), "kept": kept, "optimizer": optimizer.state_dict()}
    return parameters | dict(zip(names, numbers, strict=True))


def _evaluated(evaluate: Callable[[], float]) -> float:
    with torch.no_grad():
        value = evaluate()
    return value if math.isfinite(value) else math.inf


def _without_nan(latents: Sequence[Latent]) -> None:
    """Gradients that are not numbers (the root of zero) count as none."""
    for latent in latents:
        if latent.parameter.grad is not None:
            torch.nan_to_num_(latent.parameter.grad, nan=0.0, posinf=0.0, neginf=0.0)
