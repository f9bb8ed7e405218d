"""Hold a new model against the original. In: two models and samples. Out: a Comparison, all of it measured.

Quality of the outputs (reference.py), the user's metric, file size, load time and memory in a fresh process,
speed as an interleaved ratio, the kernels that ONNX Runtime really runs, and on request the damage per site.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxc.answers import class_scores
from onnxc.culprits.costs import kept_bytes, kept_seconds
from onnxc.culprits.local_damage import SiteDamage, site_damage
from onnxc.culprits.matching import matched
from onnxc.culprits.restoring import restorable
from onnxc.culprits.scales import Factors, units
from onnxc.culprits.smallest import Bisection, SmallestSet
from onnxc.data import Calibration, generate, index_limits
from onnxc.errors import DataError, ModelError
from onnxc.kernels import leftover_weights, operators
from onnxc.loading import load_cost
from onnxc.model import Model
from onnxc.naming import name_nodes
from onnxc.parts import Parts
from onnxc.quality import OutputError, Quality, floor_met, relative_drop
from onnxc.recipe import Budget
from onnxc.reference import ReferenceOutputs
from onnxc.samples.hooks import Evaluation
from onnxc.session import Options, Session, measure_ratio

if TYPE_CHECKING:
    from onnxc.runtime.timing import LoadCost, Ratio

__all__ = [
    "Comparison",
    "OutputError",
    "Quality",
    "ReferenceOutputs",
    "SiteDamage",
    "class_scores",
    "compare",
    "floor_met",
    "relative_drop",
    "site_damage",
]

_SPEED_SAMPLES = 16
_SITE_SAMPLES = 8


@dataclass
class Comparison(Quality):
    """Everything that was measured about two models; None for what was not asked for or cannot be had.

    Attributes:
        samples: how many the outputs were compared on.
        generated: whether those were generated; data: what they are.
        score_reference, score_new: the user's metric; drop: its relative loss, at least 0.
        size_reference, size_new: bytes on disk, external data included.
        ratio: how much faster the new model is.
        load_reference, load_new: seconds and peak bytes of creating a session in a fresh process.
        kernels_reference, kernels_new: operators of the graph that ONNX Runtime runs, with their number.
        leftover: weights that the new model unfolds again at every run, because nothing fused with them.
        sites: local damage, worst first, with what each would cost in float; unmatched: sites whose tensors have no
            counterpart in the new model.
        smallest: the fewest sites that would have to be in float.
    """

    samples: int = 0
    generated: bool = False
    data: str = ""
    score_reference: float | None = None
    score_new: float | None = None
    drop: float | None = None
    size_reference: int = 0
    size_new: int = 0
    ratio: Ratio | None = None
    load_reference: LoadCost | None = None
    load_new: LoadCost | None = None
    kernels_reference: Counter[str] = field(default_factory=Counter)
    kernels_new: Counter[str] = field(default_factory=Counter)
    leftover: list[str] = field(default_factory=list)
    sites: list[SiteDamage] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    smallest: SmallestSet | None = None


def compare(
    reference: Model | str | Path,
    new: Model | str | Path,
    calib: Any = None,
    *,
    eval: Evaluation | str | Callable[[Any], float] | None = None,
    options: Options = Options(),
    shapes: Mapping[str, Sequence[int]] | None = None,
    batch: int | None = None,
    seed: int = 0,
    speed: bool = True,
    load: bool = True,
    kernels: bool = True,
    sites: bool = False,
    bisect: bool = False,
    budget: Budget = Budget(),
    progress: Callable[[str], None] = lambda message: None,
) -> Comparison:
    """Measure ``new`` against ``reference``.

    Args:
        reference, new: paths are used as they are; a Model is written to a temporary file.
        calib: a Calibration, or whatever Calibration.open() takes; None generates inputs.
        eval: the user's metric, "FILE.py:FUNCTION" or a callable; called once per model.
        options: how both run.
        shapes, batch, seed: of generated inputs.
        speed, load, kernels, sites: what to measure besides the outputs.
        bisect: find the smallest set of sites to leave in float; budget: the quality floors that they are to reach.
        progress: called with what is being done.

    Raises:
        ModelError, DataError, HookError: one of them does not load or run.
    """
    with tempfile.TemporaryDirectory(prefix="onnxc-", ignore_cleanup_errors=True) as folder:
        old_path, old_model = _on_disk(reference, Path(folder, "reference.onnx"))
        new_path, new_model = _on_disk(new, Path(folder, "new.onnx"))
        old_session, new_session = Session(old_path, options), Session(new_path, options)
        samples = _samples(calib, old_model, old_session, shapes, batch, seed)
        evaluation = eval if isinstance(eval, Evaluation) or eval is None else Evaluation.open(eval)
        outputs = ReferenceOutputs(old_session, samples, class_scores(old_model), parts=Parts(old_model, options))
        quality = outputs.judge(new_session)
        result = Comparison(**{each.name: getattr(quality, each.name) for each in fields(Quality)})
        result.samples = len(outputs)
        result.generated, result.data = samples.generated, samples.description
        result.size_reference, result.size_new = old_model.source_bytes, new_model.source_bytes
        if evaluation is not None:
            result.score_reference = evaluation.reference(old_session)
            result.score_new = evaluation(new_session)
            result.drop = relative_drop(result.score_reference, result.score_new)
        if speed:
            result.ratio = measure_ratio(old_session, new_session, samples.take(_SPEED_SAMPLES))
        del old_session, new_session
        if load:
            result.load_reference, result.load_new = (
                load_cost(old_path, options),
                load_cost(new_path, options),
            )
        if kernels:
            result.kernels_reference = operators(Session(old_path, options, dump=True).optimized())
            optimized = Session(new_path, options, dump=True).optimized()
            result.kernels_new, result.leftover = operators(optimized), leftover_weights(optimized)
        if sites or bisect:
            name_nodes(old_model)
            few = samples.take(_SITE_SAMPLES)
            pairs, missing = matched(old_model, new_model)
            factors = units(old_model, new_model, pairs, few, options)
        if sites:
            progress("measuring every site")
            damages, result.unmatched = site_damage(old_model, new_model, few, factors, options=options)
            result.sites = _priced(damages, old_model, new_model, few[0], factors, options)
        if bisect:
            able = restorable(new_model, pairs, old_model)
            search = Bisection(
                new_model, able, samples, outputs, budget, options, factors, evaluation, result.score_reference
            )
            search.say = progress
            result.smallest = found = search.found(len(missing) + len(pairs) - len(able), speed=speed)
            if result.ratio is not None and found.ratio is not None:
                found.speed = result.ratio.median * found.ratio.median
    return result


def _priced(
    damages: list[SiteDamage],
    old: Model,
    new: Model,
    sample: Mapping[str, Any],
    factors: Factors,
    options: Options,
) -> list[SiteDamage]:
    """``damages`` with what each site would cost in float, as far as that can be told."""
    shown = {each.site for each in damages}
    pairs = restorable(new, [pair for pair in matched(old, new)[0] if pair.site in shown], old)
    sizes = kept_bytes(new, pairs, factors)
    try:
        seconds = kept_seconds(old, new, sample, options)
    except (ModelError, DataError):  # a graph that cannot be run under the profiler has no times
        seconds = {}
    return [
        replace(
            each,
            keep_bytes=sizes.get(each.site),
            keep_milliseconds=1e3 * seconds[each.site] if each.site in seconds and each.site in sizes else None,
        )
        for each in damages
    ]


def _on_disk(source: Model | str | Path, target: Path) -> tuple[Path, Model]:
    """The file of ``source`` and the model in it."""
    if isinstance(source, Model):
        source.save(target, external_data=False)
        return target, Model.load(target)
    return Path(source), Model.load(source)


def _samples(
    calib: Any,
    model: Model,
    session: Session,
    shapes: Mapping[str, Sequence[int]] | None,
    batch: int | None,
    seed: int,
) -> Calibration:
    """Whatever was given as data, checked against the model; generated inputs if nothing was."""
    if isinstance(calib, Calibration):
        return calib
    if calib is None:
        return generate(model, session, shapes=shapes, batch=batch, seed=seed)
    return Calibration.open(calib, session.inputs, limits=index_limits(model), optional=session.optional)
