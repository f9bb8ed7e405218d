"""What a target says is consistent, and holds on the ONNX Runtime that is installed."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxc.errors import UsageError
from onnxc.targets import ABSORBED, MOVED_THROUGH, TARGETS, target


def test_unknown_targets_name_those_there_are() -> None:
    assert target("cpu") is TARGETS["cpu"]
    with pytest.raises(UsageError, match=r"unknown target 'gpu'; there are: cpu"):
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
