"""The score of a model, and how sure it is. In: a judge, a model, the one to compare it with. Out: figures.

A judge is "models:NAME" (the test items of models/), "zoo:FILE:NAME" (those of a zoo, tasks.py), "hook:FILE:FUNCTION"
(yours), or "" where there is none. Scores are the higher the better: an error rate is turned into 1 - rate. The
interval is that of the difference to the other model on the same items, from 2,000 resamples of the items.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from measure import Sample, open_session
from tasks import MODELS, module

RESAMPLES = 2000


def judged(judge: str, model: Path, other: Path) -> dict[str, Any]:
    """``score``, and ``interval`` (2.5th and 97.5th percentile of score - other's score) where items are known."""
    kind, _, rest = judge.partition(":")
    file, _, name = rest.rpartition(":")
    if kind == "models":
        return of_models(name, model, other)
    if kind == "zoo":
        return of_zoo(Path(file), name, model, other)
    if kind == "hook":
        return {"score": float(getattr(module(Path(file)), name)(open_session(model))), "interval": None}
    return {"score": None, "interval": None}


def of_models(name: str, model: Path, other: Path) -> dict[str, Any]:
    """Share of right answers on the test items."""
    evaluate = module(MODELS / "evaluate.py")
    inputs, truth = evaluate.items(name, "test")
    batch = evaluate.TASKS[name].batch
    right, others = (
        evaluate.answers(evaluate.open_session(path), inputs, batch)[0] == truth for path in (model, other)
    )
    drawn = np.random.default_rng(0).integers(0, len(truth), (RESAMPLES, len(truth)))
    differences = (right.astype(float) - others)[drawn].mean(axis=1)
    return {"score": float(right.mean()), "interval": [float(x) for x in np.percentile(differences, [2.5, 97.5])]}


def of_zoo(file: Path, name: str, model: Path, other: Path) -> dict[str, Any]:
    """What the zoo's own judge says of its test items."""
    found = module(file).score(name, str(model), part="test", against=str(other))
    value, interval = found["value"], found.get("ci95")
    if not found["higher_is_better"]:
        value, interval = 1 - value, interval and [-interval[1], -interval[0]]
    return {"score": float(value), "interval": interval}


def decibels(model: Path, other: Path, samples: Iterable[Sample]) -> float | None:
    """Signal to noise ratio of the worst float output against the other model's, pooled over samples; at most 200.

    None where there is no float output. Entries that are not finite count as zero, as they score.
    """
    sessions = open_session(model), open_session(other)
    names = [each.name for each in sessions[1].get_outputs() if each.type == "tensor(float)"]
    if not names:
        return None
    noise, signal = np.zeros(len(names)), np.zeros(len(names))
    for sample in samples:
        new, old = (each.run(names, sample) for each in sessions)
        for index, (one, two) in enumerate(zip(new, old, strict=True)):
            a, b = (np.nan_to_num(np.asarray(x, np.float64), posinf=0.0, neginf=0.0) for x in (one, two))
            noise[index] += np.square(a - b).sum()
            signal[index] += np.square(b).sum()
    ratios = np.where(noise > 0, signal, 1.0) / np.where(noise > 0, noise, 1e-20)
    return float(np.clip(10 * np.log10(np.maximum(ratios, 1e-20)), -200, 200).min())
