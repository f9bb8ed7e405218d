"""Sequences and optionals as inputs: made up in the declared shape of their elements, known to --shape and inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxc.data import generate
from onnxc.errors import DataError, UsageError
from onnxc.inspection import inspect
from onnxc.model import Model
from onnxc.samples.batches import as_run
from onnxc.session import Session


def made(kind: str, axes: list[int | str]) -> onnx.ModelProto:
    """A matrix product with what an optional holds, or with the elements of a sequence put together."""
    element = helper.make_tensor_type_proto(TensorProto.FLOAT, axes)
    if kind == "optional":
        nodes, whole = [helper.make_node("OptionalGetElement", ["s"], ["x"])], helper.make_optional_type_proto(element)
    else:
        nodes = [helper.make_node("ConcatFromSequence", ["s"], ["x"], axis=0)]
        whole = helper.make_sequence_type_proto(element)
    nodes.append(helper.make_node("MatMul", ["x", "w"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_value_info("s", whole)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["k", 32])],
        [numpy_helper.from_array(np.ones((64, 32), np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.mark.parametrize(("kind", "rows"), [("optional", 1), ("sequence", 2)])
def test_elements_have_the_declared_shape_or_the_one_asked_for(kind: str, rows: int, tmp_path: Path) -> None:
    proto = made(kind, ["n", 64])
    model, session = Model.load(proto), Session(proto)
    for shapes, length in (({}, 1), ({"s": (5, 64)}, 5)):
        for sample in generate(model, session, shapes=shapes):
            assert session.run(sample)["y"].shape == (rows * length, 32)
    with pytest.raises(UsageError, match="63 is not possible, the model takes nx64"):
        generate(model, session, shapes={"s": (5, 63)})
    onnx.save(proto, tmp_path / "in.onnx")
    assert inspect(tmp_path / "in.onnx").inputs == [
        ("s", {1: "optional float32", 2: "sequence of float32"}[rows], "nx64")
    ]


def test_a_shape_helps_where_none_is_declared() -> None:
    proto = made("sequence", ["n", 64])
    proto.graph.input[0].type.sequence_type.elem_type.tensor_type.ClearField("shape")
    model, session = Model.load(proto), Session(proto)
    with pytest.raises(DataError, match="--shape"):
        generate(model, session)
    assert len(generate(model, session, shapes={"s": (3, 64)})) > 0


def test_data_is_repeated_inside() -> None:
    inputs = Session(made("sequence", ["n", 64])).inputs
    sample: dict[str, Any] = {"s": [np.arange(64, dtype=np.float32)[None]] * 3}  # a list is a sequence
    found = as_run([sample], inputs, shapes={"s": (2, 64)})[0]["s"]
    assert [each.shape for each in found] == [(2, 64)] * 3
    with pytest.raises(UsageError, match="arrays of rank 2"):
        as_run([sample], inputs, shapes={"s": (64,)})
