"""Hold a new model against the original. In: two models and samples. Out: a Comparison, all of it measured.

Quality of the outputs (quality.py), the user's metric, file size, load time and memory in a fresh process,
speed as an interleaved ratio, the kernels that ONNX Runtime really runs, and on request the damage per site.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxc.answers import class_scores
from onnxc.data import Calibration, generate, index_limits
from onnxc.errors import ModelError
from onnxc.kernels import leftover_weights, operators
from onnxc.model import Constant, Model, Node, Tensor, Variable
from onnxc.quality import OutputError, Quality, ReferenceOutputs, floor_met, relative_drop
from onnxc.samples.hooks import Evaluation
from onnxc.session import Options, Session, load_cost, measure_ratio

if TYPE_CHECKING:
    from onnxc.data import Sample
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

_SITES = {  # operator -> inputs that hold a weight
    "MatMul": (0, 1),
    "Gemm": (0, 1),
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gather": (0,),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
}
_SPEED_SAMPLES = 16
_SITE_SAMPLES = 8
_SITES_AT_ONCE = 64  # captured in one run: bounds the memory


@dataclass(frozen=True)
class SiteDamage:
    """What happened to one site, given the inputs that it has in the original.

    Attributes:
        site, operator: the original's node.
        damage: sum |y - y'|^2 / sum |y|^2 over the samples.
    """

    site: str
    operator: str
    damage: float

    @property
    def sqnr_db(self) -> float:
        """The same as a signal to noise ratio, capped at 200 dB."""
        return 200.0 if self.damage <= 1e-20 else -10 * math.log10(self.damage)


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
        sites: local damage, worst first; unmatched: sites whose tensors have no counterpart in the new model.
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
) -> Comparison:
    """Measure ``new`` against ``reference``.

    Args:
        reference, new: paths are used as they are; a Model is written to a temporary file.
        calib: a Calibration, or whatever Calibration.open() takes; None generates inputs.
        eval: the user's metric, "FILE.py:FUNCTION" or a callable; called once per model.
        options: how both run.
        shapes, batch, seed: of generated inputs.
        speed, load, kernels, sites: what to measure besides the outputs.

    Raises:
        ModelError, DataError, HookError: one of them does not load or run.
    """
    with tempfile.TemporaryDirectory(prefix="onnxc-", ignore_cleanup_errors=True) as folder:
        old_path, old_model = _on_disk(reference, Path(folder, "reference.onnx"))
        new_path, new_model = _on_disk(new, Path(folder, "new.onnx"))
        old_session, new_session = Session(old_path, options), Session(new_path, options)
        samples = _samples(calib, old_model, old_session, shapes, batch, seed)
        evaluation = eval if isinstance(eval, Evaluation) or eval is None else Evaluation.open(eval)
        outputs = ReferenceOutputs(old_session, samples, class_scores(old_model))
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
        if sites:
            result.sites, result.unmatched = site_damage(
                old_model, new_model, samples.take(_SITE_SAMPLES), options=options
            )
    return result


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


def site_damage(
    reference: Model, new: Model, samples: Sequence[Sample], *, options: Options = Options()
) -> tuple[list[SiteDamage], list[str]]:
    """Local damage of every site of the main graph, worst first, and the sites without a counterpart.

    The new model is cut at the sites' input tensors, and every cut is fed with what the original has there:
    an error made elsewhere does not count. Sites are matched by the names of their input and output tensors.
    """
    old_names, new_names = _tensors(reference), _tensors(new)
    computed = {name for name, tensor in new_names.items() if tensor.inputs}
    wanted: list[tuple[Node, str, str]] = []
    unmatched = []
    for node in reference.graph.nodes:
        source = _site_input(node)
        if source is None:
            continue
        target = next((t.name for t in _results(node) if t.name in computed), None)
        known = source.name in new_names and source.name in old_names
        if target is None or not known:
            unmatched.append(_title(node))
        else:
            wanted.append((node, source.name, target))
    damages = []
    for start in range(0, len(wanted), _SITES_AT_ONCE):
        damages += _damage_of(reference, new, wanted[start : start + _SITES_AT_ONCE], samples, options)
    return sorted(damages, key=lambda each: -each.damage), unmatched


def _title(node: Node) -> str:
    return str(node.name or f"{node.op} -> {node.outputs[0].name}")


def _tensors(model: Model) -> dict[str, Tensor]:
    """The tensors of the main graph by name."""
    graph = model.graph
    found = {t.name: t for node in graph.nodes for t in (*node.inputs, *node.outputs) if t.name}
    return found | {t.name: t for t in (*graph.inputs, *graph.outputs)}


def _site_input(node: Node) -> Tensor | None:
    """The activation that the site reads; None when ``node`` is no site."""
    positions = _SITES.get(node.op, ()) if node.domain in (None, "", "ai.onnx") else ()
    if not any(i < len(node.inputs) and isinstance(node.inputs[i], Constant) for i in positions):
        return None
    variables = [t for t in node.inputs[:2] if isinstance(t, Variable) and t.name]
    return variables[0] if len(variables) == 1 else None


def _results(node: Node) -> list[Tensor]:
    """Where the result can be seen: the output, or what a bias or activation that follows makes of it."""
    found = [node.outputs[0]]
    while len(found) < 3 and len(found[-1].outputs) == 1:
        follower = found[-1].outputs[0]
        if follower.op not in ("Add", "Relu", "Clip") or not all(
            t is found[-1] or isinstance(t, Constant) for t in follower.inputs
        ):
            break
        found.append(follower.outputs[0])
    return found


def _damage_of(
    reference: Model,
    new: Model,
    wanted: list[tuple[Node, str, str]],
    samples: Sequence[Sample],
    options: Options,
) -> list[SiteDamage]:
    """Local damage of some sites: two sessions, one sample's tensors in memory at a time."""
    sources = list(dict.fromkeys(source for _, source, _ in wanted))
    targets = list(dict.fromkeys(target for _, _, target in wanted))
    graph_inputs = {t.name for t in reference.graph.inputs}
    shown = [name for name in dict.fromkeys(sources + targets) if name not in graph_inputs]
    whole = Session(_showing(reference, shown), options)
    parts, renamed = _cut(new, sources, targets)
    pieces = Session(parts, options)
    needed = {each.name for each in pieces.inputs}
    noise = dict.fromkeys(targets, 0.0)
    signal = dict.fromkeys(targets, 0.0)
    for sample in samples:
        values: dict[str, Any] = {**sample, **whole.run(sample, shown)}
        feeds = {renamed.get(name, name): values[name] for name in values}
        results = pieces.run({name: feeds[name] for name in feeds if name in needed}, targets)
        for name in targets:
            old, fresh = (np.asarray(each, np.float64).ravel() for each in (values[name], results[name]))
            if old.shape != fresh.shape:
                raise ModelError(f"tensor '{name}' has {fresh.size} elements instead of {old.size}")
            noise[name] += float(np.dot(old - fresh, old - fresh))
            signal[name] += float(np.dot(old, old))
    return [
        SiteDamage(_title(node), str(node.op), noise[target] / (signal[target] or 1.0)) for node, _, target in wanted
    ]


def _showing(model: Model, names: Sequence[str]) -> Model:
    """A copy whose outputs are the tensors ``names``."""
    copy = model.copy()
    found = _tensors(copy)
    copy.graph.outputs = [found[name] for name in names]
    return copy


def _cut(model: Model, sources: Sequence[str], targets: Sequence[str]) -> tuple[Model, dict[str, str]]:
    """A copy that computes ``targets`` from ``sources``, and its inputs' names that replace ``sources``."""
    copy = model.copy()
    found = _tensors(copy)
    renamed = {}
    for name in sources:
        tensor = found[name]
        if tensor.inputs:  # the graph's own inputs are cut already
            entry = Variable(copy.unique(f"{name}_given"), dtype=tensor.dtype or np.dtype(np.float32))
            copy.graph.inputs.append(entry)
            copy.redirect(tensor, entry)
            renamed[name] = entry.name
    copy.graph.outputs = [found[name] for name in targets]
    copy.tidy()
    return copy, renamed
