"""Matrices as pairs: every operator that holds one, tied weights, shared left factors, a model of known low rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper

import onnxc
from onnxc.passes.factor_matmul import FactorMatmul
from onnxc.session import Session, measure_ratio
from onnxc.sites import find
from onnxc.targets import target
from tests.emission import model, node, samples, weight
from tests.factored import MODELS, context_of, error, limited, operators, told

VIT = MODELS / "vision_transformer.onnx"
IMAGES = str(MODELS / "data/vision_transformer_calib.npz")


LINEARS: list[tuple[list[NodeProto], dict[str, np.ndarray], list[int], int]] = [
    ([node("MatMul", "x w", "h"), node("Add", "h b", "y")], {"w": weight(24, 40), "b": weight(40)}, [3, 24], 3),
    ([node("MatMul", "x w", "y")], {"w": weight(24, 40)}, [2, 3, 5, 24], 2),
    ([node("MatMul", "x w", "y")], {"w": weight(3, 24, 40)}, [2, 3, 5, 24], 2),
    ([node("MatMul", "x w", "y")], {"w": weight(3, 24, 40)}, [5, 24], 2),
    ([node("Gemm", "x w b", "y", alpha=0.5, beta=3.0)], {"w": weight(24, 40), "b": weight(40)}, [9, 24], 2),
    ([node("Gemm", "x w b", "y", transB=1)], {"w": weight(40, 24), "b": weight(1, 40)}, [9, 24], 2),
    ([node("Gemm", "x w", "y", transA=1, alpha=2.0)], {"w": weight(24, 40)}, [24, 9], 2),
    ([node("Gemm", "x w b", "y", transA=1, transB=1)], {"w": weight(40, 24), "b": weight(1)}, [24, 9], 2),
]
NO_BIAS = next(case for case in LINEARS if case[0][0].op_type == "Gemm" and len(case[0][0].input) < 3)


@pytest.mark.parametrize(
    ("nodes", "weights", "shape", "chain", "opset"),
    [(*case, opset) for case in LINEARS for opset in (9, 17) if opset == 17 or case is not NO_BIAS],  # optional from 11
)
def test_every_form_of_a_linear(
    nodes: list[NodeProto], weights: dict[str, np.ndarray], shape: list[int], chain: int, opset: int
) -> None:
    proto = model(nodes, {"x": shape}, {"y": None}, weights, opset=opset)
    data = samples(8, x=shape)
    full = told(FactorMatmul(rank=24), proto, data)
    assert error(proto, full, data) < 1e-9
    half = told(FactorMatmul(rank=8), proto, data)
    assert 1e-3 < error(proto, half, data) < 0.95
    assert len(operators(half)) == chain
    names = {node.name for node in half.model.nodes()}
    first = nodes[0].name
    assert {f"{first}_left", f"{first}_right"} <= names
    sizes = {t.name: t.shape for t in half.model.graph.weights}
    assert {sizes["w_left"][-1], sizes["w_right"][-2]} == {8}
    assert "w" not in sizes
    again = told(FactorMatmul(rank=8), proto, data)
    assert half.model.serialized() == again.model.serialized()
    kinds = [site.kind for site in find(half.model, target("cpu")) if site.weight is not None]
    assert kinds == ["linear", "linear"]  # to be quantized, pruned and packed like any other


def tied(head: str) -> onnx.ModelProto:
    """A table of embeddings that is also the head, read through a Transpose or by a Gemm."""
    nodes = [node("Gather", "w ids", "h"), node("Relu", "h", "r")]
    if head == "Gemm":
        nodes += [node("Gemm", "r w", "y", transB=1)]
    else:
        nodes += [node("Transpose", "w", "t", perm=[1, 0]), node("MatMul", "r t", "y")]
    return model(nodes, {"ids": [6]}, {"y": [6, 90]}, {"w": weight(90, 32)}, integers=["ids"])


@pytest.mark.parametrize("head", ["Gemm", "Transpose"])
def test_tied_tables_stay_tied(head: str) -> None:
    proto, random = tied(head), np.random.default_rng(0)
    data = [{"ids": random.integers(0, 90, 6)} for _ in range(20)]
    level = told(FactorMatmul(rank=12), proto, data)
    assert sum(int(np.prod(t.shape)) for t in level.model.graph.weights if "w_" in t.name) == 12 * (90 + 32)
    assert error(proto, level, data) < 0.8
    assert error(proto, told(FactorMatmul(rank=32), proto, data), data) < 1e-9


def test_a_shared_weight_is_factored_once() -> None:
    nodes = [node("MatMul", "x w", "h"), node("Relu", "h", "r"), node("MatMul", "r w", "y")]
    proto = model(nodes, {"x": [4, 48]}, {"y": None}, {"w": weight(48, 48)})
    level = told(FactorMatmul(rank=16), proto, samples(8, x=[4, 48]))
    assert [tuple(t.shape) for t in level.model.graph.weights] == [(48, 16), (16, 48)]
    assert operators(level).count("MatMul") == 4


def test_refused_by_name_where_it_is_impossible() -> None:
    nodes = [node("MatMul", "x w", "h"), node("MatMul", "h v", "g"), node("Add", "g v", "y")]
    proto = model(nodes, {"x": [16, 24]}, {"y": None}, {"w": weight(24, 16), "v": weight(16, 16)})
    level = told(FactorMatmul(rank=20), proto, samples(4, x=[16, 24]))
    assert operators(level) == ["MatMul", "MatMul", "Add"]
    assert "h_node: not factored, rank 20 is above its full rank 16" in level.notes
    assert "g_node: not factored, y_node (Add) needs its weight 'v' whole" in level.notes
    level = told(FactorMatmul(energy=0.999999), proto, samples(4, x=[16, 24]))
    assert any("h_node: not factored, rank 9" in note for note in level.notes)


def test_without_data_the_weight_alone_decides_and_it_is_said() -> None:
    proto = model([node("MatMul", "x w", "y")], {"x": [4, 64]}, {"y": None}, {"w": weight(64, 64)})
    level = told(FactorMatmul(rank=16), proto)
    assert "without calibration data all directions of an input count alike" in level.notes
    plain = told(FactorMatmul(rank=16, method="plain"), proto, samples(4, x=[4, 64]))
    left, right = (np.asarray(level.model.values(t)) for t in level.model.graph.weights)
    other = [np.asarray(plain.model.values(t)) for t in plain.model.graph.weights]
    np.testing.assert_allclose(left @ right, other[0] @ other[1], atol=1e-5)


def test_inside_a_body() -> None:
    body = helper.make_graph(
        [node("MatMul", "x w", "inner")], "body", [], [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)]
    )
    other = helper.make_graph(
        [node("Identity", "x", "same")], "other", [], [helper.make_tensor_value_info("same", TensorProto.FLOAT, None)]
    )
    nodes = [
        node("ReduceSum", "x", "total", keepdims=0),
        node("Greater", "total limit", "positive"),
        node("If", "positive", "y", then_branch=body, else_branch=other),
    ]
    proto = model(nodes, {"x": [8, 32]}, {"y": None}, {"w": weight(32, 32), "limit": np.float32(-1e9)})
    data = samples(4, x=[8, 32])
    level = told(FactorMatmul(rank=32), proto, data)
    assert operators(level).count("MatMul") == 2
    assert error(proto, level, data) < 1e-9


def test_sites_that_read_one_input_share_a_left_factor_where_that_is_better() -> None:
    random = np.random.default_rng(0)
    left = random.standard_normal((96, 12))
    alike = {n: (left @ random.standard_normal((12, 48)) / 10).astype(np.float32) for n in "qkv"}
    nodes = [node("MatMul", f"x {n}", f"y{n}") for n in "qkv"]
    data = samples(16, x=[8, 96])
    proto = model(nodes, {"x": [8, 96]}, {f"y{n}": None for n in "qkv"}, alike)
    level = told(FactorMatmul(energy=0.999), proto, data)
    assert "left factor shared by 3" in level.specification
    assert operators(level).count("MatMul") == 4
    assert error(proto, level, data) < 1e-3
    unlike = {n: (random.standard_normal((96, 12)) @ random.standard_normal((12, 48)) / 10) for n in "qkv"}
    proto = model(nodes, {"x": [8, 96]}, {f"y{n}": None for n in "qkv"}, {n: w.astype("f4") for n, w in unlike.items()})
    assert operators(told(FactorMatmul(energy=0.999), proto, data)).count("MatMul") == 6
    assert operators(told(FactorMatmul(rank=12), proto, data)).count("MatMul") == 6  # as told, not with less


def test_whitened_and_refitted_beats_plain_on_a_trained_model() -> None:
    context = context_of(VIT, images()[:96])
    held_out = images()[-32:]

    def found(**fields: Any) -> float:
        (level,) = FactorMatmul(parameters=0.7, smallest=4096, **fields).levels(context)
        return error(VIT, level, held_out)

    refitted, whitened, plain = found(), found(refit=False), found(method="plain")
    assert whitened < 0.5 * plain  # 3 dB and more
    assert refitted < 0.9 * whitened


def images() -> list[dict[str, np.ndarray]]:
    """Items as the model takes them."""
    with np.load(IMAGES) as stored:
        return [{"pixel_values": image[None]} for image in stored["pixel_values"]]


def test_a_trained_model_of_known_low_rank_is_recovered(tmp_path: Path) -> None:
    proto, names = limited("vision_transformer", 8, 1e-3)
    path = tmp_path / "limited.onnx"
    onnx.save(proto, path)
    context = context_of(path, images()[:40])
    (level,) = FactorMatmul(energy=0.9999).levels(context)
    sizes = {t.name: tuple(t.shape) for t in level.model.graph.weights}
    ranks = [sizes[name] for name in sizes if name.endswith("_left") and min(sizes[name]) == 8]
    assert len(names) == 16
    assert len(ranks) == 16
    assert error(proto, level, context.samples.take(16)) < 1e-4
    assert len(level.model.serialized()) < 0.25 * path.stat().st_size
    before, after = Session(context.model), Session(level.model)
    ratio = max(measure_ratio(before, after, context.samples.take(4), seconds=0.5).median for _ in range(3))
    assert ratio > 1.1


@pytest.mark.slow
def test_a_model_of_low_rank_wins_again_when_it_is_quantized(tmp_path: Path) -> None:
    proto, _ = limited("vision_transformer", 8, 1e-3)
    onnx.save(proto, tmp_path / "limited.onnx")
    sizes = []
    for passes in ("factor-matmul:energy=0.999", "factor-matmul:energy=0.999,quantize-dynamic,store-int8"):
        report = onnxc.optimize(
            tmp_path / "limited.onnx",
            tmp_path / f"{len(sizes)}.onnx",
            calib=IMAGES,
            passes=passes,
            prices=tmp_path / "prices.json",
        )
        assert report.changed
        assert any(note.startswith("factor-matmul: ") for note in report.notes)
        sizes.append((tmp_path / f"{len(sizes)}.onnx").stat().st_size)
    assert sizes[0] < 0.25 * (tmp_path / "limited.onnx").stat().st_size
    assert sizes[1] < 0.6 * sizes[0]


def test_untold_a_full_rank_model_is_left_alone_with_reasons() -> None:
    proto = model(
        [node("MatMul", "x w", "h"), node("Relu", "h", "r"), node("MatMul", "r v", "y")],
        {"x": [16, 128]},
        {"y": None},
        {"w": weight(128, 128), "v": weight(128, 128)},
    )
    context = context_of(proto, samples(32, x=[16, 128]))
    (level,) = FactorMatmul().levels(context)
    assert level.specification == "no MatMul is factored"
    assert level.model.serialized() == context.model.serialized()
    assert any(note.startswith("h_node: not factored, rank 41, 64% of its numbers, keeps ") for note in level.notes)


@pytest.mark.slow
def test_untold_levels_cut_deeper_and_deeper() -> None:
    found = list(FactorMatmul().levels(context_of(VIT, images()[:40])))
    sizes = [len(level.model.serialized()) for level in found]
    assert len(sizes) >= 2
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] < VIT.stat().st_size
