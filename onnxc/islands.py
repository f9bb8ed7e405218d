"""Where int8 ends and float begins. In: sites, and which of them are int8. Out: what crosses, what may not be int8."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from onnxc.contract.candidates import Candidate
from onnxc.model import Node, Tensor
from onnxc.problem import Plan, Problem
from onnxc.sites import Site, Sites
from onnxc.targets import ABSORBED, MOVED_THROUGH, QUANTIZED_AT_LOAD


def crossings(problem: Problem, compute: Mapping[str, Candidate]) -> list[int]:
    """Elements of every Q and DQ at the border of an island."""
    sites = {site.name: site for site in problem.found}
    made = {c.writes.tensor: name for name, c in compute.items() if c.writes is not None}
    entered = {a.tensor for c in compute.values() for a in c.reads if not a.dynamic} - set(made)
    found = [problem.elements.get(tensor, 0) for tensor in sorted(entered)]
    for tensor, name in made.items():
        left = sum(reader is None or reader.name not in compute for reader in leaves(sites[name]))
        found += [problem.elements.get(tensor, 0)] * left
    return found


def leaves(site: Site) -> list[Node | None]:
    """The readers of an int8 site's result, each with a DQ of its own where it is float; [None] of a model output."""
    return list(site.result.outputs) or [None]


@lru_cache(maxsize=2)
def fused_joints(found: Sites) -> dict[str, list[str]]:
    """Joint -> the convolutions whose result it alone reads: in float ONNX Runtime makes an Add part of one of them."""
    alone = [site for site in found if site.operator == "Conv" and len(site.result.outputs) == 1]
    results = {site.result.name: site.name for site in alone}
    joints = {site.name: [results[t.name] for t in site.inputs if t.name in results] for site in found}
    return {site.name: joints[site.name] for site in found if site.kind == "joint" and joints[site.name]}


def silently_quantized(found: Sites, chosen: Plan) -> set[str]:
    """Int8 readers of float sites that stand between a DQ and a Q.

    ONNX Runtime quantizes the float weight of such a node per tensor at load, whatever the file says, and moves DQ
    and Q through data movement and activations towards it; its readers must stay float too, so that no Q follows.
    """
    codes = {c.writes.tensor for c in chosen.compute.values() if c.writes}
    readers: dict[str, set[str]] = {}
    for name, candidate in chosen.compute.items():
        for activation in candidate.reads:
            if not activation.dynamic:
                readers.setdefault(activation.tensor, set()).add(name)
    trapped: set[str] = set()
    for site in found:
        if site.name in chosen.compute or not (site.operator in QUANTIZED_AT_LOAD or (site.tail and site.bias)):
            continue
        if not came_from(site.input, codes):
            continue
        for tensor in moved_on(site.result):
            trapped |= readers.get(tensor.name, set())
    return trapped


def came_from(tensor: Tensor, codes: set[str]) -> bool:
    """Whether ``tensor``, or what data movement made it from, is one of ``codes``."""
    while tensor.name not in codes:
        if not tensor.inputs or tensor.inputs[0].op not in MOVED_THROUGH:
            return False
        tensor = tensor.inputs[0].inputs[0]
    return True


def moved_on(tensor: Tensor) -> list[Tensor]:
    """``tensor`` and everything that data movement and absorbed activations make of it."""
    reached = [tensor]
    for each in reached:
        for reader in each.outputs:
            if reader.op in MOVED_THROUGH | ABSORBED and reader.inputs[0] is each:
                reached += reader.outputs
    return reached
