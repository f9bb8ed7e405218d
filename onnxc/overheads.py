"""What a file holds besides its weights. In: plans that were built, and their bytes. Out: the bytes of other plans.

Q and DQ, scales, tables, and the chains of nodes that unfold codes, one for all weights of a format: each kind is
counted in a plan, and what one takes is learned from every file that was built.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from onnxc.codes.formats import PLANES, Format, is_small, parse_format
from onnxc.predictions import stored_bytes
from onnxc.problem import Plan, Problem

# What one of each takes before anything is known, in bytes: a static activation, a dynamic one, an int8 site; a format
# of one word per code, of two, in blocks, of codebooks, along a trellis; one more weight in any of them. (Means of 38
# files of two models.) Then how far that may be off, and how far apart equal counts may be.
ASSUMED = np.array([500.0, 400.0, 100.0, 750.0, 1100.0, 750.0, 600.0, 1500.0, 80.0])
WORDS, PLANE, BLOCK, BOOK, PATH = range(3, 8)
DOUBT, SPREAD = 0.5, 120.0
RECENT = 0.8  # what a plan counts beside the one after it: the next one is like the last


def counts(plan: Plan) -> np.ndarray:
    """How many of each kind ASSUMED names are in a plan."""
    activations = {
        (a.tensor, a.dynamic) for c in plan.compute.values() for a in (*c.reads, *((c.writes,) if c.writes else ()))
    }
    dynamic = sum(each for _, each in activations)
    small = [parse_format(name) for name in plan.stored.values() if is_small(name)]
    formats = set(small)
    chains = [sum(chain_of(each) == kind for each in formats) for kind in (WORDS, PLANE, BLOCK, BOOK, PATH)]
    kinds = [len(activations) - dynamic, dynamic, len(plan.compute), *chains]
    return np.array([*kinds, len(small) - len(formats)], np.float64)


def chain_of(chosen: Format) -> int:
    """The place in ASSUMED of the nodes that unfold a format."""
    if chosen.dimension or chosen.block or chosen.trellis:
        return BOOK if chosen.dimension else BLOCK if chosen.block else PATH
    return PLANE if chosen.levels in PLANES else WORDS


def chain_bytes(chosen: Format) -> float:
    """About what the nodes that unfold all weights of a format take."""
    return float(ASSUMED[chain_of(chosen)])


@dataclass
class Overheads:
    """Learns from plans, the last ones most; least squares around what is assumed."""

    seen: list[tuple[np.ndarray, float]] = field(default_factory=list)

    def learn(self, problem: Problem, plan: Plan, size: int) -> None:
        """The file of ``plan`` takes ``size`` bytes."""
        self.seen.append((counts(plan), float(size - stored_bytes(problem, plan.stored))))

    def correct(self, problem: Problem, plan: Plan, size: int) -> None:
        """The same of a plan that was learned from last, if it was."""
        if self.seen and np.array_equal(self.seen[-1][0], counts(plan)):
            self.seen.pop()
        self.learn(problem, plan, size)

    def of(self, plan: Plan) -> float:
        """Bytes of the file of ``plan`` besides its weights; 0 where nothing was learned."""
        if not self.seen:
            return 0.0
        kinds = len(ASSUMED)
        ages = RECENT ** np.arange(len(self.seen))[::-1] / SPREAD
        rows = np.array([[1.0, *count] for count, _ in self.seen]) * ages[:, None]
        totals = np.array([total for _, total in self.seen]) * ages
        doubts = np.concatenate([np.zeros((kinds, 1)), np.diag(1 / (DOUBT * ASSUMED))], axis=1)
        system = np.concatenate([rows, doubts]), np.concatenate([totals, np.full(kinds, 1 / DOUBT)])
        found = np.linalg.lstsq(*system)[0]
        return float(found[0] + found[1:] @ counts(plan))

    def file_bytes(self, problem: Problem, plan: Plan) -> int:
        """Bytes that the file of ``plan`` will take."""
        return round(self.of(plan)) + stored_bytes(problem, plan.stored)
