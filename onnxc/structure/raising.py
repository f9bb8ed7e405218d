"""A pass that was told what to do may need a newer opset than the model has. In: the passes and a model. Out: a model.

The opset is raised to what the told passes that have something to do there need, and no further; nobody else's wish
raises it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from onnxc.contract.candidates import Candidate
from onnxc.contract.context import Context
from onnxc.contract.fields import configured
from onnxc.contract.passes import ExactPass, LossyPass
from onnxc.data import Sample
from onnxc.model import Model
from onnxc.naming import name_nodes
from onnxc.registry import load_passes
from onnxc.session import Options

RAISING = "raise-opset"


def raised(
    passes: Iterable[tuple[LossyPass, bool]],
    model: Model,
    observed: Callable[[Model], Context],
    samples: Sequence[Sample],
    options: Options,
    notes: list[str],
) -> Model:
    """``model`` in the opset that told passes need, itself where that is none or cannot be.

    Args:
        passes: each with whether it was told what to do.
        observed: sites and statistics of a model.
        samples: inputs that a raised model must answer alike.
        notes: gets what was raised for whom, or why not.
    """
    newer = [each for each, told in passes if told and each.needed_opset() > model.opset]
    if not newer:
        return model
    context = replace(observed(model), told=True)
    acting = [each for each in newer if acts(each, context)]
    for version in sorted({each.needed_opset() for each in acting}, reverse=True):
        instance = configured(load_passes()[RAISING], RAISING, {"version": version, "gaining": ""})
        assert isinstance(instance, ExactPass)
        copy = model.copy()
        outcome = instance.run_checked(copy, samples, options)
        names = ", ".join(each.name for each in acting if each.needed_opset() <= version)
        notes += [f"{RAISING}: {note}" + (f", for {names}" if outcome.changed else "") for note in outcome.notes]
        if outcome.changed:
            name_nodes(copy)
            return copy
    return model


def acts(instance: LossyPass, context: Context) -> bool:
    """Whether a pass has anything to do in the model, its opset aside."""
    said = (answer for site in context.sites for answer in instance.propose(site, context))
    stored = (answer for weight in context.sites.weights for answer in instance.store(weight, context))
    return any(isinstance(answer, Candidate) for answers in (said, stored) for answer in answers)
