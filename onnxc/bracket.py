"""The noise to aim at next, between plans that hold every floor and plans that miss one. In: trials. Out: a noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxc.trial import Trial

HEADROOM = 0.93  # of the allowed noise: predictions are not exact
FARTHER, FEWER, FEWEST, LESS = 3.0, 0.75, 0.25, 0.9  # steps of the noise aimed at
FIRST = 4.0  # where a score decides, it mostly does before the SQNR floor: the first aim is so much lower
SURPRISED = 0.5  # exponent of how many times louder a plan was than predicted, by which the next one is planned quieter
LOST = 0.4  # noise over signal that says no more than that it is too much
DOUBTFUL = 3.0  # times the allowed drop, up to which a first miss may be bad luck
DOUBT = 1.7  # times the noise of a plan whose score fell too far by little: the next one tells whether by chance


@dataclass
class Bracket:
    """Closes in on the noisiest plan that holds every floor.

    Attributes:
        allowed: noise over signal that the SQNR floor allows.
        aim: the noise of the next plan.
        held: noise that is known to be allowed; highest: that is known to be too much, by another floor.
        halving: only what is between the two is tried.
        unlucky: trials whose score fell too far, perhaps by chance; idle: plans in a row that led to nothing.
    """

    allowed: float
    aim: float
    held: float = 0.0
    halving: bool = False
    highest: float = math.inf
    unlucky: list[Trial] = field(default_factory=list)
    idle: int = 0

    @classmethod
    def of(cls, allowed: float, held: float, *, scored: bool) -> Bracket:
        """Where a search begins: ``scored`` where a score decides too."""
        return cls(allowed, allowed * HEADROOM / (FIRST if scored else 1.0), held, halving=held > 0)

    def passed_over(self, *, found: bool) -> bool:
        """Aim lower, as the plan aimed at is not worth a trial; False where there is nothing more to try. ``found``:
        some plan holds.
        """
        louder = [each.noise for each in self.unlucky if each.noise > self.held]
        closed = found and self.held > 0 and self.idle
        if closed and louder and math.isinf(self.highest):  # a doubt that nothing settled
            self.highest = min(louder)
            self.aim = math.sqrt(self.held * self.highest)
            return True
        if closed:
            return False
        self.idle, self.aim = self.idle + 1, self.aim * FEWER
        return True

    def hit(self, noise: float, *, gained: bool) -> bool:
        """Aim higher after a plan of so much noise that holds; False where two in a row gained nothing."""
        self.idle = 0 if gained else self.idle + 1
        self.held = max(self.held, noise)
        if self.idle > 1:
            return False
        further = max(self.held, self.aim / FARTHER)
        limited = math.isfinite(self.highest)
        reached = math.sqrt(further * self.highest) if limited else max(further, self.aim) * FARTHER
        self.aim = min(self.allowed * HEADROOM, reached)
        return True

    def miss(self, trial: Trial, predicted: float) -> None:
        """Aim lower after a plan that misses a floor, or higher where that may be bad luck."""
        if trial.noise > self.allowed:  # calibration brings the next plan down, but not where all signal is lost
            surprise = trial.noise / max(predicted, 1e-12)  # what looks best is what is wrongly predicted, again
            lost = trial.noise >= max(self.allowed, LOST)
            self.aim *= FEWEST if lost else min(LESS, max(surprise, 1.0) ** -SURPRISED)
        elif not self.halving and by_luck(trial, self.unlucky) and math.isinf(self.highest):  # a noisier plan tells
            self.unlucky.append(trial)
            doubt = DOUBT if len(self.unlucky) == 1 else DOUBT**0.25
            self.aim = min(self.allowed * HEADROOM, trial.noise * doubt)
        else:  # the noise is as wanted, another floor is missed: by little, and it may turn on one item
            louder = [each.noise for each in self.unlucky if each.noise > self.held]
            self.highest = min([self.highest, trial.noise, *louder])
            step = float(np.clip(trial.excess**-0.5, FEWEST, FEWER))
            self.aim = math.sqrt(self.held * self.highest) if self.held else min(self.aim, self.highest) * step


def by_luck(trial: Trial, before: Sequence[Trial]) -> bool:
    """Whether a score that fell too far by little may be bad luck: it is the first one, or fell no further than that of
    a plan ``before`` it with less noise.
    """
    if trial.score is None or trial.excess > DOUBTFUL:
        return False
    return not before or (trial.noise > before[-1].noise and trial.excess <= before[-1].excess)
