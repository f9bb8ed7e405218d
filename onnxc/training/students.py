"""Students made out of the teacher. In: a teacher and inputs. Out: a smaller model that already answers much like it.

    width=0.5   half of the channels of every layer, cut through the dependency graph and refitted (prune-channels)
    compact     x ── Conv [N, C, 3, 3] ──
        becomes x ── Conv [C, 1, 3, 3], group = C ── Conv [N, C, 1, 1] ──    (Howard et al., MobileNets, 2017)
                x ── MatMul [K, N] ──
        becomes x ── MatMul [K, r] ── MatMul [r, N] ──    of a quarter of its numbers (Sainath et al., 2013)

The filters of each channel are the best single one for all outputs (the first singular vector of its [N, 9] matrix);
what mixes the channels, and the bias, are solved by least squares on what the student feeds the layer, against what the
teacher's layer gives, one layer after the other. The pairs of matrices are those of factor-matmul, solved the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from onnxc.contract.context import Context
from onnxc.contract.fields import configured
from onnxc.contract.passes import Level, StructuralPass
from onnxc.data import Calibration, Sample
from onnxc.errors import ModelError
from onnxc.file.shell import is_constant
from onnxc.model import Model, Node
from onnxc.naming import name_nodes
from onnxc.observe import Observations
from onnxc.propose import passes_of
from onnxc.recipe import Recipe
from onnxc.registry import load_passes
from onnxc.session import Options
from onnxc.sites import find
from onnxc.targets import target
from onnxc.training.blocks import witness
from onnxc.training.operators.linear import CONVOLUTIONS, convolve
from onnxc.training.operators.table import Call, from_numpy

SAMPLES = 64  # that a layer is fitted on
POSITIONS = 4096  # of each sample's output
RIDGE = 1e-4  # of the mean power, added so that channels that are never active stay at rest
SMALLEST = 2.0  # times fewer weights, or a convolution stays dense
PAIRED = 0.25  # of a matrix's numbers, in its pair
FEWEST = 4096  # numbers of a matrix, or it stays whole


def simplified(model: Model, samples: Calibration, options: Options) -> Model:
    """``model`` after the exact passes."""
    some = samples.take(min(3, len(samples)))
    made = model.copy()
    for each in passes_of(Recipe()).exact:
        copy = made.copy()
        if each.run_checked(copy, some, options).changed:
            made = copy
    name_nodes(made)
    return made


def narrow(teacher: Model, width: float, samples: Calibration, options: Options, seed: int) -> tuple[Model, list[str]]:
    """A student with that part of the teacher's channels.

    Raises:
        ModelError: no channel of it can be cut.
    """
    start = simplified(teacher, samples, options)
    level = level_of("prune-channels", {"fraction": 1 - width}, start, samples, options, seed)
    if level is None:
        raise ModelError("no channel of the teacher can be cut: give a STUDENT of your own")
    return level.model, [f"student: {level.specification}", *(f"student: {note}" for note in level.notes)]


def level_of(
    name: str, fields: dict[str, Any], model: Model, samples: Calibration, options: Options, seed: int
) -> Level | None:
    """What a structural pass makes of ``model`` when it is told ``fields``; None where it does nothing."""
    instance = configured(load_passes()[name], name, fields)
    assert isinstance(instance, StructuralPass)
    where = target("cpu")
    context = Context(
        model, find(model, where).in_float32(), Observations(), Recipe(seed=seed), where, True, samples, options
    )
    level = next(iter(instance.levels(context)), None)
    if level is not None:
        name_nodes(level.model)
    return level


def compact(teacher: Model, samples: Calibration, options: Options, seed: int) -> tuple[Model, list[str]]:
    """A student with depthwise-separable convolutions in place of dense ones, and pairs in place of matrices.

    Raises:
        ModelError: the teacher has neither a dense convolution of at least SMALLEST times the weights of the two, nor
            a matrix of FEWEST numbers.
    """
    start = simplified(teacher, samples, options)
    student, notes = start.copy(), list[str]()
    names = [node.name for node in dense(student)]
    for name in names:
        separate(start, student, name, samples.take(min(SAMPLES, len(samples))), options, seed)
    if names:
        student.tidy()
        name_nodes(student)
        notes.append(f"{len(names)} convolutions made depthwise-separable")
    fields = {"parameters": PAIRED, "smallest": FEWEST, "only": "linears"}
    level = level_of("factor-matmul", fields, student, samples, options, seed)
    if level is not None:
        student = level.model
        notes.append(level.specification)
    if not notes:
        raise ModelError("the teacher has no dense convolution or matrix to make compact: give a STUDENT of your own")
    before, after = (sum(t.nbytes for graph in model.graphs() for t in graph.weights) for model in (start, student))
    notes.append(f"{after / before:.0%} of the teacher's weights")
    return student, [f"student: {note}" for note in notes]


def dense(model: Model) -> list[Node]:
    """The convolutions worth separating, in order."""
    found = []
    for node in model.graph.nodes:
        if node.op != "Conv" or node.domain not in {None, "", "ai.onnx"} or not is_constant(node.inputs[1]):
            continue
        shape = node.inputs[1].shape
        kernel = int(np.prod(shape[2:]))
        if node.attrs.get("group", 1) != 1 or len(shape) - 2 not in CONVOLUTIONS or kernel == 1:
            continue
        outputs, inputs = shape[:2]
        if outputs * inputs * kernel >= SMALLEST * inputs * (kernel + outputs) and inputs > 1:
            found.append(node)
    return found


def rank_one(weight: np.ndarray) -> np.ndarray:
    """[C, 1, ...], the filters that stand best for all outputs of their channel: W[n, c] is nearly a multiple of the
    filter of c, for every n.
    """
    outputs, inputs = weight.shape[:2]
    per_channel = weight.reshape(outputs, inputs, -1).transpose(1, 0, 2)  # [C, N, k]
    _, _, v = np.linalg.svd(per_channel.astype(np.float64), full_matrices=False)
    return np.asarray(v[:, 0].reshape(inputs, 1, *weight.shape[2:]), np.float32)


def separate(teacher: Model, student: Model, name: str, samples: Sequence[Sample], options: Options, seed: int) -> None:
    """Put the two convolutions in place of ``name``, fitted on ``samples``."""
    node = next(each for each in student.graph.nodes if each.name == name)
    theirs = next(each for each in teacher.graph.nodes if each.name == name)
    weight = np.asarray(student.values(node.inputs[1]), np.float32)
    filters = rank_one(weight)
    feeding, wanted = node.inputs[0].name, theirs.outputs[0].name
    fed = feeding in {each.name for each in student.graph.inputs}
    mine = None if fed else witness(student, [feeding], options)
    reference = witness(teacher, [wanted], options)
    first = Node("Conv", name, {**node.attrs, "group": weight.shape[1]})
    rows, results = [], []
    random = np.random.default_rng(seed)
    for sample in samples:
        x = np.asarray(sample[feeding]) if mine is None else mine.run(sample, [feeding])[feeding]
        y = reference.run(sample, [wanted])[wanted]
        call = Call(first, student.opset, torch.device("cpu"), lambda graph, values: [])
        with torch.no_grad():
            z = convolve(call, from_numpy(x), from_numpy(filters), None).numpy()
        z, y = (np.moveaxis(each, 1, -1).reshape(-1, each.shape[1]) for each in (z, y))
        chosen = random.permutation(len(z))[: max(POSITIONS // len(samples), 64)]
        rows.append(z[chosen])
        results.append(y[chosen])
    mix, bias = fitted(rows, results)
    base = node.inputs[1].name
    channels = node.inputs[0]
    attributes = {key: value for key, value in node.attrs.items() if key != "group"}
    inner = student.insert(
        "Conv",
        [channels, student.constant(f"{base}_depthwise", filters)],
        [f"{name}_depthwise"],
        name=f"{name}_depthwise",
        group=weight.shape[1],
        **attributes,
    ).outputs[0]
    inner.dtype = np.dtype(np.float32)
    point = mix.reshape(*mix.shape, *[1] * (weight.ndim - 2))
    node.inputs[0] = inner
    node.inputs[1] = student.constant(f"{base}_pointwise", point)
    offset = student.constant(f"{base}_bias", bias)
    if len(node.inputs) > 2:
        node.inputs[2] = offset
    else:
        node.inputs.append(offset)
    node.attrs.clear()
    node.attrs["kernel_shape"] = [1] * (weight.ndim - 2)
    student.tidy()


def fitted(rows: Sequence[np.ndarray], results: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The matrix [N, C] and bias [N] of the least squares from ``rows`` [R, C] to ``results`` [R, N]."""
    z, y = (np.concatenate(list(parts)).astype(np.float64) for parts in (rows, results))
    z = np.concatenate([z, np.ones((len(z), 1))], 1)
    gram = z.T @ z
    gram[np.diag_indices(len(gram) - 1)] += RIDGE * np.trace(gram) / len(gram)
    solved = np.linalg.solve(gram + 1e-12 * np.eye(len(gram)), z.T @ y)
    return solved[:-1].T.astype(np.float32), solved[-1].astype(np.float32)
