"""DynamicQuantizeLSTM against the float LSTM, in every form that it takes, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import GraphProto, ModelProto, TensorProto, helper

import onnxc
from onnxc.passes.quantize_lstm import QuantizeLstm
from onnxc.passes.store_int8 import StoreInt8
from tests.emission import emitted, model, node, proposed, random, samples, weight
from tests.unpriced import pretend_everything_pays

LSTM = QuantizeLstm()
STEPS, BATCH, INPUTS, HIDDEN = 9, 3, 24, 32


def recurrent(
    *,
    directions: int = 1,
    bias: bool = True,
    lengths: bool = False,
    states: bool = False,
    peepholes: bool = False,
    outputs: str = "y last cell",
    **attributes: Any,
) -> ModelProto:
    """An LSTM model with the optional inputs asked for."""
    weights = {
        "w": weight(directions, 4 * HIDDEN, INPUTS, scale=0.3),
        "r": weight(directions, 4 * HIDDEN, HIDDEN, scale=0.2),
    }
    optional: dict[str, np.ndarray] = {}
    optional |= {"b": weight(directions, 8 * HIDDEN, scale=0.2)} if bias else {}
    optional |= {"lens": np.array([STEPS, STEPS - 2, STEPS - 5], np.int32)} if lengths else {}
    if states:
        optional |= {name: weight(directions, BATCH, HIDDEN, scale=0.5) for name in ("h", "c")}
    optional |= {"p": weight(directions, 3 * HIDDEN, scale=0.5)} if peepholes else {}
    given = " ".join(name if name in optional else "_" for name in ("b", "lens", "h", "c", "p"))
    operator = node("LSTM", f"x w r {given}", outputs, hidden_size=HIDDEN, **attributes)
    named = [name for name in outputs.split() if name != "_"]
    return model([operator], {"x": [STEPS, BATCH, INPUTS]}, dict.fromkeys(named), weights | optional)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"direction": "reverse"},
        {"directions": 2, "direction": "bidirectional"},
        {"directions": 2, "direction": "bidirectional", "states": True, "lengths": True},
        {"states": True},
        {"lengths": True},
        {"peepholes": True},
        {"clip": 0.5},
        {"input_forget": 1},
        {"activations": ["HardSigmoid", "Relu", "Tanh"]},
        {"activations": ["Sigmoid", "Elu", "LeakyRelu"], "activation_alpha": [0.7, 0.1]},
        {"outputs": "_ last"},
        {"outputs": "y"},
    ],
)
def test_close_to_the_float_operator(options: dict[str, Any]) -> None:
    found = emitted(recurrent(**options), samples(x=[STEPS, BATCH, INPUTS]), LSTM, ops="ort")
    assert found.kernels == {"DynamicQuantizeLSTM": 1}
    assert found.sqnr_db > 28
    made = found.model.proto()
    assert {entry.domain: entry.version for entry in made.opset_import} == {"": 17, "com.microsoft": 1}
    floats = [t.name for t in made.graph.initializer if t.data_type == TensorProto.FLOAT and len(t.raw_data) > 4000]
    assert floats == []


def test_both_weights_are_codes_also_when_both_could_be_stored() -> None:
    found = emitted(recurrent(), samples(x=[STEPS, BATCH, INPUTS]), LSTM, StoreInt8(), ops="ort")
    assert found.plan.coded == {"w", "r"}
    assert found.kernels == {"DynamicQuantizeLSTM": 1}
    assert len(found.model.serialized()) < 0.45 * len(found.context.model.serialized())


def test_the_report_knows_the_bytes_of_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend_everything_pays(monkeypatch)
    report = onnxc.optimize(recurrent(), passes="quantize-lstm", ops="ort", prices=tmp_path / "prices.json")
    rows = {row.shape[2]: row for row in report.rows if len(row.shape) == 3}
    for width in (INPUTS, HIDDEN):
        assert rows[width].choice == "quantize-lstm"
        assert rows[width].bytes_after < 0.35 * rows[width].bytes_before


def test_a_forbidden_recurrent_weight_keeps_the_site_in_float() -> None:
    found = emitted(
        recurrent(), samples(x=[STEPS, BATCH, INPUTS]), LSTM, StoreInt8(), ops="ort", without=["r", "y_node"]
    )
    assert not found.plan.compute
    assert found.kernels == {"LSTM": 1}


def test_inside_a_body() -> None:
    def body(name: str, sign: str) -> GraphProto:
        nodes = [
            node("LSTM", f"x {name} r{name}", f"s{name}", hidden_size=HIDDEN),
            node(sign, f"s{name}", f"y{name}"),
        ]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(f"y{name}", TensorProto.FLOAT, None)])

    nodes = [
        node("ReduceSum", "x", "total", keepdims=0),
        node("Greater", "total limit", "positive"),
        node("If", "positive", "y", then_branch=body("a", "Neg"), else_branch=body("b", "Abs")),
    ]
    weights: dict[str, np.ndarray] = {"limit": np.asarray(0, np.float32)}
    for name in ("a", "b"):
        weights |= {name: weight(1, 4 * HIDDEN, INPUTS), f"r{name}": weight(1, 4 * HIDDEN, HIDDEN)}
    proto = model(nodes, {"x": [STEPS, BATCH, INPUTS]}, {"y": None}, weights)
    found = emitted(proto, samples(8, x=[STEPS, BATCH, INPUTS]), LSTM, ops="ort")
    assert found.kernels["DynamicQuantizeLSTM"] == 2
    assert found.kernels["Transpose"] == found.kernels["LSTM"] == 0
    assert found.sqnr_db > 25


def test_standard_operators_only() -> None:
    context, found = proposed(recurrent(), [], LSTM)
    assert not found.compute
    assert "--ops ort" in found.refusals[0].reason
    assert len(list(context.sites)) == 1


@pytest.mark.parametrize(("operator", "gates"), [("GRU", 3), ("RNN", 1)])
def test_no_int8_operator(operator: str, gates: int) -> None:
    weights = {"w": weight(1, gates * HIDDEN, INPUTS), "r": weight(1, gates * HIDDEN, HIDDEN)}
    single = node(operator, "x w r", "y", hidden_size=HIDDEN)
    proto = model([single], {"x": [STEPS, BATCH, INPUTS]}, {"y": None}, weights)
    _, found = proposed(proto, [], LSTM, ops="ort")
    assert [refusal.reason for refusal in found.refusals] == [f"{operator} has no int8 operator"]


def test_layout_and_computed_weights_are_refused() -> None:
    proto = recurrent(layout=1)
    _, found = proposed(proto, [], LSTM, ops="ort")
    assert "layout=1" in found.refusals[0].reason
    weights = {"w": weight(1, 4 * HIDDEN, INPUTS), "r0": weight(1, 4 * HIDDEN, HIDDEN)}
    nodes = [node("Neg", "r0", "r"), node("LSTM", "x w r", "y", hidden_size=HIDDEN)]
    _, found = proposed(model(nodes, {"x": [STEPS, BATCH, INPUTS]}, {"y": None}, weights), [], LSTM, ops="ort")
    assert found.refusals[0].reason == "the recurrent weight is computed"


def test_large_codes_do_not_overflow_whatever_the_machine() -> None:
    """Weights of one sign: 8-bit pair sums would saturate on processors without dot products."""
    proto = recurrent()
    for tensor in proto.graph.initializer:
        if tensor.name in {"w", "r"}:
            values = np.abs(random.standard_normal(list(tensor.dims))).astype(np.float32) * 0.05 + 0.1
            tensor.raw_data = values.tobytes()
    found = emitted(proto, samples(x=[STEPS, BATCH, INPUTS]), LSTM, ops="ort")
    assert found.codes.overflowing == {("r", "int8"), ("w", "int8")}
    assert found.sqnr_db > 25
