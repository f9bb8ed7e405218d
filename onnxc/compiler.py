"""The walk through the compiler. In: a model and what the user asked for. Out: a Report, and the file.

    load      model.py       one graph, weights mapped from disk, nothing of the file lost
    simplify  passes/        exact rewrites; they must pay too
    find      sites.py       weights and sites
    observe   observe.py     one streamed run over the calibration data
    propose   passes/        candidates: specifications with their activations and bytes
    price     cost.py        measured seconds per site and mode
    plan      planner.py     compute per site, storage per weight, under the limits
    rewrite   rewrite.py     the chosen candidates, applied to a copy
    validate  quality.py     against the original; below the floor: plan again with a higher price of noise
    save      deliver.py     never larger, never slower; atomically
    report    report.py      what was done, what was refused and why
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from onnxc.cost import PriceFile
from onnxc.data import Calibration, generate, index_limits
from onnxc.deliver import Delivery, gate

from onnxc.hooks import Evaluation
from onnxc.judge import Judge
from onnxc.model import Model
from onnxc.observe import Observations, observe
from onnxc.price import priced
from onnxc.propose import CodeBook, Proposals, collect, passes_of
from onnxc.recipe import Recipe
from onnxc.report import Report
from onnxc.rewrite import Context
from onnxc.search import Trial, search
from onnxc.sensitivity import Noise, measure
from onnxc.session import Options, Session
from onnxc.sites import Sites, find, name_nodes
from onnxc.targets import Target, target

Progress = Callable[[str], None]
PROBES = 4  # samples for the noise of single roundings


@dataclass
class Request:
    """One call of optimize(), with everything opened and checked."""

    original: Model
    recipe: Recipe
    options: Options
    samples: Calibration
    judge: Judge
    prices: PriceFile
    say: Progress


def observed(request: Request, model: Model, found: Sites, where: Target) -> Observations:
    """Ranges and rows of everything that a static candidate could quantize; nothing on generated inputs."""
    if request.samples.generated:
        return Observations()
    makers = {t.name: t for node in model.graph.nodes for t in node.outputs}
    inputs = {t.name: t for t in model.graph.inputs}
    sites = [s for s in found if s.graph is model.graph and s.kind in ("linear", "convolution", "joint")]
    wanted = [t for s in sites for t in (*s.inputs, s.result) if t.name in makers or t.name in inputs]
    floats = [t for t in wanted if t.dtype is None or str(t.dtype) == "float32"]
    return observe(model, request.samples, len(request.samples), floats, sites, request.options)


def plan_and_judge(
    request: Request, context: Context, proposals: Proposals, codes: CodeBook
) -> tuple[list[Trial], Noise]:
    """Trials, best first: the searched plan, then storage alone, should the first turn out slower than the input."""
    prices = priced(context, proposals, codes, request.samples, request.options, request.prices)
    problem = proposals.problem(context, prices)
    judge, model = request.judge, context.model

    def sensitivities() -> Noise:
        activations = {
            (a.tensor, a.dynamic): a
            for found in proposals.compute.values()
            for c in found
            for a in (*c.reads, *((c.writes,) if c.writes else ()))
            if a.dynamic or a.tensor in context.observations.ranges
        }
        main = {t.name for node in model.graph.nodes for t in (*node.inputs, *node.outputs)}
        weights = {w.name for w in context.sites.weights if w.name in main and w.name in proposals.storage}
        weights |= {s.weight.name for s in context.sites if s.weight and s.name in proposals.compute}
        return measure(
            model,
            [a for a in activations.values() if a.tensor in main],
            codes.of(weights & main),
            request.samples.take(min(PROBES, len(request.samples))),
            request.options,
        )

    allowed = 10 ** (-judge.lowest_sqnr / 10)
    best, tried = search(
        problem, lambda plan: judge.trial(model, plan, codes), sensitivities, allowed, say=request.say
    )
    return [best, *reversed([t for t in tried if t is not best])], problem.noise
