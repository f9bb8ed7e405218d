"""Codes below 8 bits: what ONNX Runtime unfolds at load is what was solved, bit for bit, in the bytes announced."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxc.codes.fitting import make_grid
from onnxc.codes.formats import INT8, PALETTES, PLANES, TRELLISES, Format, parse_format
from onnxc.codes.gptq import damage, factorize, gptq
from onnxc.codes.layouts import layout_of
from onnxc.codes.packing import packed, possible
from onnxc.codes.solve import as_groups, from_groups
from onnxc.encoding import Codes, stored_bytes
from onnxc.model import Model
from onnxc.naming import name_nodes
from onnxc.rewriting.rewriter import Rewriter
from onnxc.session import Options, Session
from onnxc.sites import find
from onnxc.targets import target
from tests.emission import model, node, random

FORMATS = [
    *(Format(levels) for levels in (144, 64, 40, 16, 9, 8, 6, 4, 3)),
    *(Format(levels, 32) for levels in (40, 16, 9, 6, 4)),
    *(Format(dimension=dimension) for dimension in (2, 4, 8)),
    *(Format(dimension=1, entries=entries) for entries in PALETTES),
    *(Format(levels, trellis=True) for levels in TRELLISES),
]
SHAPES: list[tuple[tuple[int, ...], int, int]] = [
    ((64, 48), 1, 1),  # MatMul
    ((48, 64), 0, 1),  # Gemm with transB, embedding
    ((16, 32, 3, 3), 0, 1),  # Conv
    ((16, 8, 3, 3), 0, 2),  # grouped Conv
    ((2, 48, 32), 1, 1),  # LSTM in two directions
    ((33, 7), 1, 1),  # nothing divides it
]


def solved(shape: tuple[int, ...], axis: int, groups: int, chosen: Format, native: bool) -> Codes:
    values = random.standard_normal(shape).astype(np.float32)
    matrix = as_groups(values, axis, groups)
    moment = random.standard_normal((groups, 512, matrix.shape[1])).astype(np.float32)
    factor = factorize(moment.swapaxes(1, 2) @ moment / 512)
    grid, scale = make_grid(matrix, chosen, np.ones(matrix.shape[:2], np.float32), 127)
    found, digits = gptq(matrix / scale[:, None], factor, grid)
    layout = layout_of(shape, axis, groups)
    form = packed(chosen, grid, digits, layout, native=native)
    return Codes(from_groups(found, shape, axis), scale.reshape(-1), axis, 127, form)


CASES = [
    pytest.param(shape, axis, groups, chosen, native, id=f"{shape}-{chosen.name}" + ("-native" if native else ""))
    for shape, axis, groups in SHAPES
    for chosen in FORMATS
    for native in (False, True)
    if possible(chosen, layout_of(shape, axis, groups)) and (chosen.levels == 16 or not native)
]


@pytest.mark.parametrize(("shape", "axis", "groups", "chosen", "native"), CASES)
def test_unfolds_to_the_codes(shape: Any, axis: int, groups: int, chosen: Format, native: bool) -> None:
    codes = solved(shape, axis, groups, chosen, native)
    proto = model([node("Add", "x w", "y")], {"x": shape}, {"y": shape}, {"w": np.zeros(shape, np.float32)}, opset=21)
    loaded = Model.load(proto)
    rewriter = Rewriter(loaded, {"w": codes})
    rewriter.unfold("w")
    loaded.tidy()
    session = Session(loaded, Options(), dump=True)
    optimized = session.optimized()
    assert [each.op_type for each in optimized.graph.node] == ["Add"]  # all of it is folded at load
    result = session.run({"x": np.zeros(shape, np.float32)})["y"]
    np.testing.assert_array_equal(np.asarray(result), codes.restored())


@pytest.mark.parametrize("floats", [False, True], ids=["codes", "floats"])
@pytest.mark.parametrize("opset", [9, 12, 13, 18, 21])
def test_weights_unfold_together(opset: int, floats: bool) -> None:
    """Forty weights of all formats and shapes take fewer nodes than weights, and each is its codes bit for bit."""
    codes = {}
    for position in range(40):
        shape, axis, groups = SHAPES[position % len(SHAPES)]
        fitting = [each for each in FORMATS if possible(each, layout_of(shape, axis, groups), opset)]
        codes[f"w{position}"] = solved(shape, axis, groups, fitting[position % len(fitting)], opset >= 21)
    shapes = {name: each.values.shape for name, each in codes.items()}
    adds = [node("Add", f"x{name} {name}", f"y{name}") for name in codes]
    ends: list[dict[str, Any]] = [{f"{end}{name}": list(s) for name, s in shapes.items()} for end in "xy"]
    stored = {name: np.zeros(s, np.float32) for name, s in shapes.items()}
    loaded = Model.load(model(adds, ends[0], ends[1], stored, opset=opset))
    rewriter = Rewriter(loaded, codes, floats=set(codes) if floats else ())
    for name in codes:
        rewriter.unfold(name)
    loaded.tidy()
    unfolding = [each.op for each in loaded.nodes() if each.op != "Add"]
    shared = 14 * len(FORMATS)  # about so many of each format
    assert len(unfolding) < shared + 3 * len(codes), "Cast, Mul and a scale of each"
    session = Session(loaded, Options(), dump=True)
    assert {each.op_type for each in session.optimized().graph.node} == {"Add"}
    results = session.run({f"x{name}": np.zeros(s, np.float32) for name, s in shapes.items()})
    for name, each in codes.items():
        np.testing.assert_array_equal(np.asarray(results[f"y{name}"]), each.restored(), err_msg=name)


def test_weights_of_one_shape_are_scaled_together() -> None:
    """One Mul for all rows, then a Split whose outputs are the weights; what lies turned is scaled turned back."""
    convs = {f"c{rows}": ((rows, 32, 3, 3), 0) for rows in (16, 8, 24)}
    matrices = {f"m{columns}": ((64, columns), 1) for columns in (48, 96)}
    codes = {n: solved(shape, axis, 1, Format(9), False) for n, (shape, axis) in convs.items()}
    codes |= {n: solved(shape, axis, 1, Format(9, 32), False) for n, (shape, axis) in matrices.items()}
    shapes = {name: each.values.shape for name, each in codes.items()}
    adds = [node("Add", f"x{name} {name}", f"y{name}") for name in codes]
    ends: list[dict[str, Any]] = [{f"{end}{name}": list(s) for name, s in shapes.items()} for end in "xy"]
    loaded = Model.load(model(adds, ends[0], ends[1], {n: np.zeros(s, np.float32) for n, s in shapes.items()}))
    rewriter = Rewriter(loaded, codes, floats=set(codes))
    for name in codes:
        rewriter.unfold(name)
    loaded.tidy()
    products = [each for each in loaded.nodes() if each.op == "Mul"]
    assert len(products) == 2
    split = {tensor.name for product in products for reader in product.outputs[0].outputs for tensor in reader.outputs}
    assert split == {f"{name}_unfolded" for name in codes}
    results = Session(loaded).run({f"x{name}": np.zeros(s, np.float32) for name, s in shapes.items()})
    for name, each in codes.items():
        np.testing.assert_array_equal(np.asarray(results[f"y{name}"]), each.restored(), err_msg=name)


@pytest.mark.parametrize("elements", [2048, 262144], ids=["divided", "looked up"])
@pytest.mark.parametrize("levels", [144, 64, 40, 16, 9, 8, 6, 4, 3])
def test_few_codes_need_no_table(levels: int, elements: int) -> None:
    shape = (elements // 64, 64)
    codes = solved(shape, 1, 1, Format(levels), False)
    loaded = Model.load(
        model([node("Add", "x w", "y")], {"x": shape}, {"y": shape}, {"w": np.zeros(shape, np.float32)})
    )
    rewriter = Rewriter(loaded, {"w": codes}, floats={"w"})
    rewriter.unfold("w")
    loaded.tidy()
    tables = [each for each in loaded.nodes() if each.op == "Gather"]
    assert bool(tables) == (elements > 100_000)
    result = Session(loaded).run({"x": np.zeros(shape, np.float32)})["y"]
    np.testing.assert_array_equal(np.asarray(result), codes.restored())


@pytest.mark.parametrize("chosen", [INT8, *FORMATS], ids=lambda each: each.name)
def test_the_bytes_are_those_announced(chosen: Format) -> None:
    """A weight adds to the file what was announced; the first one of its format some nodes more."""
    shape, sizes = (256, 384), []
    codes = solved(shape, 1, 1, chosen, False) if chosen != INT8 else None
    if codes is None:
        codes = Codes(np.ones(shape, np.int8), np.ones(384, np.float32), 1, 127)
    for count in (1, 2, 3):
        names = [f"some_weight_{each}" for each in range(count)]
        multiply = [node("MatMul", f"x {name}", f"y{name}") for name in names]
        stored = dict.fromkeys(names, np.ones(shape, np.float32))
        loaded = Model.load(model(multiply, {"x": [8, 256]}, {f"y{name}": None for name in names}, stored))
        name_nodes(loaded)
        weights = find(loaded, target("cpu")).weights
        empty = len(loaded.serialized()) - sum(weight.bytes for weight in weights)
        rewriter = Rewriter(loaded, dict.fromkeys(names, codes))
        for name in names:
            rewriter.unfold(name)
        loaded.tidy()
        sizes.append(len(loaded.serialized()) - empty)
    announced = stored_bytes(weights[0], chosen)
    assert abs(sizes[2] - sizes[1] - announced) < 120
    chain = 3800 if chosen.trellis else 3000 if chosen.levels in PLANES else 2200
    listed = 2 * len(np.unique(codes.scale)) + 200  # the list of scales, with the nodes that look up in it
    assert sizes[0] - announced < chain + listed, "nodes that all of the format share"
    assert announced < weights[0].bytes * (chosen.bits / 32 + 0.04)


def test_fewer_bits_damage_more_and_gptq_damages_less() -> None:
    random = np.random.default_rng(5)
    values = random.standard_normal((128, 96)).astype(np.float32)
    rows = (random.standard_normal((600, 12)) @ random.standard_normal((12, 128))).astype(np.float32)
    rows += 0.3 * random.standard_normal(rows.shape).astype(np.float32)
    factor = factorize((rows.T @ rows / len(rows))[None])
    matrix = values[None]
    importance = np.diagonal(factor.moment, axis1=1, axis2=2)
    found = {}
    for name in (
        "levels40",
        "levels16/32",
        "levels16",
        "codebook2",
        "palette16",
        "levels9",
        "levels6",
        "levels4",
        "codebook4",
    ):
        grid, scale = make_grid(matrix, parse_format(name), importance, 127)
        nearest, _ = gptq(matrix / scale[:, None], None, grid)
        fed, _ = gptq(matrix / scale[:, None], factor, grid)
        before = damage(matrix, nearest * scale[:, None], factor.moment)
        found[name] = damage(matrix, fed * scale[:, None], factor.moment)
        assert found[name] < 0.5 * before, name
    assert found["levels40"] < found["levels16/32"] < found["levels16"] < found["levels9"] < found["levels6"]
    assert max(found["codebook2"], found["palette16"]) < found["levels16"]  # all of 4 bits
    assert found["codebook4"] < found["levels4"]  # both 2 bits


def test_names_and_formats_are_each_others() -> None:
    for each in [INT8, *FORMATS]:
        assert parse_format(each.name) == each
    with pytest.raises(ValueError, match="no format"):
        parse_format("levels")


@pytest.mark.parametrize("name", ["palette16", "palette256", "codebook2", "codebook4"])
def test_an_output_of_zeros_stays_one(name: str) -> None:
    """Zero need not be one of the values, as of a row that pads; its scale is as good as zero then."""
    matrix = np.random.default_rng(6).standard_normal((1, 64, 48)).astype(np.float32)
    matrix[:, :, 7] = 0
    grid, scale = make_grid(matrix, parse_format(name), np.ones((1, 64), np.float32), 127)
    found, _ = gptq(matrix / scale[:, None], None, grid)
    assert np.abs((found * scale[:, None])[:, :, 7]).max() < 1e-20
