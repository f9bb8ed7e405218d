"""The last gate. In: trials, best first. Out: the file: never larger and never slower than the input."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from onnxc.cost import PriceFile
from onnxc.errors import ModelError
from onnxc.judge import Judge
from onnxc.model import Model
from onnxc.search import Trial
from onnxc.session import Session, measure_ratio
from onnxc.storage import replace_file
from onnxc.timing import Ratio

SLOWEST = 0.98
SAMPLES = 16
SECONDS = 3.0


@dataclass
class Delivery:
    """What is written, and what was measured of it.

    Attributes:
        trial: None when the input itself is delivered.
        size: bytes of the file, weights inside.
        ratio: time of the original over time of this model; None when the input itself is delivered.
        rejected: sentences about trials that were slower than the input, or not smaller.
    """

    trial: Trial | None
    size: int
    ratio: Ratio | None
    rejected: list[str] = field(default_factory=list)


def speed_of(judge: Judge, model: Model, prices: PriceFile) -> Ratio:
    """The interleaved ratio of the original to ``model``, from the price file where it is known."""
    key = f"ratio {hashlib.sha256(model.serialized()).hexdigest()[:24]} {judge.options.threads} threads"
    parts = ("", " low", " high", " original", " new")
    if all(f"{key}{part}" in prices.entries for part in parts):
        return Ratio(*(prices.entries[f"{key}{part}"] for part in parts))
    first = Session(judge.original.path or judge.original, judge.options)
    second = Session(model, judge.options)
    feeds = judge.samples.take(min(SAMPLES, len(judge.samples)))
    for _ in range(2):  # a busy machine must not decide: slower is believed when it is measured twice
        ratio = measure_ratio(first, second, feeds, seconds=SECONDS)
        if ratio.median >= SLOWEST:
            break
    values = (ratio.median, ratio.low, ratio.high, ratio.seconds_a, ratio.seconds_b)
    prices.entries |= {f"{key}{part}": value for part, value in zip(parts, values, strict=True)}
    return ratio


def gate(judge: Judge, trials: Iterable[Trial], prices: PriceFile, receipt: Mapping[str, str]) -> Delivery:
    """The first of ``trials`` that holds the floor, is smaller than the input and not slower; else the input itself."""
    rejected: list[str] = []
    limit = judge.original.source_bytes
    for trial in trials:
        if trial.missed is not None:
            rejected.append(trial.missed)
            continue
        trial.model.metadata.update(receipt)
        size = len(trial.model.serialized())
        what = f"the plan with {len(trial.plan.compute)} sites in int8"
        if size >= limit:
            rejected.append(f"{what} takes {size:,} bytes, no fewer than the input")
            continue
        ratio = speed_of(judge, trial.model, prices)
        if ratio.median >= SLOWEST:
            return Delivery(trial, size, ratio, rejected)
        rejected.append(f"{what} runs {ratio.median:.2f} times as fast as the input")
    return Delivery(None, limit, None, rejected)


def write(
    original: Model, delivery: Delivery, output: str | Path | None, *, external_data: bool
) -> onnx.ModelProto | None:
    """Save what is delivered, or give it back as a message where no ``output`` is named.

    A delivery of the input itself is a copy of its bytes, unless its weights lie in files of their own.
    """
    model = original if delivery.trial is None else delivery.trial.model
    if output is None:
        return model.proto()
    source = original.path
    if delivery.trial is None and source is not None and source.stat().st_size == original.source_bytes:
        content = source.read_bytes()
        try:
            replace_file(Path(output), lambda file: file.write(content) and None)
        except OSError as error:
            raise ModelError(f"{output} cannot be written: {error.strerror or error}") from error
    else:
        model.save(Path(output), external_data=external_data)
    return None
