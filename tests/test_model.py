"""Nothing of a model is lost on the way through; edits reach into bodies and keep the names of outputs."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxc.errors import ModelError
from onnxc.model import Constant, Model, Variable
from onnxc.naming import name_nodes

INFO = helper.make_tensor_value_info
FLOAT = TensorProto.FLOAT


def tensor(name: str, values: Any, dtype: Any = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def build(nodes: list[Any], weights: list[TensorProto] = [], **more: Any) -> ModelProto:  # noqa: B006 - not mutated
    """A model from "x" [batch, 4] to "y" [batch, 4]."""
    inputs, outputs = [INFO("x", FLOAT, ["batch", 4])], [INFO("y", FLOAT, ["batch", 4])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("custom", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10, **more)


def with_branches() -> ModelProto:
    """An If whose branches read an outer tensor, an outer weight, and weights of their own."""

    def branch(op: str) -> onnx.GraphProto:
        nodes = [helper.make_node(op, ["h", "w"], ["b"]), helper.make_node("Add", ["b", "own"], ["out"])]
        return helper.make_graph(nodes, op, [], [INFO("out", FLOAT, None)], [tensor("own", [5.0])])

    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("If", ["c"], ["y"], then_branch=branch("Mul"), else_branch=branch("Sub")),
    ]
    return build(nodes, [tensor("w", [2.0] * 4), tensor("c", True, bool)])


def run(model: Model | ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    data = model.serialized() if isinstance(model, Model) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    outputs: list[np.ndarray] = onnxruntime.InferenceSession(data, options).run(None, feeds)
    return outputs


X = np.array([[-1, 2, -3, 4]], np.float32)


def rich() -> ModelProto:
    """Everything that graphsurgeon drops, in one model."""
    model = with_branches()
    model.doc_string, model.domain, model.model_version = "doc", "here", 7
    model.producer_name = "somebody"
    model.metadata_props.add(key="k", value="v")
    graph = model.graph
    graph.doc_string = "graph doc"
    graph.metadata_props.add(key="graph", value="1")
    graph.input[0].doc_string = "in"
    graph.input[0].metadata_props.add(key="input", value="1")
    graph.input[0].type.denotation = "IMAGE"
    graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    graph.node[0].doc_string = "node doc"
    graph.node[0].name = "relu"
    graph.node[0].metadata_props.add(key="node", value="1")
    graph.initializer[0].doc_string = "weight doc"
    graph.initializer[0].metadata_props.add(key="weight", value="1")
    for name, data_type in (
        ("i4", TensorProto.INT4),
        ("f8", TensorProto.FLOAT8E4M3FNUZ),
        ("u2", TensorProto.UINT2),
    ):
        graph.initializer.append(helper.make_tensor(name, data_type, [3], [1, 0, 1]))
    graph.initializer.append(helper.make_tensor("text", TensorProto.STRING, [2], [b"a", b"b"]))
    graph.sparse_initializer.append(helper.make_sparse_tensor(tensor("sparse", [3.0]), tensor("", [1], np.int64), [4]))
    graph.value_info.extend([INFO("h", FLOAT, ["batch", 4]), INFO("w", FLOAT, [4]), INFO("nowhere", FLOAT, [1])])
    note = graph.quantization_annotation.add(tensor_name="h")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w")
    odd = helper.make_node("Odd", ["h", ""], ["", "unread"], domain="custom", overload="second")
    odd.attribute.append(helper.make_attribute("tensors", [tensor("t", [1.0])]))
    odd.attribute.append(helper.make_attribute("raw", b"\xff\xfe"))
    odd.attribute.append(helper.make_attribute("none", [], attr_type=onnx.AttributeProto.FLOATS))
    odd.attribute.append(helper.make_attribute("kind", graph.input[0].type))
    odd.attribute.append(helper.make_attribute("nan", float("nan"), doc_string="not a number"))
    odd.attribute.append(helper.make_attribute("bodies", [graph.node[1].attribute[0].g]))
    graph.node.append(odd)
    body = helper.make_node("Relu", ["a"], ["b"], doc_string="inside")
    for overload in ("", "second"):
        function = helper.make_function("custom", "Odd", ["a"], ["b"], [body], [helper.make_opsetid("", 17)])
        function.overload = overload
        function.metadata_props.add(key="function", value=overload)
        model.functions.append(function)
    training = model.training_info.add()
    training.algorithm.name = "training"
    return model


class TestLossless:
    def test_untouched(self) -> None:
        model = rich()
        loaded = Model.load(model)
        assert loaded.proto() == model
        assert loaded.copy().copy().proto() == model
        loaded.tidy()
        assert loaded.proto() == model

    def test_idempotent_to_the_byte(self) -> None:
        first = Model.load(rich()).serialized()
        assert Model.load(onnx.load_from_string(first)).serialized() == first

    def test_touching_values_keeps_everything_else(self) -> None:
        model = rich()
        loaded = Model.load(model)
        for weight in loaded.graph.weights:
            weight.values = weight.values.copy()
        after = loaded.proto()
        assert [(w.name, w.data_type) for w in after.graph.initializer if w.name != "sparse"] == [
            (w.name, w.data_type) for w in model.graph.initializer
        ]
        assert after.graph.initializer[0].doc_string == "weight doc"
        for weight in model.graph.initializer:
            new = next(item for item in after.graph.initializer if item.name == weight.name)
            assert numpy_helper.to_array(new).tolist() == numpy_helper.to_array(weight).tolist()
        sparse = next(item for item in after.graph.initializer if item.name == "sparse")
        assert numpy_helper.to_array(sparse).tolist() == [0, 3, 0, 0]

    def test_weights_of_bodies_stay_there(self) -> None:
        after = Model.load(with_branches()).proto()
        assert [w.name for w in after.graph.initializer] == ["w", "c"]
        assert [w.name for w in after.graph.node[1].attribute[0].g.initializer] == ["own"]

    def test_inputs_with_defaults(self) -> None:
        model = build([helper.make_node("Add", ["x", "w"], ["y"])], [tensor("w", [1.0] * 4)])
        model.graph.input.append(INFO("w", FLOAT, [4]))
        loaded = Model.load(model)
        assert loaded.proto() == model
        assert isinstance(loaded.graph.inputs[1], Variable)  # a feed overrides it: no pass may take it for constant
        model.ir_version = 3
        model.graph.node[0].doc_string = "edited"
        loaded = Model.load(model)
        assert loaded.proto() == model
        assert [item.name for item in loaded.graph.inputs] == ["x"]
        assert isinstance(loaded.graph.nodes[0].inputs[1], Constant)

    def test_a_new_weight_lifts_ir_version_3(self) -> None:
        model = build([helper.make_node("Add", ["x", "w"], ["y"])], [tensor("w", [1.0] * 4)])
        model.graph.input.append(INFO("w", FLOAT, [4]))
        model.ir_version = 3
        loaded = Model.load(model)
        loaded.redirect(loaded.graph.weights[0], loaded.constant("w", np.full(4, 2, np.float32)))
        loaded.tidy()
        after = loaded.proto()
        assert after.ir_version == 4
        assert [item.name for item in after.graph.input] == ["x"]
        assert [item.name for item in after.graph.initializer] == ["w_1"]

    def test_edited_attributes(self) -> None:
        node = helper.make_node("LeakyRelu", ["x"], ["y"], alpha=0.5, doc_string="keep")
        loaded = Model.load(build([node]))
        attrs = loaded.graph.nodes[0].attrs
        attrs["alpha"] = 1  # stays a float
        attrs["extra"] = [1, 2]
        after = loaded.proto().graph.node[0]
        assert (after.attribute[0].type, after.attribute[0].f) == (onnx.AttributeProto.FLOAT, 1.0)
        assert list(after.attribute[1].ints) == [1, 2]
        assert after.doc_string == "keep"

    def test_values_of_constant_nodes(self) -> None:
        sparse = helper.make_sparse_tensor(tensor("s", [3.0]), tensor("", [1], np.int64), [2])
        for attribute, expected in (
            ({"value": tensor("v", [1.5])}, np.array([1.5], np.float32)),
            ({"value_float": 2.5}, np.float32(2.5)),
            ({"value_floats": [1.0, 2.0]}, np.array([1, 2], np.float32)),
            ({"value_int": 3}, np.int64(3)),
            ({"value_ints": [4, 5]}, np.array([4, 5])),
            ({"value_string": "a"}, np.array("a", object)),
            ({"value_strings": ["a", "b"]}, np.array(["a", "b"], object)),
            ({"sparse_value": sparse}, np.array([0, 3], np.float32)),
        ):
            nodes = [
                helper.make_node("Constant", [], ["k"], **attribute),
                helper.make_node("Relu", ["x"], ["y"]),
            ]
            loaded = Model.load(build(nodes))
            values = loaded.values(loaded.graph.nodes[0].outputs[0])
            assert values.dtype == expected.dtype
            assert values.tolist() == expected.tolist()
            with pytest.raises(ModelError, match="not constant"):
                loaded.values(loaded.graph.inputs[0])


class TestEditing:
    def test_redirect_reaches_bodies(self) -> None:
        model = Model.load(with_branches())
        h, w = model.graph.nodes[0].outputs[0], model.graph.weights[0]
        new = model.insert("Neg", [h], ["h_neg"]).outputs[0]
        model.redirect(h, new)
        model.redirect(w, model.constant("w", np.full(4, 3, np.float32)))
        model.tidy()
        assert [node.op for node in model.graph.nodes] == ["Relu", "Neg", "If"]
        assert [weight.name for weight in model.graph.weights] == ["c", "w_1"]
        assert run(model, x=X)[0].tolist() == [[5, 5 - 6, 5, 5 - 12]]

    def test_only_some_readers(self) -> None:
        nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Mul", ["a", "x"], ["y"])]
        model = Model.load(build(nodes))
        new = model.insert("Neg", [model.graph.inputs[0]], ["n"]).outputs[0]
        model.redirect(model.graph.inputs[0], new, only=[model.graph.nodes[1]])
        model.tidy()
        assert run(model, x=X)[0].tolist() == [[0, -4, 0, -16]]

    @pytest.mark.parametrize("how", ["after", "instead", "constant", "input"])
    def test_outputs_keep_their_names(self, how: str) -> None:
        model = Model.load(build([helper.make_node("Relu", ["x"], ["y"], name="relu")]))
        old, x = model.graph.outputs[0], model.graph.inputs[0]
        assert isinstance(x, Variable)
        new, expected = {
            "after": lambda: (model.insert("Neg", [old], ["new"]).outputs[0], [[0, -2, 0, -4]]),
            "instead": lambda: (model.insert("Abs", [x], ["new"]).outputs[0], [[1, 2, 3, 4]]),
            "constant": lambda: (model.constant("k", np.ones((1, 4), np.float32)), [[1, 1, 1, 1]]),
            "input": lambda: (x, X.tolist()),
        }[how]()
        model.redirect(old, new)
        model.tidy()
        after = model.proto()
        assert after.graph.output == build([]).graph.output  # its type and shape too
        assert run(after, x=X)[0].tolist() == expected
        assert len(after.graph.node) == (2 if how == "after" else 1)

    def test_an_output_of_a_body(self) -> None:
        model = Model.load(with_branches())
        body = model.graph.nodes[1].bodies()[0]
        new = model.insert("Neg", [body.outputs[0]], ["neg"], graph=body).outputs[0]
        model.redirect(body.outputs[0], new)
        model.tidy()
        assert body.outputs[0].name == "out"
        bodies = [graph.name for graph in model.graphs()]
        assert sorted(bodies) == ["Mul", "Sub", "g"]
        assert run(model, x=X)[0].tolist() in ([[-5, -9, -5, -13]], [[5, 9, 5, 13]])

    def test_tidy_leaves_what_the_file_had_unused(self) -> None:
        nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Exp", ["x"], ["nobody"])]
        model = Model.load(build(nodes, [tensor("spare", [1.0])]))
        left = model.insert("Neg", [model.constant("mine", np.ones(1, np.float32))], ["n"])
        model.insert("Abs", [left.outputs[0]], ["a"])
        model.tidy()
        assert [node.op for node in model.graph.nodes] == ["Relu", "Exp"]
        assert [weight.name for weight in model.graph.weights] == ["spare"]

    def test_tidy_removes_a_dead_if_and_what_only_it_read(self) -> None:
        model = Model.load(with_branches())
        model.redirect(model.graph.outputs[0], model.insert("Neg", [model.graph.inputs[0]], ["n"]).outputs[0])
        model.tidy()
        assert [node.op for node in model.graph.nodes] == ["Neg"]
        assert model.graph.weights == []

    def test_tidy_takes_a_reader_off_once(self) -> None:
        """A node left over in a body, then the whole If: the outer weight is read elsewhere and stays."""
        model = Model.load(with_branches())
        weight, x = model.graph.weights[0], model.graph.inputs[0]
        model.insert("Neg", [weight], ["left"], graph=model.graph.nodes[1].bodies()[0])
        model.redirect(model.graph.outputs[0], model.insert("Mul", [x, weight], ["z"]).outputs[0])
        model.tidy()
        assert [node.op for node in model.graph.nodes] == ["Mul"]
        assert model.graph.weights == [weight]

    def test_a_weight_of_a_body_read_outside_moves_out(self) -> None:
        model = Model.load(with_branches())
        own = model.graph.nodes[1].bodies()[0].weights[0]
        y = model.graph.outputs[0]
        model.redirect(y, model.insert("Add", [y, own], ["z"]).outputs[0])
        after = model.proto()  # before tidy, too
        assert "own" in [weight.name for weight in after.graph.initializer]
        model.tidy()
        assert model.proto().graph.initializer == after.graph.initializer

    def test_names(self) -> None:
        model = Model.load(with_branches())
        assert [model.unique(name) for name in ("own", "own", "new", "new")] == [
            "own_1",
            "own_2",
            "new",
            "new_1",
        ]
        node = model.insert("Relu", [model.graph.inputs[0]], ["h"])
        assert (node.name, node.outputs[0].name) == ("h_1", "h_1")

    def test_files_do_without_the_names_that_nodes_were_given(self) -> None:
        nodes = [helper.make_node("Relu", ["x"], ["h"], "mine"), helper.make_node("Relu", ["h"], ["y"])]
        model = Model.load(build(nodes))
        before = len(model.serialized())
        name_nodes(model)
        copy = model.copy()
        assert [node.name for node in copy.graph.nodes] == ["mine", "Relu_y"]
        assert [node.name for node in copy.proto().graph.node] == ["mine", "Relu_y"]
        assert [node.name for node in copy.proto(named=False).graph.node] == ["mine", ""]
        assert len(copy.serialized(named=False)) == before == len(copy.serialized()) - 2 - len("Relu_y")

    def test_new_domain_is_imported(self) -> None:
        model = Model.load(build([helper.make_node("Relu", ["x"], ["y"])]))
        model.insert("FusedGemm", [model.graph.inputs[0], None], ["q"], domain="com.microsoft", scale=np.ones(2))
        assert model.opsets == {"": 17, "custom": 1, "com.microsoft": 1}
        assert model.proto().graph.node[1].attribute[0].type == onnx.AttributeProto.TENSOR
        model.set_opset(25)
        assert (model.opset, model.ir_version) == (25, 13)

    def test_a_copy_is_independent_and_shares_weights(self) -> None:
        model = Model.load(with_branches())
        before = model.serialized()
        copy = model.copy()
        copy.graph.nodes[0].name = "other"
        copy.graph.nodes[1].bodies()[0].nodes[0].attrs["a"] = 1
        copy.graph.weights[0].values = np.zeros(4, np.float32)
        copy.metadata["a"] = "b"
        copy.set_opset(18)
        assert model.serialized() == before
        assert model.copy().graph.weights[0].values is model.graph.weights[0].values

    def test_a_skeleton_is_the_graph_without_its_weights(self) -> None:
        large = np.arange(4 * 4096, dtype=np.float32).reshape(4, 4096)
        nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "v"], ["y"])]
        model = build(nodes, [tensor("w", large), tensor("v", large.T)])
        loaded = Model.load(model)
        skeleton, lifted = loaded.skeleton(1 << 12)
        assert skeleton.ByteSize() < 500
        assert [item.name for item in skeleton.graph.input] == ["x", "w", "v"]
        assert {name: values.tolist() for name, values in lifted.items()} == {
            "w": large.tolist(),
            "v": large.T.tolist(),
        }
        assert loaded.proto() == model

    def test_long_chains_sort_without_recursion(self) -> None:
        count = 20_000
        nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"]) for i in range(count)]
        random.Random(0).shuffle(nodes)
        nodes += [helper.make_node("Relu", ["x"], ["t0"]), helper.make_node("Relu", [f"t{count}"], ["y"])]
        model = Model.load(build(nodes))
        model.tidy()
        assert [node.outputs[0].name for node in model.graph.nodes[:3]] == ["t0", "t1", "t2"]
        assert model.graph.nodes[-1].outputs[0].name == "y"

    def test_a_circle_is_refused(self) -> None:
        nodes = [
            helper.make_node("Add", ["x", "b"], ["a"], name="first"),
            helper.make_node("Relu", ["a"], ["b"]),
        ]
        with pytest.raises(ModelError, match="waits for its own result"):
            Model.load(build([*nodes, helper.make_node("Relu", ["b"], ["y"])]))
