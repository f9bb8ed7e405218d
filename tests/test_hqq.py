"""Half-quadratic quantization: less lp error than rounding to nearest in every block, and better models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onnxc.cli import main
from onnxc.codes.hqq import BlockCodes, Blocks, hqq, lp_error, nearest
from onnxc.model import Model
from onnxc.sites import find
from onnxc.targets import target
from tests.trained import MODELS, load, samples, sqnr

Rounding = Callable[[Blocks], BlockCodes]


def rounded(model: Model, size: int, rounding: Rounding) -> Model:
    """``model`` with the weights of its linears and convolutions in blocks of ``size`` along their inputs."""
    copy = model.copy()
    for site in find(copy, target("cpu")):
        weight = site.weight
        if site.kind not in ("linear", "convolution") or weight is None or weight.channel_axis is None:
            continue
        first = np.moveaxis(np.asarray(weight.tensor.values, np.float32), weight.channel_axis, 0)
        if first[0].size % size == 0:
            restored = rounding(first.reshape(-1, size)).restored().reshape(first.shape)
            weight.tensor.values = np.ascontiguousarray(np.moveaxis(restored, 0, weight.channel_axis))
    return copy


@pytest.mark.parametrize(
    ("name", "bits", "size", "gain"),
    [("residual_cnn", 4, 32, 0.5), ("residual_cnn", 3, 64, 0.5), ("depthwise_cnn", 3, 32, 1.0)],
)
def test_it_gains_over_rounding_to_nearest(name: str, bits: int, size: int, gain: float) -> None:
    model, data = load(name), samples(name, 16)
    before = sqnr(model, rounded(model, size, lambda blocks: nearest(blocks, 2**bits)), data)
    after = sqnr(model, rounded(model, size, lambda blocks: hqq(blocks, 2**bits)), data)
    assert after > before + gain


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("whole", [True, False])
def test_no_block_gets_worse(bits: int, whole: bool) -> None:
    blocks = np.random.default_rng(0).laplace(size=(300, 64)).astype(np.float32)
    found, start = hqq(blocks, 2**bits, whole_zero=whole), nearest(blocks, 2**bits, whole_zero=whole)
    assert (lp_error(blocks, found) <= lp_error(blocks, start)).all()
    assert lp_error(blocks, found).sum() < (0.99 if bits < 4 else 1.0) * lp_error(blocks, start).sum()
    assert found.codes.max() <= 2**bits - 1
    if whole:
        assert np.array_equal(found.zero, np.rint(found.zero))
        assert 0 <= found.zero.min() <= found.zero.max() <= 2**bits - 1


def test_blocks_are_independent_and_scale_with_their_values() -> None:
    blocks = np.random.default_rng(1).standard_normal((40, 32)).astype(np.float32)
    whole = hqq(blocks, 16)
    alone = [hqq(row[None], 16, iterations=20) for row in blocks]
    assert np.mean([np.array_equal(whole.codes[i], each.codes[0]) for i, each in enumerate(alone)]) > 0.5
    assert np.array_equal(hqq(blocks, 16).codes, whole.codes)


def test_blocks_of_one_value() -> None:
    blocks = np.array([[0, 0, 0, 0], [2, 2, 2, 2], [-3, -3, -3, -3]], np.float32)
    assert np.allclose(hqq(blocks, 16).restored(), blocks, atol=1e-6)


def test_it_is_reached_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the form that is stored, no worse than scales of least squares; of blocks alone, which it says."""
    name, found = "vision_transformer", {}
    for how in ("nearest", "hqq"):
        assert main(optimize(name, tmp_path / f"{how}.onnx", f"store-low-bit:levels=9:block=32:rounding={how}")) == 0
        found[how] = sqnr(load(name), Model.load(tmp_path / f"{how}.onnx"), samples(name, 32))
    assert "block 32, half-quadratic" in capsys.readouterr().out
    assert found["hqq"] > found["nearest"] - 0.5
    assert (tmp_path / "hqq.onnx").stat().st_size < 0.25 * (MODELS / f"{name}.onnx").stat().st_size
    assert main(optimize(name, tmp_path / "no.onnx", "store-low-bit:block=0:rounding=hqq")) == 3
    assert "it takes no block=0" in capsys.readouterr().err


def optimize(name: str, output: Path, passes: str) -> list[str]:
    """The arguments that let any quality through."""
    limits = ["--min-sqnr", "1", "--min-agreement", "0.01", "--max-load-time", "100"]
    files = [str(MODELS / f"{name}.onnx"), str(output), "--prices", str(output.parent / "prices")]
    return ["optimize", *files, *limits, "--passes", passes]
