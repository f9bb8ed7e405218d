"""Which answers change on the items of the user's score. In: sessions, while a hook runs them. Out: changed, judged.

A score says what was lost on balance. How many answers are others says how far it may turn out otherwise on other
items, and the hook shows them: it runs the model on its items, and what it feeds and gets is overheard. Answers to the
same inputs are compared, in whatever order they were asked for; a hook that feeds nothing twice alike tells nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnxc.session import Session

MOST_BYTES = 1 << 26  # of answers of one model that are kept: where every pixel is one, the first ones tell enough

Answers = dict[bytes, dict[str, np.ndarray]]
"""What was fed, as a digest -> output -> its answers."""


class Overheard:
    """The answers of the original to what a hook feeds it.

    Args:
        axes: output name -> axis of its class scores, None where its entries are the answers.
    """

    def __init__(self, axes: Mapping[str, int | None]) -> None:
        self.axes = dict(axes)
        self.original: Answers = {}

    @contextlib.contextmanager
    def listening(self, session: Session) -> Iterator[Answers]:
        """Inside, what ``session`` answers to run() is noted."""
        heard, run = Answers(), session.raw.run
        outputs, held = [each.name for each in session.outputs], 0

        def overheard(*given: Any, **named: Any) -> Any:
            nonlocal held
            values = run(*given, **named)
            names, feeds = (*given, *(named.get(each) for each in ("output_names", "input_feed")[len(given) :]))[:2]
            with contextlib.suppress(Exception):  # it is the hook's call: what cannot be told apart is left out
                shown = dict(zip(names or outputs, values, strict=True))
                told = {name: answers(shown[name], axis) for name, axis in self.axes.items() if name in shown}
                held += sum(each.nbytes for each in told.values())
                if held <= MOST_BYTES:
                    heard[digest(feeds)] = told
            return values

        if self.axes:
            session.raw.run = overheard
        try:
            yield heard
        finally:
            vars(session.raw).pop("run", None)

    def changed(self, heard: Answers) -> tuple[int, int]:
        """How many answers are not the original's, of how many; of the output with the larger share."""
        totals = dict.fromkeys(self.axes, (0, 0))
        for fed in self.original.keys() & heard.keys():
            for name, old in self.original[fed].items():
                new = heard[fed].get(name)
                if new is not None and new.shape == old.shape:
                    changed, judged = totals[name]
                    totals[name] = changed + int((old != new).sum()), judged + old.size
        return max(totals.values(), key=lambda each: each[0] / max(each[1], 1), default=(0, 0))


def digest(feeds: Mapping[str, Any]) -> bytes:
    """What tells inputs from others."""
    found = hashlib.blake2b(digest_size=16)
    for name in sorted(feeds):
        array = np.ascontiguousarray(feeds[name])
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(repr(array.tolist()).encode() if array.dtype.hasobject else array.data)
    return found.digest()


def answers(value: Any, axis: int | None) -> np.ndarray:
    """The answers in an output: the largest along ``axis``, or all entries."""
    array = np.asarray(value)
    return array if axis is None else array.argmax(axis=axis).astype(np.min_scalar_type(array.shape[axis]))
