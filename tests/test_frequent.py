"""Rows of a table that samples ask for again and again keep 8 bits: which ones they are, what they cost and bring."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from onnxc import Budget, optimize
from onnxc.codes.exact_rows import PackedRows
from onnxc.codes.fitting import make_grid
from onnxc.codes.formats import Format, parse_format
from onnxc.codes.moments import Factors
from onnxc.codes.solve import solved
from onnxc.data import Calibration
from onnxc.encoding import Codes, stored_bytes
from onnxc.frequent import frequent_rows
from onnxc.model import Model
from onnxc.rewriting.rewriter import Rewriter
from onnxc.session import Options, Session
from tests.emission import Sample, model, node
from tests.factored import context_of

WORDS, WIDTH, HEAD = 2048, 32, 12


def encoder() -> ModelProto:
    """A table of words, some of which are read twice: ids plus an offset that is computed inside."""
    random = np.random.default_rng(0)
    table = random.standard_normal((WORDS, WIDTH)).astype(np.float32)
    return model(
        [node("Add", "ids one", "next"), node("Gather", "table next", "y")],
        {"ids": [1, "t"]},
        {"y": None},
        {"table": table, "one": np.asarray([1])},
        integers=("ids",),
    )


def texts(count: int, seed: int = 1) -> list[Sample]:
    """Half of the words are of HEAD ones, the others are of all."""
    random = np.random.default_rng(seed)
    return [
        {"ids": np.concatenate([random.integers(0, HEAD, 20), random.integers(0, WORDS - 1, 20)])[None]}
        for _ in range(count)
    ]


def coded(form: str, data: list[Sample]) -> tuple[Any, Codes]:
    """The context with what was counted, and the codes of the table."""
    context = context_of(encoder(), data)
    assert context.samples is not None
    table = next(weight for weight in context.sites.weights if weight.name == "table")
    table.frequent = frequent_rows(context.model, context.sites, context.samples, Options())["table"]
    values = np.asarray(context.model.values(table.tensor), np.float32)
    return context, solved(table, values, context, Factors(context.sites, context.observations), parse_format(form))


def test_rows_of_two_samples_count_and_those_kept_apart_do_not() -> None:
    context = context_of(encoder())
    twice = {"ids": np.asarray([[3, 5, 5, 5, -2]])}
    once = {"ids": np.asarray([[700, 700, 900]])}
    session = Session(context.model)
    data = Calibration.open(
        [twice, once, {"ids": np.asarray([[3, 1000]])}, {"ids": np.asarray([[-2, 900]])}], session.inputs
    )
    assert len(data) == 4
    apart = sorted(data.apart)
    found = frequent_rows(context.model, context.sites, data, Options())
    ids = [np.unique(sample["ids"] + 1) % WORDS for position, sample in enumerate(data) if position not in apart]
    rows, counts = np.unique(np.concatenate(ids), return_counts=True)
    assert set(found) == {"table"}
    np.testing.assert_array_equal(found["table"], rows[counts > 1])


def test_of_many_rows_those_of_most_samples_are_kept() -> None:
    context = context_of(encoder(), texts(64))
    assert context.samples is not None
    found = frequent_rows(context.model, context.sites, context.samples, Options())["table"]
    assert len(found) == WORDS // 64
    assert set(range(1, HEAD + 1)) <= set(found.tolist())


def test_made_up_inputs_say_nothing_of_words() -> None:
    context = context_of(encoder())
    assert context.samples is not None
    assert context.samples.generated
    assert frequent_rows(context.model, context.sites, context.samples, Options()) == {}


@pytest.mark.parametrize("form", ["trellis8", "levels9", "levels16/32", "codebook4"])
def test_frequent_rows_unfold_to_8_bits_and_cost_what_is_said(form: str) -> None:
    context, codes = coded(form, texts(32))
    table = next(weight for weight in context.sites.weights if weight.name == "table")
    assert table.frequent is not None
    zeros = np.zeros((WORDS, WIDTH), np.float32)
    sizes = []
    assert isinstance(codes.packed, PackedRows)
    for packed in (codes, replace(codes, packed=codes.packed.others)):
        loaded = Model.load(model([node("Add", "x w", "y")], {"x": zeros.shape}, {"y": zeros.shape}, {"w": zeros}))
        rewriter = Rewriter(loaded, {"w": packed})
        rewriter.unfold("w")
        loaded.tidy()
        sizes.append(len(loaded.serialized()))
        if packed is codes:
            session = Session(loaded, Options(), dump=True)
            assert [each.op_type for each in session.optimized().graph.node] == ["Add"]
            np.testing.assert_array_equal(np.asarray(session.run({"x": zeros})["y"]), codes.restored())
    values = np.asarray(context.model.values(table.tensor))
    error = np.square(values - codes.restored()).sum(1) / np.square(values).sum(1)
    often = np.zeros(WORDS, bool)
    often[table.frequent] = True
    assert error[often].max() < 2e-4
    assert error[~often].mean() > 5e-3
    said = stored_bytes(table, parse_format(form))
    said -= stored_bytes(replace_rows(table), parse_format(form))
    assert said == pytest.approx(sizes[0] - sizes[1], abs=160)


@pytest.mark.parametrize("form", ["trellis8", "levels9", "codebook4"])
def test_two_tables_with_frequent_rows_unfold_together(form: str) -> None:
    """Beside weights of their shape, which become floats and are scaled together."""
    _, codes = coded(form, texts(32))
    assert isinstance(codes.packed, PackedRows)
    every = {"v": codes, "w": codes, "y": replace(codes, packed=codes.packed.others)}
    every["z"] = every["y"]
    zeros = np.zeros((WORDS, WIDTH), np.float32)
    adds = [node("Add", f"x {name}", f"of_{name}") for name in every]
    loaded = Model.load(
        model(adds, {"x": zeros.shape}, {f"of_{name}": zeros.shape for name in every}, dict.fromkeys(every, zeros))
    )
    rewriter = Rewriter(loaded, every, floats=set(every))
    for name in every:
        rewriter.unfold(name)
    loaded.tidy()
    found = Session(loaded).run({"x": zeros})
    for name in ("v", "w"):
        np.testing.assert_array_equal(np.asarray(found[f"of_{name}"]), codes.restored())
    np.testing.assert_array_equal(np.asarray(found["of_y"]), np.asarray(found["of_z"]))


def replace_rows(table: Any) -> Any:
    """The same weight, of which no rows are known."""
    return replace(table, frequent=None)


def test_new_texts_have_less_noise_for_few_bytes(tmp_path: Path) -> None:
    """As the compiler does it, unasked; against a table whose rows are all of few levels."""
    source, out = tmp_path / "encoder.onnx", tmp_path / "small.onnx"
    onnx.save(encoder(), source)
    optimize(
        source,
        out,
        calib=texts(32),
        passes="store-low-bit:levels=6,quantize-embedding",
        budget=Budget(min_sqnr=3.0, min_agreement=0.1),
        prices=tmp_path / "prices.json",
    )
    table = np.asarray(numpy_helper.to_array(onnx.load(source).graph.initializer[0]))
    grid, scale = make_grid(table.T[None], Format(6), np.ones((1, WIDTH), np.float32), 127)
    at = np.zeros(WIDTH, np.intp), np.arange(WIDTH)
    plain = (grid.snap(at, np.asarray(table.T / scale, np.float32))[1] * scale).T
    before, after, ours, others = Session(source), Session(out), 0.0, 0.0
    for sample in texts(16, seed=9):
        wanted, got = (np.asarray(session.run(sample)["y"]) for session in (before, after))
        ours += float(np.square(wanted - got).sum())
        others += float(np.square(wanted - plain[sample["ids"] + 1]).sum())
    assert 0.4 * others < ours < 0.6 * others
    packed = WORDS * WIDTH / 3 + 2 * WORDS
    assert out.stat().st_size < packed + (WORDS // 64) * (WIDTH + 4) + 2500
