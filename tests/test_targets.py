"""What a target says is consistent, and holds on the ONNX Runtime that is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxc
from onnxc import deliver
from onnxc.errors import UsageError
from onnxc.macs import multiplications
from onnxc.passes.quantize_static import QuantizeStatic
from onnxc.price import MACS_PER_SECOND, estimated
from onnxc.profiling import FLOAT
from onnxc.session import Ratio
from onnxc.targets import ABSORBED, MOVED_THROUGH, TARGETS, target
from tests.emission import model, node, proposed, samples, weight


def test_unknown_targets_name_those_there_are() -> None:
    assert target("cpu") is TARGETS["cpu"]
    with pytest.raises(UsageError, match=r"unknown target 'gpu'; there are: arm, cpu"):
        target("gpu")


@pytest.mark.parametrize("name", sorted(TARGETS))
class TestEachTarget:
    def test_its_name_is_its_key(self, name: str) -> None:
        assert target(name).name == name

    def test_an_operator_has_one_part(self, name: str) -> None:
        this = target(name)
        parts = [this.joints, this.carriers, this.absorbed]
        assert sum(map(len, parts)) == len(frozenset().union(*parts))

    def test_operators_are_standard_ones(self, name: str) -> None:
        this = target(name)
        for operator in this.joints | this.carriers | this.absorbed | MOVED_THROUGH:
            assert onnx.defs.has(operator, max_inclusive_version=this.opset, domain="")

    def test_codes_fit_their_types(self, name: str) -> None:
        this = target(name)
        assert this.safe_weight_levels <= this.weight_levels <= np.iinfo(np.int8).max
        assert 255 * this.safe_weight_levels * 2 <= np.iinfo(np.int16).max
        assert this.absorbed == ABSORBED

    def test_its_opset_has_per_channel_codes(self, name: str) -> None:
        schema = onnx.defs.get_schema("DequantizeLinear", max_inclusive_version=target(name).opset)
        assert "axis" in schema.attributes
        older = onnx.defs.get_schema("DequantizeLinear", max_inclusive_version=target(name).opset - 1)
        assert "axis" not in older.attributes


def test_an_absorbed_activation_hides_no_multiplications() -> None:
    """Two equal convolutions, a Relu behind the first, any batch: of one the Relu's result is observed, of the other
    its own; their multiplications and estimated times are the same.
    """
    nodes = [node("Conv", "x w", "a", pads=[1] * 4), node("Relu", "a", "r"), node("Conv", "r v", "y", pads=[1] * 4)]
    weights = {"w": weight(8, 8, 3, 3), "v": weight(8, 8, 3, 3)}
    proto = model(nodes, {"x": ["n", 8, 10, 10]}, {"y": None}, weights)
    context, found = proposed(proto, samples(2, x=[1, 8, 10, 10]), QuantizeStatic())
    sites = [site for site in context.sites if site.weight is not None]
    counts = [multiplications(site, context.observations.shapes, context.sites) for site in sites]
    assert counts == [8 * 8 * 9 * 100] * 2
    prices = estimated(context, found)
    assert prices.sites["a_node"][FLOAT] == prices.sites["y_node"][FLOAT] > 8 * 8 * 9 * 100 / MACS_PER_SECOND


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_every_target_gives_a_model_that_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Placement differs, the answers hold; what this machine cannot run is said to be estimated."""
    monkeypatch.setattr(deliver, "speed_of", lambda *_: Ratio(2.0, 2.0, 2.0, 2.0, 1.0))
    models = Path(__file__).parents[1] / "models"
    report = onnxc.optimize(
        models / "residual_cnn.onnx", tmp_path / "out.onnx", calib=models / "data" / "residual_cnn_calib.npz",
        target=name, passes="quantize-static,quantize-dynamic,store-int8", prices=tmp_path / "prices.json",
    )  # fmt: skip
    assert report.changed
    assert report.comparison is not None
    assert report.comparison.sqnr_db > 20
    wanted = TARGETS[name]
    assert any("estimates" in note for note in report.notes) == (not wanted.measured)
    assert (report.comparison.ratio is None) == (not wanted.measured)
    assert bool(report.comparison.kernels_new) == wanted.measured  # kernels are those of this machine
    said = {row.specification for row in report.rows if row.choice == "quantize-static"}
    if "static" in wanted.ways:
        assert f"int8, {'int8' if wanted.signed else 'uint8'} activations (mse)" in said
    made = onnx.load(tmp_path / "out.onnx")
    zeros = {each.name: onnx.numpy_helper.to_array(each) for each in made.graph.initializer}
    kinds = {zeros[node.input[2]].dtype for node in made.graph.node if node.op_type == "QuantizeLinear"}
    if not wanted.ways or wanted.measured:
        assert wanted.ways or not kinds
    elif "static" in wanted.ways:
        assert kinds == {np.dtype(np.int8 if wanted.signed else np.uint8)}


def test_help_and_docs_name_every_target_and_what_it_decides() -> None:
    """The table is the data: ways, activations, what int8 is estimated to gain, and where that comes from."""
    page = (Path(__file__).parents[1] / "docs" / "how-it-decides.md").read_text(encoding="utf-8")
    rows = {
        row.split("`")[1]: [cell.strip() for cell in row.split("|")[2:-1]]
        for row in page.split("\n")
        if row[:3] == "| `"
    }
    assert list(rows) == list(TARGETS)
    for name, this in TARGETS.items():
        ranges, blocks, activations, gain, source = rows[name]
        assert ("static" in ranges, "run time" in ranges) == ("static" in this.ways, "dynamic" in this.ways)
        assert blocks == ("yes" if "decode" in this.ways else "no")
        assert activations == ("int8, zero point 0" if this.signed else "uint8" if this.ways else "float")
        assert gain == ("measured" if this.measured else f"{this.gain:.1f}" if this.ways else "")
        label = source.partition("][")[2].rstrip("]")
        assert this.measured or f"[{label}]: {this.source}\n" in page
    help_text = subprocess.run(
        [sys.executable, "-m", "onnxc", "optimize", "--help"], capture_output=True, check=True, text=True
    )
    assert all(name in help_text.stdout.partition("--target NAME  ")[2] for name in TARGETS)
