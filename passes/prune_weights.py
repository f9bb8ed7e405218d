"""Weights that matter least become zero, and those that survive make up for them: half the entries, the same file size
until it is stored sparse, packed or quantized.

    W, b    becomes    W' with zeros, b', so that W' x' + b' is nearest to W x + b on the calibration data

x' is what the model pruned so far makes of the data, x what the original made: each stage repairs what the ones before
it lost. In: a model. Out: the pruned model, or one for every fraction that is tried.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np

from onnxc.contract.context import Context
from onnxc.contract.fields import Between, Readable
from onnxc.contract.passes import FinishingPass, Level, LossyPass, StructuralPass
from onnxc.data import Sample
from onnxc.errors import RecipeError
from onnxc.pruning.jobs import Amount, Job, model_shares, pruned
from onnxc.pruning.masks import Importance, Pattern
from onnxc.registry import load_passes

MOST_SAMPLES = 256  # whose gradients are taken
ALONE = "zeros alone save no byte: name a pass beside it that stores them in fewer, such as store-int8 or fold-sparse"
FRACTIONS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # tried where nothing was told


@dataclass(frozen=True)
class PruneWeights(StructuralPass):
    """Prune the weights of MatMul, Gemm, Conv, ConvTranspose and recurrent operators.

    1. ``threshold``: every weight below it in magnitude, in embeddings too; ``refit`` asks for more than that.
    2. ``fraction``: of every weight (``scope`` site), or of all together (model), the least important by
       ``importance``; a ``pattern`` of blocks such as 4x1 (inputs x outputs) goes as a whole.
    3. ``pattern`` N:M: of M neighbouring inputs of an output at most N survive.
    4. ``importance`` gradient: by what a zero does to the model's outputs to first order; needs data and PyTorch.
    5. By the second order the survivors, and a constant bias, are solved again; otherwise where ``refit`` says so.
       Where no input is observed (no data, loops, recurrent operators), magnitude decides and nothing is solved.
    6. It must not act on biases, normalization or other vectors; zeros that were there stay.
    """

    name: ClassVar[str] = "prune-weights"
    threshold: Annotated[float, Between(0, open_low=True)] = 0.0
    fraction: Annotated[float, Between(0, 1, open_low=True, open_high=True)] = 0.0
    scope: Literal["site", "model"] = "site"
    pattern: Annotated[str, Readable(Pattern.parse)] = ""
    importance: Importance = "second-order"
    refit: bool = False

    def levels(self, context: Context) -> Iterable[Level]:
        """The model as told, or pruned more and more."""
        pattern = Pattern.parse(self.pattern)
        found = [Job.of(weight, context, embeddings=self.threshold > 0) for weight in context.sites.weights]
        jobs = [job for job in found if job is not None]
        if self.importance == "gradient" and not self.threshold:
            some = gradient_samples(self.name, context)
            from onnxc.training.importance import first_order

            effects = first_order(context.model, some, seed=context.recipe.seed, threads=context.options.threads)
            jobs = [job.judged_by(effects, context.model) for job in jobs]
        for fraction in (self.fraction,) if context.told else FRACTIONS:
            if jobs:
                amount = Amount(self.threshold, fraction, pattern, self.importance, self.refit)
                yield self.level(context, jobs, amount)

    def level(self, context: Context, jobs: list[Job], amount: Amount) -> Level:
        """The model with ``amount`` of every job, or of all together, gone."""
        shares = dict.fromkeys((job.weight.name for job in jobs), amount.fraction)
        if self.scope == "model" and amount.fraction:
            shares = model_shares(context, jobs, amount)
        model, solved = pruned(context, jobs, amount, shares)
        tensors = {t.name: t for graph in model.graphs() for t in graph.weights}
        zeros = sum(job.weight.elements - int(np.count_nonzero(tensors[job.weight.name].values)) for job in jobs)
        total = sum(job.weight.elements for job in jobs)
        blind = f"{len(jobs) - solved} of {len(jobs)} weights pruned by magnitude alone: their inputs are not observed"
        notes = [blind] if amount.solves and solved < len(jobs) else []
        notes += [] if context.told or stores(context) else [ALONE]
        text = f"{zeros / total:.1%} of the {total:,} entries of {len(jobs)} weights are zero"
        return Level(model, text, tuple(notes))

    def contradiction(self) -> str:
        """No amount, more than one, or fields that the amount leaves nothing to say."""
        kept = Pattern.parse(self.pattern).of > 0
        if sum(map(bool, (self.threshold, self.fraction, kept))) != 1:
            return "say how much, by one of threshold, fraction and an N:M pattern"
        if self.threshold and (self.pattern or self.scope != "site" or self.importance != "second-order"):
            return "threshold says which weights go: it takes no scope, pattern or importance"
        return "scope=model shares out a fraction: an N:M pattern has none" if kept and self.scope == "model" else ""


def stores(context: Context) -> bool:
    """Whether another pass that was named may store zeros in fewer bytes."""
    known = load_passes()
    named = [known[request.name] for request in context.recipe.passes or () if request.name in known]
    return any(issubclass(kind, LossyPass) or (issubclass(kind, FinishingPass) and kind.packs) for kind in named)


def gradient_samples(name: str, context: Context) -> list[Sample]:
    """The samples whose gradients a pass takes.

    Raises:
        RecipeError: there is no data. MissingExtraError: PyTorch is not installed.
    """
    import onnxc.training  # noqa: F401 - says that torch is missing

    if context.samples is None or context.samples.generated:
        raise RecipeError(f"{name}:importance=gradient needs calibration data: give it with --calib PATH")
    return list(context.samples.take(min(len(context.samples), MOST_SAMPLES)))
