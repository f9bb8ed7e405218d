"""What is in a model and what could be done to it. In: a Model. Out: an Inspection, for a page or JSON.

Nothing is measured or planned here: for every site it is what the passes propose without data, and the
reasons of those that propose nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ValueInfoProto

from onnxc.bodies import hidden, paths
from onnxc.codes.formats import FLOATS
from onnxc.contract.context import Context
from onnxc.data import generate
from onnxc.errors import DataError, InputError, ModelError
from onnxc.file.containers import contained
from onnxc.macs import multiplications
from onnxc.model import Constant, Model
from onnxc.naming import name_nodes
from onnxc.observe import Observations, Watch
from onnxc.propose import collect, passes_of
from onnxc.recipe import Recipe
from onnxc.report import RefusalRow, Report, SiteRow, plain
from onnxc.session import Options, Session
from onnxc.sites import Sites, find
from onnxc.targets import target


@dataclass
class Inspection:
    """A model at a glance.

    Attributes:
        path: of the file; bytes: on disk, external data included.
        opsets: operator set version by domain ("" is the standard one); ir_version: of the file format.
        inputs, outputs: (name, type, shape) as ONNX Runtime would show them.
        operators: with their number, bodies included.
        weight_bytes: of all initializers.
        rows: sites and weights; ``specification`` is what would be tried, ``reason`` why nothing.
        refusals: reasons counted.
        notes: sentences for the user.
    """

    path: str
    bytes: int
    opsets: dict[str, int]
    ir_version: int
    inputs: list[tuple[str, str, str]]
    outputs: list[tuple[str, str, str]]
    operators: Counter[str]
    weight_bytes: int
    rows: list[SiteRow] = field(default_factory=list)
    refusals: list[RefusalRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Everything as values that JSON has."""
        result: dict[str, Any] = plain(self)
        return result


def inspect(path: str | Path, *, recipe: Recipe = Recipe()) -> Inspection:
    """Read the model at ``path`` and ask every pass about every site.

    Raises:
        ModelError: it is no model. One that ONNX Runtime cannot run is described all the same, with a note.
    """
    model = Model.load(path)
    graph = model.graph
    result = Inspection(
        path=str(path),
        bytes=model.source_bytes,
        opsets=dict(model.opsets),
        ir_version=model.ir_version,
        inputs=[_shown(tensor, graph.input_info.get(tensor)) for tensor in graph.inputs],
        outputs=[_shown(tensor, graph.output_info.get(tensor)) for tensor in graph.outputs],
        operators=Counter(str(node.op) for node in model.nodes()),
        weight_bytes=sum(
            tensor.nbytes for each in model.graphs() for tensor in each.tensors_inside() if isinstance(tensor, Constant)
        ),
    )
    passes = passes_of(recipe)
    try:
        for exact in passes.exact:
            exact.run(model)
    except InputError as error:
        result.notes.append(f"sites are those of the file as it is: {error}")
        model = Model.load(path)
    name_nodes(model)
    where = target(recipe.target)
    sites = find(model, where)
    shapes = _shapes(model, sites, recipe, result)
    proposals = collect(passes.lossy, Context(model, sites, Observations(), recipe, where))
    report = Report()
    reasons: dict[str, str] = {}
    for refusal in proposals.refusals:
        report.refuse(refusal.pass_name, refusal.reason, refusal.place)
        reasons.setdefault(refusal.place, refusal.reason)
    for site in sites:
        if site.weight is None:
            continue
        storage = [c for c in proposals.storage.get(site.weight.name, []) if c.mode not in FLOATS]
        stored = storage[0] if storage else None
        ways = [*proposals.compute.get(site.name, []), *storage]
        result.rows.append(
            SiteRow(
                site=site.name,
                operator=site.operator,
                shape=site.weight.shape,
                bytes_before=site.weight.bytes,
                bytes_after=stored.bytes if stored else site.weight.bytes,
                macs=multiplications(site, shapes, sites),
                choice=ways[0].pass_name if ways else "",
                specification="; ".join(each.specification for each in ways),
                reason="" if ways else reasons.get(site.name, reasons.get(site.weight.name, "")),
            )
        )
    result.refusals = report.refusals
    if not result.rows:
        result.notes.insert(0, "no site: there is no float weight that an operator known to onnxc reads")
    return result


def _shown(tensor: Any, info: ValueInfoProto | None) -> tuple[str, str, str]:
    """Name, type and shape; of a sequence or optional those of what it holds."""
    dtype, shape, words = tensor.dtype, tensor.shape, ""
    if info is not None and tensor.type not in ("tensor_type", "sparse_tensor_type"):
        words, dtype, shape = contained(info)
    kind = "" if dtype is None else str(np.dtype(dtype))
    axes = [str(axis) if axis is not None else "?" for axis in shape or ()]
    return str(tensor.name), (words + kind).strip(), "x".join(axes)


def _shapes(model: Model, found: Sites, recipe: Recipe, result: Inspection) -> dict[str, tuple[int, ...]]:
    """Shapes of the sites' activations for one generated sample; empty where the model does not run."""
    options = Options(recipe.providers, recipe.threads, recipe.custom_ops)
    sites, where = [site for site in found if site.weight], paths(model)
    try:
        session = Session(model, options)
        samples = generate(model, session, count=1)
        sample = next(iter(samples))
        shapes = {name: tuple(np.shape(array)) for name, array in sample.items()}
        read = dict.fromkeys(
            t.name for s in sites for t in (s.node.outputs[0], s.input) if t.name and not isinstance(t, Constant)
        )
        wanted = [n for n in read if n not in shapes and (n not in where or hidden(where[n], model.opset) is None)]
        if wanted:
            values = Watch.of(model, wanted, options, found.types).values(sample)
            shapes |= {name: tuple(np.shape(arrays[0])) for name, arrays in values.items() if arrays}
    except (ModelError, DataError) as error:
        result.notes.append(f"multiply-accumulates are not known: {error}")
        return {}
    if not sites:
        return shapes
    shown = ", ".join(f"{name} {'x'.join(map(str, np.shape(array))) or 'scalar'}" for name, array in sample.items())
    result.notes.append(f"multiply-accumulates are those of one run with {shown}")
    return shapes
