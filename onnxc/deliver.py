"""The last gate. In: trials, best first. Out: the file: never larger and never slower than the input."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from onnxc.errors import ModelError
from onnxc.file.storage import replace_file
from onnxc.judge import Judge
from onnxc.kernels import operators
from onnxc.limits import over
from onnxc.loading import LoadCost, load_costs, seconds_to_load
from onnxc.model import Model
from onnxc.price_file import Finding, PriceFile, sample_shapes
from onnxc.recipe import DEFAULT_LOAD_TIME, Budget
from onnxc.session import Ratio, Session, measure_ratio
from onnxc.trial import Trial

SLOWEST = 0.98
SAMPLES = 16
SECONDS = 2.0
ATTEMPTS = 3  # a busy machine must not decide: slower is believed when it is measured so often


@dataclass
class Delivery:
    """What is written, and what was measured of it.

    Attributes:
        trial: None when the input itself is delivered.
        size: bytes of the file, weights inside.
        ratio: time of the original over time of this model; None when the input itself is delivered.
        rejected: sentences about trials that were slower than the input, or not smaller.
        loads: what creating a session costs, of the original and of this model; None with ``ratio``.
    """

    trial: Trial | None
    size: int
    ratio: Ratio | None
    rejected: list[str] = field(default_factory=list)
    loads: tuple[LoadCost, LoadCost] | None = None


def speed_of(judge: Judge, path: Path, prices: PriceFile) -> Ratio:
    """The interleaved ratio of the original to the model at ``path``, from the price file where it is known."""
    feeds = judge.timed(SAMPLES)
    at = f" {sample_shapes(feeds[0])}" if judge.resized else ""
    key = f"ratio {digest(path)} {judge.options.threads} threads{at}"
    parts = ("", " low", " high", " original", " new")
    if all(f"{key}{part}" in prices.entries for part in parts):
        return Ratio(*(prices.entries[f"{key}{part}"] for part in parts))
    first = Session(judge.original.path or judge.original, judge.options)
    second = Session(path, judge.options)
    found: list[Ratio] = []
    while len(found) < ATTEMPTS and (not found or found[-1].median < SLOWEST):
        found.append(measure_ratio(first, second, feeds, seconds=SECONDS))
    ratio = found[-1]
    values = (ratio.median, ratio.low, ratio.high, ratio.seconds_a, ratio.seconds_b)
    prices.entries |= {f"{key}{part}": value for part, value in zip(parts, values, strict=True)}
    return ratio


def loads_of(judge: Judge, path: Path, prices: PriceFile) -> tuple[LoadCost, LoadCost]:
    """Load cost of the original and of the model at ``path``, from the price file where it is known."""
    key, parts = f"load {digest(path)} {judge.options.threads} threads", (" original", " new")
    if not all(f"{key}{part}" in prices.entries for part in parts):
        original = original_file(judge, path)
        found, rounds = load_costs(original, path, judge.options), 1
        while rounds < ATTEMPTS and loads_too_long(judge, *found):
            rounds += 1
            found = load_costs(original, path, judge.options, rounds=rounds)
        for part, cost in zip(parts, found, strict=True):
            prices.entries[f"{key}{part}"] = cost.seconds
            if cost.peak_bytes is not None:
                prices.entries[f"{key}{part} bytes"] = float(cost.peak_bytes)
    peaks = [prices.entries.get(f"{key}{part} bytes") for part in parts]
    first, second = (
        LoadCost(prices.entries[f"{key}{part}"], None if peak is None else int(peak))
        for part, peak in zip(parts, peaks, strict=True)
    )
    return first, second


def original_file(judge: Judge, path: Path) -> Path:
    """The file of the original; one beside ``path`` where it has none."""
    if judge.original.path is not None:
        return judge.original.path
    made = path.with_name("original.onnx")
    judge.original.save(made)
    return made


def time_taken(judge: Judge, made: Callable[[], Model], prices: PriceFile, *parts: str) -> tuple[float, float]:
    """Seconds that a model may take to load, and that it takes beside the original. It is ``made`` where the price file
    does not know the one that all ``parts`` tell from others.
    """

    def learn() -> Finding:
        with TemporaryDirectory(prefix="onnxc-", ignore_cleanup_errors=True) as folder:
            path = Path(folder, "new.onnx")
            made().save(path)
            before, after = seconds_to_load(original_file(judge, path), path, judge.options)
        return {"before": before, "after": after}

    found = prices.found("loading", *parts, repr(judge.late), learn=learn)
    return judge.time_to_load(found["before"]), found["after"]


def loads_too_long(judge: Judge, before: LoadCost, after: LoadCost) -> str | None:
    """The sentence about a model that loads longer than allowed, None if it does not."""
    if after.seconds <= judge.time_to_load(before.seconds):
        return None
    most = judge.budget.max_load_time or DEFAULT_LOAD_TIME
    places, ratio = 1 if after.seconds < 0.01 else 0, after.seconds / max(before.seconds, 1e-9)
    times = f"{after.seconds * 1e3:,.{places}f} ms to load, {ratio:.2f} times as long"
    return f"takes {times} as the input; at most {most:g} times are allowed (--max-load-time)"


def digest(path: Path) -> str:
    """Of the file at ``path`` and of everything beside it: its external data."""
    made = hashlib.sha256()
    for each in sorted(path.parent.iterdir()):
        with each.open("rb") as file:
            while chunk := file.read(1 << 22):
                made.update(chunk)
    return made.hexdigest()[:24]


def gate(
    judge: Judge,
    trials: Iterable[Trial],
    prices: PriceFile,
    receipt: Mapping[str, str],
    say: Callable[[str], None] = lambda message: None,
    *,
    told: bool = False,
    measured: bool = True,
) -> Delivery:
    """The first of ``trials`` that holds the floor, is smaller than the input, not slower, loads in time, and is within
    the limits of size and speed unless these are known to be out of reach; the one nearest to these limits where none
    is within them; else the input.

    A model in which ONNX Runtime runs the same kernels as in the original, or fewer, is not slower whatever a busy
    machine measures, unless nearly every round says so: where tiny weights unfold at load, they may lie in memory less
    well (0.85 times the speed for 250 matrices of 32 x 32). What was ``told`` is done whether or not it pays; a target
    that is not ``measured`` is not timed.
    """
    rejected: list[str] = []
    limit, found = judge.original.source_bytes, list[Delivery]()
    for trial in trials:
        if trial.missed is not None:
            rejected.append(trial.missed)
            continue
        trial.model.metadata.update(receipt)
        what = f"the plan with {len(trial.plan.compute)} sites in int8"
        with TemporaryDirectory(prefix="onnxc-", ignore_cleanup_errors=True) as folder:
            path = Path(folder, "new.onnx")
            size = trial.model.save(path)
            if size >= limit and not told:
                rejected.append(f"{what} takes {size:,} bytes, no fewer than the input")
                continue
            ratio = None
            if measured:
                say("measuring speed")
                ratio = speed_of(judge, path, prices)
            slower = ratio is not None and ratio.median < SLOWEST and not told
            if ratio is not None and slower and (ratio.high < SLOWEST or not same_kernels(judge, path)):
                rejected.append(f"{what} runs {ratio.median:.2f} times as fast as the input")
                continue
            loads = loads_of(judge, path, prices)
            judge.spare = judge.time_to_load(loads[0].seconds) - loads[1].seconds
            slow = loads_too_long(judge, *loads)
            if slow is not None:
                rejected.append(f"{what} {slow}")
                continue
        found.append(Delivery(trial, size, ratio, rejected, loads))
        if judge.out_of_reach or shortfall(judge.budget, found[-1], limit) <= 1:
            return found[-1]
    return min(
        found, key=lambda each: shortfall(judge.budget, each, limit), default=Delivery(None, limit, None, rejected)
    )


def shortfall(budget: Budget, delivery: Delivery, original_bytes: int) -> float:
    """How many times over a limit of size or speed a delivery is; 1 within them."""
    most = budget.size * original_bytes if budget.size is not None else None
    slowness = 1 / delivery.ratio.median if delivery.ratio is not None else 0.0
    return over((delivery.size, most), (slowness, 1 / budget.speed if budget.speed is not None else None))


def same_kernels(judge: Judge, path: Path) -> bool:
    """Whether the model at ``path`` runs no kernel more than the original."""
    before = operators(Session(judge.original.path or judge.original, judge.options, dump=True).optimized())
    return not operators(Session(path, judge.options, dump=True).optimized()) - before


def write(
    original: Model, delivery: Delivery, output: str | Path | None, *, external_data: bool
) -> onnx.ModelProto | None:
    """Save what is delivered, or give it back as a message where no ``output`` is named.

    A delivery of the input itself is a copy of its bytes, unless its weights lie in files of their own.
    """
    model = original if delivery.trial is None else delivery.trial.model
    if output is None:
        return model.proto(named=False)
    source = original.path
    if delivery.trial is None and source is not None and source.stat().st_size == original.source_bytes:
        content = source.read_bytes()
        try:
            replace_file(Path(output), lambda file: file.writelines([content]))
        except OSError as error:
            raise ModelError(f"{output} cannot be written: {error.strerror or error}") from error
    else:
        model.save(Path(output), external_data=external_data)
    return None
