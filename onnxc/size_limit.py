"""What a limit of size leaves to the weights. In: files of plans that were built. Out: the bytes that weights may take.

The limit is one of whole files. What a file holds besides its weights differs from plan to plan: int8 sites have scales
and Q and DQ, formats have nodes that unfold them. So the limit of the weights is drawn anew for every plan that is
looked at, and plans that were built are held against the limit with what their own files hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from onnxc.limits import limited_bytes
from onnxc.overheads import Overheads
from onnxc.predictions import stored_bytes
from onnxc.problem import Plan, Problem
from onnxc.weighing import Scales

TIGHT, EXACT = 0.99, 0.999  # of a limit is planned for: estimates are not exact; where plans are weighed


@dataclass
class SizeLimit:
    """Holds the problem's limit of the weights' bytes.

    Attributes:
        most: bytes that a file may have, None where nothing limits them.
        scales: weigh files of plans; overheads: what else they hold, learned from those that were built.
        others: by plan, what the file that was built holds besides its weights.
    """

    problem: Problem
    most: float | None
    scales: Scales
    overheads: Overheads = field(default_factory=Overheads)
    others: dict[object, float] = field(default_factory=dict)

    @property
    def counts(self) -> bool:
        """Whether there is a limit, and it was not given up."""
        return self.most is not None and not self.problem.free

    def expected(self, plan: Plan) -> int:
        """Bytes that the file of ``plan`` will take; of a large model of which nothing was built yet, its weights'."""
        return self.scales.file_bytes(plan) if self.scales.able else self.overheads.file_bytes(self.problem, plan)

    def learn(self, plan: Plan, size: int) -> float:
        """The file of ``plan`` takes ``size`` bytes; how many of them are not its weights'."""
        weights = stored_bytes(self.problem, plan.stored)
        self.overheads.learn(self.problem, plan, size)
        self.others[plan.key] = others = float(size - weights)
        if self.counts:
            seen = weights if self.most is not None and size <= self.most else 0  # what was seen to fit, fits
            self.draw(max(self.overheads.of(plan), others), seen)  # the next plan is like this one
        return others

    def draw(self, others: float, least: float = 0.0) -> None:
        """Leave to the weights what the limit does beside so many bytes of everything else, but ``least`` anyway."""
        assert self.most is not None
        share = EXACT if self.scales.able else TIGHT
        most = max(self.most * share - others, least, 1.0)
        self.problem.most_bytes = most
        self.problem.beside = {key: each - (self.most - most) for key, each in self.others.items()}

    def exceeded(self, plan: Plan) -> bool:
        """Whether the file of ``plan`` is larger than the limit allows: then the limit of the weights was drawn for
        it, and another plan is to be found.
        """
        if not self.counts:
            return False
        weights = stored_bytes(self.problem, plan.stored)
        if plan.key in self.others:
            self.draw(self.others[plan.key])
        elif self.scales.able:
            self.draw(self.scales.file_bytes(plan) - weights)
        elif self.overheads.seen:
            self.draw(self.overheads.of(plan))
        return limited_bytes(self.problem, plan) > (self.problem.most_bytes or math.inf)
