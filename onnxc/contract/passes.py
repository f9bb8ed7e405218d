"""The kinds of passes: what a pass author derives from. In: a model, or a context. Out: what was done, or offered.

An exact pass edits a model in place and says what it did; the frame checks that the outputs stayed equal.
A structural pass makes smaller graphs out of one, each of which is then compressed like any other.
A lossy pass looks at one site or weight at a time and proposes candidates: specifications with estimated damage and
bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from onnxc.contract.candidates import Candidate, Refusal
from onnxc.contract.context import Context
from onnxc.contract.fields import Between, Configurable
from onnxc.contract.rounding import Asked, Bias, Feedback
from onnxc.model import Model
from onnxc.session import Options

if TYPE_CHECKING:
    from onnxc.data import Sample
    from onnxc.sites import Site, Weight


@dataclass(frozen=True)
class Outcome:
    """What an exact pass did: how many places it changed, and sentences worth telling the user."""

    changed: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExactPass(Configurable, ABC):
    """A rewrite after which every output is equal to float rounding (rtol 1e-3, atol 1e-5)."""

    kind: ClassVar[str] = "exact"
    name: ClassVar[str]

    @abstractmethod
    def run(self, model: Model) -> Outcome:
        """Edit ``model`` in place."""

    def run_checked(
        self, model: Model, samples: Sequence[Sample], options: Options, original: Model | None = None
    ) -> Outcome:
        """``run`` for a pass that itself tries and measures on ``samples``; the frame calls this.

        Args:
            original: the user's model, which ``model`` equals so far, and which the result must not be slower than.
        """
        return self.run(model)


@dataclass(frozen=True)
class FinishingPass(Configurable, ABC):
    """An exact rewrite of what is about to be delivered, after everything is decided.

    Attributes:
        packs: what it writes is no initializer any more; not every target reads that.
        hurries: unasked it runs only where models are late to load, and nothing is trained afterwards.
    """

    kind: ClassVar[str] = "exact"
    name: ClassVar[str]
    packs: ClassVar[bool] = False
    hurries: ClassVar[bool] = False

    @abstractmethod
    def finish(self, model: Model, *, told: bool = False) -> Outcome:
        """Edit ``model`` in place; ``told``: it was asked for with fields, and acts whether or not it pays."""


@dataclass(frozen=True)
class TrainingPass(Configurable, ABC):
    """A pass that trains the chosen plan before it is measured; only where it is named, and for so many minutes."""

    kind: ClassVar[str] = "training"
    name: ClassVar[str]

    minutes: Annotated[float, Between(0, open_low=True)] = 10.0


@dataclass(frozen=True)
class Level:
    """A smaller form of a model, refitted.

    Attributes:
        model: a model of its own, with the inputs and outputs of the original.
        specification: what the report says of it, e.g. "48 % of the MACs of 19 convolutions cut".
        notes: sentences worth telling the user: what was refused, and why.
    """

    model: Model
    specification: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Offer:
    """A smaller form of a model that is not made yet.

    Attributes:
        saved: share of what all weights are worth that goes.
        cost: what its damage is estimated to cost, as a share of the same.
        make: makes it.
    """

    saved: float
    cost: float
    make: Callable[[], Level]


@dataclass(frozen=True)
class Offers:
    """What a structural pass could do for a plan.

    Attributes:
        found: least saved first.
        reason: why there are none, or no others; empty where that is not so.
        refusals: places that no offer touches, with the reason.
    """

    found: tuple[Offer, ...] = ()
    reason: str = ""
    refusals: tuple[Refusal, ...] = ()


@dataclass(frozen=True)
class StructuralPass(Configurable, ABC):
    """A pass that makes the graph or its weights smaller before anything is planned.

    Attributes:
        automatic: it runs also where no passes are named; its outputs stay equal, so that no level is judged.
        unasked: whether it is tried where nobody named it: it makes offers.
    """

    kind: ClassVar[str] = "structural"
    name: ClassVar[str]
    automatic: ClassVar[bool] = False
    unasked: ClassVar[bool] = False

    @abstractmethod
    def levels(self, context: Context) -> Iterable[Level]:
        """Smaller models, least cut first, each made from a copy of ``context.model``. Where the pass was told what
        to do, exactly that one; none where there is nothing to cut. The caller may stop at any of them.
        """

    def offers(self, context: Context) -> Offers:
        """Forms of ``context.model`` that may be worth planning, by ``context.stakes``."""
        return Offers()


@dataclass(frozen=True)
class LossyPass(Configurable, ABC):
    """A pass that changes numbers, one place at a time.

    Attributes:
        opset: lowest opset of the model that has the operators it writes.
    """

    kind: ClassVar[str] = "lossy"
    name: ClassVar[str]
    opset: ClassVar[int] = 7

    def needed_opset(self) -> int:
        """``opset``, or what the fields make of it."""
        return self.opset

    def asked(self) -> Asked:
        """What the fields say of how the codes of its weights are found."""
        return Asked()

    def propose(self, site: Site, context: Context) -> Iterable[Candidate | Refusal]:
        """Ways to compute ``site``, or why not."""
        return ()

    def store(self, weight: Weight, context: Context) -> Iterable[Candidate | Refusal]:
        """Ways to store ``weight``, or why not."""
        return ()


@dataclass(frozen=True)
class RoundingPass(LossyPass):
    """A lossy pass that turns weights into codes.

    Attributes:
        rounding: "gptq", on what meets a weight, or is assumed to; "nearest", as a baseline.
    """

    rounding: Literal["gptq", "nearest"] = "gptq"

    def asked(self) -> Asked:
        """The fields."""
        return Asked(self.rounding)


@dataclass(frozen=True)
class SolvingPass(RoundingPass):
    """A lossy pass whose weights can be solved in the order of the graph, on what samples become there.

    Attributes:
        feedback: "on": GPTQ solves a weight on what the compressed model feeds it; "off": on what the original does;
            "auto": on the original's first, then with feedback where fewer than 8 bits or a limit make it worth that.
        bias: "corrected": what a site with a bias of its own gets wrong on average is taken out of that bias; "kept":
            it is not; "auto": where weights are solved with feedback.
    """

    feedback: Feedback = "auto"
    bias: Bias = "auto"

    def contradiction(self) -> str:
        """Feedback is part of GPTQ."""
        return no_feedback(self.rounding) if self.feedback == "on" and self.rounding != "gptq" else ""

    def asked(self) -> Asked:
        """The fields."""
        return Asked(self.rounding, self.feedback, self.bias)


def no_feedback(rounding: str) -> str:
    """Why feedback=on does not go with a rounding."""
    return f"feedback=on solves weights by GPTQ: it takes no rounding={rounding}"
