"""Random small graphs through optimize: the result holds the floor and is the same every time."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto

from onnxc import optimize
from onnxc.answers import class_scores
from onnxc.data import generate
from onnxc.model import Model
from onnxc.quality import FLOOR_SQNR_DB
from onnxc.reference import ReferenceOutputs
from onnxc.session import Session
from tests.builders import Builder, F
from tests.unpriced import pretend_everything_pays

ROWS = ["linear", "gemm", "gelu", "relu", "residual", "norm", "concat", "reshape", "softmax", "clip", "twice"]
IMAGES = [
    "conv",
    "depthwise",
    "grouped",
    "strided",
    "relu",
    "residual",
    "concat",
    "pool",
    "clip",
    "swish",
    "scale",
    "bn",
]


def rows_model(steps: list[str], seed: int) -> tuple[ModelProto, tuple[int, ...]]:
    """A chain over [n, width]."""
    b = Builder(seed)
    h, width = "x", 64
    for step in steps:
        before = h
        if step == "linear":
            wider = int(b.random.choice([64, 96]))
            h, width = b.add("MatMul", h, b.weight(width, wider)), wider
            h = b.add("Add", h, b.weight(width)) if b.random.random() < 0.5 else h
        elif step == "gemm":
            h = b.add("Gemm", h, b.weight(64, width), b.weight(64), transB=1)
            width = 64
        elif step == "gelu":
            half = b.add("Mul", h, b.value(np.float32(0.5)))
            h = b.add("Mul", half, b.add("Add", b.add("Erf", h), b.value(np.float32(1))))
        elif step == "residual":
            h = b.add("Add", h, b.add("MatMul", h, b.weight(width, width)))
        elif step == "norm":
            h = b.add("LayerNormalization", h, b.value(np.ones(width, np.float32)), axis=-1)
        elif step == "concat" and width < 200:
            h, width = b.add("Concat", h, before, axis=1), 2 * width
        elif step == "reshape":
            h = b.add("Reshape", b.add("Reshape", h, b.ints(0, 4, -1)), b.ints(0, width))
        elif step == "softmax":
            h = b.add("Softmax", h, axis=-1)
        elif step == "clip":
            h = b.add("Clip", h, b.value(np.float32(-1)), b.value(np.float32(1)))
        elif step == "relu":
            h = b.add("Relu", h)
        elif step == "twice":
            weight = b.weight(width, width)
            h = b.add("Sub", b.add("MatMul", h, weight), b.add("MatMul", b.add("Tanh", h), weight))
    b.add("Identity", h, out="y")
    return b.model([("x", F, ["n", 64])], [("y", F, ["n", width])]), (64,)


def images_model(steps: list[str], seed: int) -> tuple[ModelProto, tuple[int, ...]]:
    """A chain over [n, channels, side, side] that ends in a linear head, or in the island itself."""
    b = Builder(seed)
    h, channels, side = "x", 8, 10
    for step in steps:
        before = h
        deep = {"conv": 1, "strided": 1, "grouped": 4, "depthwise": channels}.get(step)
        if deep:
            out = channels if step == "depthwise" else 16
            weight = b.weight(out, channels // deep, 3, 3, scale=0.4 / np.sqrt(channels // deep))
            stride = 2 if step == "strided" and side > 4 else 1
            bias = [b.weight(out, scale=0.2)] if b.random.random() < 0.7 else []
            h = b.add("Conv", h, weight, *bias, pads=[1] * 4, strides=[stride] * 2, group=deep)
            channels, side = out, -(-side // stride)
        elif step == "residual":
            weight = b.weight(channels, channels, 1, 1, scale=1 / np.sqrt(channels))
            h = b.add("Add", h, b.add("Relu", b.add("Conv", h, weight)))
        elif step == "concat" and channels < 40:
            h, channels = b.add("Concat", h, b.add("Sigmoid", before), axis=1), 2 * channels
        elif step == "pool" and side > 3:
            h, side = b.add("MaxPool", h, kernel_shape=[2, 2], strides=[2, 2]), side // 2
        elif step == "clip":
            h = b.add("Clip", h, b.value(np.float32(0)), b.value(np.float32(6)))
        elif step == "relu":
            h = b.add("Relu", h)
        elif step == "swish":
            h = b.add("Mul", h, b.add("Sigmoid", h))
        elif step == "scale":
            h = b.add("Mul", h, b.add("Sigmoid", b.add("GlobalAveragePool", h)))
        elif step == "bn":
            parts = [b.value((1 + 0.1 * b.random.standard_normal(channels)).astype(np.float32)) for _ in range(2)]
            h = b.add(
                "BatchNormalization",
                h,
                parts[0],
                b.weight(channels, scale=0.1),
                b.weight(channels, scale=0.1),
                parts[1],
            )
    if seed % 2:
        h = b.add("Flatten", b.add("GlobalAveragePool", h))
        h = b.add("Gemm", h, b.weight(12, channels), b.weight(12), transB=1)
    b.add("Identity", h, out="y")
    return b.model([("x", F, ["n", 8, 10, 10])], [("y", F, None)]), (8, 10, 10)


@pytest.mark.parametrize("family", ["rows", "images"])
def test_random_graphs(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_everything_pays(monkeypatch)
    steps = st.lists(st.sampled_from(ROWS if family == "rows" else IMAGES), min_size=1, max_size=7)
    changed = []

    @settings(
        max_examples=30, deadline=None, derandomize=True, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )  # fmt: skip
    @given(steps=steps, seed=st.integers(0, 99), real=st.booleans())
    def check(steps: list[str], seed: int, real: bool) -> None:
        made, shape = (rows_model if family == "rows" else images_model)(steps, seed)
        random = np.random.default_rng(seed)
        data = [{"x": random.standard_normal((4, *shape)).astype(np.float32)} for _ in range(4)]
        with tempfile.TemporaryDirectory() as name:
            source, out, again = (Path(name, f"{each}.onnx") for each in ("in", "out", "again"))
            source.write_bytes(made.SerializeToString())
            calib = data if real else None
            if not real:  # the floor is promised on what optimize() makes up
                model = Model.load(source)
                data = [dict(sample) for sample in generate(model, Session(source))]
            report = optimize(source, out, calib=calib, prices=Path(name, "prices"))
            optimize(source, again, calib=calib, prices=Path(name, "prices"))
            assert out.read_bytes() == again.read_bytes()
            assert out.stat().st_size <= source.stat().st_size
            changed.append(report.changed)
            reference = ReferenceOutputs(Session(source), data, class_scores(Model.load(source)))
            found = reference.judge(Session(out))
            assert found.problem is None
            assert found.sqnr_db >= FLOOR_SQNR_DB - 0.01

    check()
    assert sum(changed) > len(changed) // 2
