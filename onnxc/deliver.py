"""The last gate. In: trials, best first. Out: the model that is written: never larger, never slower than the input."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from onnxc.cost import PriceFile
from onnxc.data import Calibration
from onnxc.judge import Judge
from onnxc.model import Model
from onnxc.search import Trial
from onnxc.session import Session, measure_ratio
from onnxc.timing import Ratio

SLOWEST = 0.98
SAMPLES = 16
SECONDS = 3.0


@dataclass
class Delivery:
    """What is written, and what was measured of it.

    Attributes:
        trial: None when the input itself is delivered.
        data: the bytes of the file; None: the input's own.
        ratio: time of the original over time of this model.
        rejected: sentences about trials that were smaller but slower, or not smaller.
    """

    trial: Trial | None
    data: bytes | None
    ratio: Ratio | None
    rejected: list[str]


def speed_of(judge: Judge, data: bytes, samples: Calibration, prices: PriceFile) -> Ratio:
    """The interleaved ratio of the original to the model in ``data``, from the price file where it is known."""
    key = "ratio " + hashlib.sha256(data).hexdigest()[:24] + f" {judge.options.threads} threads"
    if key in prices.entries:
        return Ratio(*(prices.entries[f"{key}{part}"] for part in ("", " low", " high", " a", " b")))
    source = judge.original.path or judge.original
    feeds = samples.take(min(SAMPLES, len(samples)))
    ratio = measure_ratio(
        Session(source, judge.options), Session(data, judge.options), feeds, seconds=SECONDS, decide=SLOWEST
    )
    for part, value in zip(
        ("", " low", " high", " a", " b"),
        (ratio.median, ratio.low, ratio.high, ratio.seconds_a, ratio.seconds_b),
        strict=True,
    ):
        prices.entries[f"{key}{part}"] = value
    return ratio


def gate(judge: Judge, trials: list[Trial], samples: Calibration, prices: PriceFile, opening: str) -> Delivery:
    """The first of ``trials`` that is smaller than the input and not slower; the input itself if none is."""
    rejected: list[str] = []
    for trial in trials:
        if trial.missed is not None:
            continue
        model: Model = trial.model
        data = model.serialized()
        if len(data) > judge.original.source_bytes:
            rejected.append(f"{opening}: {len(data):,} bytes, larger than the input")
            continue
        ratio = speed_of(judge, data, samples, prices)
        if ratio.median < SLOWEST:
            rejected.append(f"a plan with {len(trial.plan.compute)} int8 sites was {ratio.median:.2f} times as fast")
            continue
        return Delivery(trial, data, ratio, rejected)
    return Delivery(None, None, None, rejected)
