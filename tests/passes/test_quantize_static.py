"""Every trap of ONNX Runtime's int8 kernels: what quantize-static writes is run, its kernels counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import NodeProto

from onnxc.contract.fields import configured
from onnxc.errors import RecipeError
from onnxc.passes.quantize_static import QuantizeStatic
from onnxc.sites import clip_range
from tests.emission import Emission, Shape, emitted, model, node, proposed, random, samples, weight

STATIC = QuantizeStatic()
BATCH = [1, 16, 12, 12]


def linear(nodes: list[NodeProto], dims: Shape, weights: dict[str, np.ndarray], shape: list[int]) -> Emission:
    return emitted(model(nodes, {"x": dims}, {"y": [*dims[:-1], 128]}, weights), samples(x=shape), STATIC)


def conv(source: str, result: str, number: int = 0, **attributes: Any) -> NodeProto:
    """A Conv reading weights ``w0 b0``, ``w1 b1`` ..., padded to keep a 3x3 kernel's size."""
    if "auto_pad" not in attributes:
        attributes.setdefault("pads", [1, 1, 1, 1])
    return node("Conv", f"{source} w{number} b{number}", result, **attributes)


def network(nodes: list[NodeProto], shape: list[int] | None = None, **weights: np.ndarray) -> Emission:
    """The emission of a model with one input x; weights that are not given are 16 to 16 channels, 3x3."""
    shape = shape or BATCH
    for each in nodes:
        if each.op_type == "Conv":
            weights.setdefault(each.input[1], weight(16, 16, 3, 3))
            weights.setdefault(each.input[2], weight(len(weights[each.input[1]]), scale=0.1))
    return emitted(model(nodes, {"x": shape}, {"y": None}, weights), samples(x=shape), STATIC)


class TestLinears:
    @pytest.mark.parametrize(
        ("dims", "shape"),
        [
            (["n", 96], [8, 96]),
            ([8, 96], [8, 96]),
            (["b", "s", 96], [2, 6, 96]),
            ([2, 6, 96], [2, 6, 96]),
            ([1, 2, 3, 96], [1, 2, 3, 96]),
        ],
    )
    def test_matmul_writes_float(self, dims: Shape, shape: list[int]) -> None:
        found = linear([node("MatMul", "x w", "y")], dims, {"w": weight(96, 128)}, shape)
        assert found.kernels == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1}
        assert found.sqnr_db > 33

    @pytest.mark.parametrize("operands", ["m b", "b m"])
    @pytest.mark.parametrize(("dims", "shape"), [(["n", 96], [8, 96]), ([8, 96], [8, 96])])
    def test_matmul_and_add_become_one_kernel(self, dims: Shape, shape: list[int], operands: str) -> None:
        nodes = [node("MatMul", "x w", "m"), node("Add", operands, "y")]
        found = linear(nodes, dims, {"w": weight(96, 128), "b": weight(128)}, shape)
        assert found.kernels == {"QuantizeLinear": 1, "QGemm": 1}
        assert found.sqnr_db > 33

    @pytest.mark.parametrize("shape", [[2, 6, 96], [1, 2, 3, 96]])
    def test_a_float_bias_on_a_static_shape_would_run_in_float(self, shape: list[int]) -> None:
        nodes = [node("MatMul", "x w", "m"), node("Add", "m b", "y")]
        found = linear(nodes, shape, {"w": weight(96, 128), "b": weight(128)}, shape)
        assert found.kernels == {"QuantizeLinear": 1, "Reshape": 2, "QGemm": 1}

    @pytest.mark.parametrize("dims", [["b", "s", 96], ["b", 6, 96], [2, "s", 96]])
    def test_dynamic_axes_keep_the_integer_kernel(self, dims: Shape) -> None:
        nodes = [node("MatMul", "x w", "m"), node("Add", "m b", "y")]
        found = linear(nodes, dims, {"w": weight(96, 128), "b": weight(128)}, [2, 6, 96])
        assert found.kernels["MatMulIntegerToFloat"] == 1
        assert found.kernels["Gemm"] == found.kernels["MatMul"] == 0
        assert found.leftovers == []

    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("transposed", [0, 1])
    @pytest.mark.parametrize("dims", [["n", 96], [8, 96]])
    def test_gemm(self, dims: Shape, transposed: int, *, bias: bool) -> None:
        weights = {"w": weight(*([128, 96] if transposed else [96, 128])), "b": weight(128)}
        gemm = node("Gemm", "x w b" if bias else "x w", "y", transB=transposed)
        found = linear([gemm], dims, weights, [8, 96])
        assert found.kernels == {"QuantizeLinear": 1, "QGemm": 1}
        assert found.sqnr_db > 33

    def test_weight_zero_points_are_always_written(self) -> None:
        """Without them Gemm runs in float behind a DequantizeLinear of the whole weight."""
        gemm = node("Gemm", "x w b", "y")
        found = linear([gemm], ["n", 96], {"w": weight(96, 128), "b": weight(128)}, [8, 96])
        made = found.model.proto()
        (restore,) = [n for n in made.graph.node if n.op_type == "DequantizeLinear" and n.input[0] == "w_q"]
        shapes = {t.name: tuple(t.dims) for t in made.graph.initializer}
        assert shapes[restore.input[2]] == (128,)

    def test_linears_that_read_one_tensor_share_its_codes(self) -> None:
        nodes = [node("MatMul", f"x w{i}", f"m{i}") for i in range(3)] + [node("Sum", "m0 m1 m2", "y")]
        found = linear(nodes, ["b", "s", 96], {f"w{i}": weight(96, 128) for i in range(3)}, [2, 6, 96])
        assert found.kernels == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 3, "Sum": 1}

    def test_a_shared_weight_is_stored_once(self) -> None:
        nodes = [node("MatMul", "x w", "m"), node("MatMul", "m w", "y")]
        found = emitted(model(nodes, {"x": ["n", 96]}, {"y": None}, {"w": weight(96, 96)}), samples(x=[8, 96]), STATIC)
        sizes = [len(t.raw_data) for t in found.model.proto().graph.initializer]
        assert sorted(sizes)[-2:] == [96 * 4, 96 * 96]
        assert found.kernels["QLinearMatMul"] == found.kernels["MatMulIntegerToFloat"] == 1

    def test_tiny_weight_scales_leave_the_bias_in_range(self) -> None:
        """Channel 3 is nearly zero but has a bias of 100: |b / (sx sw)| would be 1e10 with its own scale."""
        values, bias = weight(96, 128), weight(128)
        values[:, 3] = 1e-9
        bias[3] = 100
        found = linear([node("Gemm", "x w b", "y")], ["n", 96], {"w": values, "b": bias}, [8, 96])
        codes = next(t for t in found.model.graph.tensors().values() if t.name == "b_q").values
        assert np.abs(codes.astype(np.int64)).max() <= 2**30 + 128
        assert found.kernels == {"QuantizeLinear": 1, "QGemm": 1}
        assert found.sqnr_db > 33
        sample = samples(1, x=[8, 96])[0]
        np.testing.assert_allclose(found.session.run(sample)["y"][:, 3], 100, rtol=1e-6)

    def test_a_row_of_zeros_stays_zero(self) -> None:
        values = weight(96, 128)
        values[:, 5] = 0
        found = linear([node("MatMul", "x w", "y")], ["n", 96], {"w": values}, [8, 96])
        assert not found.session.run(samples(1, x=[8, 96])[0])["y"][:, 5].any()

    @pytest.mark.parametrize(
        ("gemm", "reason"),
        [
            ({"alpha": 0.5}, "alpha"),
            ({"beta": 2.0}, "beta"),
            ({"transA": 1}, "transA"),
        ],
    )
    def test_what_no_kernel_does_is_refused(self, gemm: dict[str, Any], reason: str) -> None:
        proto = model(
            [node("Gemm", "x w b", "y", **gemm)],
            {"x": [96, 96]},
            {"y": None},
            {"w": weight(96, 128), "b": weight(128)},
        )
        _, found = proposed(proto, samples(x=[96, 96]), STATIC)
        assert not found.compute
        assert reason in found.refusals[0].reason

    def test_small_linears_only_as_told(self) -> None:
        proto = model([node("MatMul", "x w", "y")], {"x": [8, 16]}, {"y": None}, {"w": weight(16, 16)})
        _, found = proposed(proto, samples(x=[8, 16]), STATIC, told=False)
        assert found.refusals[0].reason == "too small for an int8 kernel to pay"
        _, found = proposed(proto, samples(x=[8, 16]), STATIC, told=True)
        assert found.told == set(found.compute) == {"y_node"}

    def test_without_data_it_says_so(self) -> None:
        proto = model([node("MatMul", "x w", "y")], {"x": [8, 96]}, {"y": None}, {"w": weight(96, 96)})
        _, found = proposed(proto, [], STATIC)
        assert "--calib" in found.refusals[0].reason


class TestConvolutions:
    @pytest.mark.parametrize(
        ("shape", "kernel", "attributes"),
        [
            ([1, 16, 30], [5], {"pads": [2, 2]}),
            ([2, 16, 30], [3], {"pads": [1, 0], "strides": [2]}),
            ([1, 16, 6, 6, 6], [3, 3, 3], {"pads": [1] * 6}),
            ([2, 16, 13, 11], [3, 3], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
            ([2, 16, 13, 11], [3, 3], {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
            ([2, 16, 13, 11], [3, 3], {"auto_pad": "VALID", "dilations": [2, 2]}),
            ([2, 16, 13, 11], [3, 3], {"pads": [0, 1, 2, 1], "strides": [1, 2]}),
            ([2, 16, 9, 9], [1, 1], {"pads": [0] * 4}),
        ],
    )
    def test_shapes(self, shape: list[int], kernel: list[int], attributes: dict[str, Any]) -> None:
        found = network([conv("x", "c", **attributes), node("Relu", "c", "y")], shape, w0=weight(16, 16, *kernel))
        assert found.kernels["QLinearConv"] == 1
        assert found.kernels["Conv"] + found.kernels["FusedConv"] + found.kernels["Relu"] == 0
        assert found.leftovers == []
        assert found.sqnr_db > 30

    def test_without_bias(self) -> None:
        proto = model([node("Conv", "x w", "y")], {"x": BATCH}, {"y": None}, {"w": weight(16, 16, 3, 3)})
        found = emitted(proto, samples(x=BATCH), STATIC)
        assert found.kernels["QLinearConv"] == 1

    def test_relu_vanishes_into_a_zero_point_of_zero(self) -> None:
        found = network([conv("x", "c"), node("Relu", "c", "y")])
        assert found.plan.compute["c_node"].writes is not None
        assert int(found.plan.compute["c_node"].writes.zero_point) == 0
        assert found.kernels == {"QuantizeLinear": 1, "Transpose": 2, "QLinearConv": 1, "DequantizeLinear": 1}

    @pytest.mark.parametrize("high", [6.0, 0.5])
    def test_clip_vanishes_because_the_range_ends_inside_it(self, high: float) -> None:
        nodes = [conv("x", "c"), node("Clip", "c low high", "y")]
        found = network(nodes, low=np.float32(0), high=np.float32(high))
        writes = found.plan.compute["c_node"].writes
        assert writes is not None
        assert int(writes.zero_point) == 0
        assert 255 * writes.scale <= high * (1 + 1e-6)
        assert found.kernels == {"QuantizeLinear": 1, "Transpose": 2, "QLinearConv": 1, "DequantizeLinear": 1}

    def test_a_clip_below_zero_keeps_a_pair_before_it(self) -> None:
        nodes = [conv("x", "c"), node("Clip", "c low high", "y")]
        found = network(nodes, low=np.float32(-1), high=np.float32(1))
        assert found.kernels["QLinearConv"] == found.kernels["Clip"] == 1

    @pytest.mark.parametrize(
        ("between", "kernels"),
        [
            ([node("LeakyRelu", "c", "a")], {"QLinearLeakyRelu": 1}),
            ([node("HardSwish", "c", "a")], {"HardSigmoid": 1}),
            ([node("Sigmoid", "c", "s"), node("Mul", "c s", "a")], {"Sigmoid": 1, "Mul": 1}),
        ],
    )
    def test_other_activations_stand_between_pairs(self, between: list[NodeProto], kernels: dict[str, int]) -> None:
        found = network([conv("x", "c"), *between, conv("a", "y", 1)])
        assert found.kernels["QLinearConv"] == 2
        assert {name: found.kernels[name] for name in kernels} == kernels
        assert found.leftovers == []

    def test_residual_block(self) -> None:
        nodes = [
            conv("x", "c"),
            node("Relu", "c", "r"),
            conv("r", "d", 1),
            node("Add", "d r", "a"),
            node("Relu", "a", "y"),
        ]
        found = network(nodes)
        assert found.kernels == {
            "QuantizeLinear": 1,
            "Transpose": 2,
            "QLinearConv": 2,
            "QLinearAdd": 1,
            "DequantizeLinear": 1,
        }
        assert found.sqnr_db > 30

    def test_concat_pooling_and_the_head(self) -> None:
        nodes = [
            conv("x", "c"),
            conv("x", "d", 1),
            node("Concat", "c d", "k", axis=1),
            node("GlobalAveragePool", "k", "p"),
            node("Flatten", "p", "f"),
            node("Gemm", "f wg bg", "y", transB=1),
        ]
        found = network(nodes, wg=weight(32, 32), bg=weight(32))
        expected = {
            "QLinearConv": 2,
            "QLinearConcat": 1,
            "QLinearGlobalAveragePool": 1,
            "Flatten": 1,
            "QGemm": 1,
        }
        assert {name: found.kernels[name] for name in expected} == expected
        assert found.kernels["DequantizeLinear"] == 0

    @pytest.mark.parametrize(
        ("carrier", "weights"),
        [
            ([node("Transpose", "r", "t", perm=[0, 1, 3, 2])], {}),
            ([node("MaxPool", "r", "t", kernel_shape=[2, 2], strides=[2, 2])], {}),
            (
                [node("Slice", "r from to axes", "t")],
                {"from": np.array([4]), "to": np.array([12]), "axes": np.array([2])},
            ),
            ([node("Reshape", "r sizes", "t")], {"sizes": np.array([1, 16, 8, 18])}),
            ([node("Unsqueeze", "r axes", "u"), node("Squeeze", "u axes", "t")], {"axes": np.array([2])}),
        ],
    )
    def test_carriers_share_the_scale_of_what_they_carry(
        self, carrier: list[NodeProto], weights: dict[str, np.ndarray]
    ) -> None:
        nodes = [conv("x", "c"), node("Relu", "c", "r"), *carrier, conv("t", "y", 1)]
        found = network(nodes, **weights)
        carried = {
            c.writes.tensor: (c.writes.scale, c.writes.zero_point)
            for c in found.plan.compute.values()
            if c.writes is not None
        }
        if carrier[0].op_type != "MaxPool":
            assert carried["r"] == carried["t"]
        assert found.kernels["QLinearConv"] == 2
        assert found.leftovers == []
        assert found.sqnr_db > 30

    def test_split_halves_share_the_scale(self) -> None:
        nodes = [
            conv("x", "c"),
            node("Split", "c", "s0 s1", axis=1),
            node("Concat", "s1 s0", "k", axis=1),
            conv("k", "y", 1),
        ]
        found = network(nodes)
        assert found.kernels["QLinearConv"] == 2
        assert found.leftovers == []

    def test_depthwise_inside_a_chain(self) -> None:
        nodes = [conv("x", "c"), node("Relu", "c", "r"), conv("r", "d", 1, group=16), conv("d", "y", 2)]
        found = network(nodes, w1=weight(16, 1, 3, 3))
        assert found.kernels["QLinearConv"] == 3
        assert found.sqnr_db > 28

    def test_grouped_is_refused_and_its_neighbours_do_not_quantize_it_silently(self) -> None:
        """ONNX Runtime quantizes the float weight of a Conv between a DQ and a Q, per tensor."""
        nodes = [conv("x", "c"), conv("c", "d", 1, group=4), conv("d", "y", 2)]
        found = network(nodes, w1=weight(16, 4, 3, 3))
        assert "grouped" in found.reasons()
        assert found.kernels["QLinearConv"] == 1
        assert found.kernels["Conv"] + found.kernels["FusedConv"] == 2
        assert set(found.plan.compute) == {"c_node"}

    @pytest.mark.parametrize("stays", ["c_node", "d_node", "e_node"])
    def test_no_float_convolution_between_codes(self, stays: str) -> None:
        nodes = [
            conv("x", "c"),
            node("Relu", "c", "r"),
            conv("r", "d", 1),
            node("Relu", "d", "s"),
            conv("s", "e", 2),
            conv("e", "y", 3),
        ]
        weights = {f"w{i}": weight(16, 16, 3, 3) for i in range(4)}
        biases = {f"b{i}": weight(16, scale=0.1) for i in range(4)}
        found = emitted(
            model(nodes, {"x": BATCH}, {"y": None}, weights | biases),
            samples(x=BATCH),
            STATIC,
            without=[stays],
        )
        integers = {n.op_type for n in found.session.optimized().graph.node}
        assert found.kernels["QLinearConv"] == len(
            [n for n in found.plan.compute if n in {each.name for each in nodes}]
        )
        assert found.kernels["QLinearConv"] + found.kernels["Conv"] + found.kernels["FusedConv"] == 4
        assert "QLinearConv" in integers
        assert stays not in found.plan.compute

    @pytest.mark.parametrize(
        ("nodes", "stays"),
        [
            (
                [node("Transpose", "a", "t", perm=[0, 1, 3, 2]), conv("t", "b", 1), conv("b", "y", 2)],
                ["t_node", "b_node"],
            ),
            (
                [conv("a", "b", 1), node("Transpose", "b", "t", perm=[0, 1, 3, 2]), conv("t", "y", 2)],
                ["b_node"],
            ),
            (
                [
                    node("MaxPool", "a", "t", kernel_shape=[3, 3], pads=[1] * 4),
                    conv("t", "b", 1),
                    conv("b", "y", 2),
                ],
                ["t_node", "b_node"],
            ),
            ([node("ConvTranspose", "a w1", "b", pads=[1] * 4), conv("b", "y", 2)], ["b_node"]),
        ],
    )
    def test_nor_where_codes_travel_through_data_movement(self, nodes: list[NodeProto], stays: list[str]) -> None:
        weights = {f"w{i}": weight(16, 16, 3, 3) for i in range(3)} | {f"b{i}": weight(16, scale=0.1) for i in range(3)}
        proto = model([conv("x", "a"), *nodes], {"x": BATCH}, {"y": None}, weights)
        found = emitted(proto, samples(x=BATCH), STATIC, without=stays)
        assert found.kernels["QLinearConv"] == len(found.plan.compute) == 1
        assert found.leftovers == []

    @pytest.mark.parametrize(
        "nodes",
        [
            [node("Gemm", "f v vb", "h")],
            [node("Gemm", "f v vb", "g"), node("Relu", "g", "h")],
            [node("MatMul", "f v", "g"), node("Add", "g vb", "h")],
            [node("MatMul", "f v", "g"), node("Add", "g vb", "s"), node("Relu", "s", "h")],
        ],
    )
    def test_nor_a_float_linear_whose_bias_makes_it_a_gemm(self, nodes: list[NodeProto]) -> None:
        pool = [conv("x", "c"), node("GlobalAveragePool", "c", "p"), node("Flatten", "p", "f")]
        head = node("Gemm", "h u", "y")
        weights = {
            "w0": weight(16, 16, 3, 3),
            "b0": weight(16),
            "v": weight(16, 64),
            "vb": weight(64),
            "u": weight(64, 32),
        }
        proto = model([*pool, *nodes, head], {"x": BATCH}, {"y": None}, weights)
        found = emitted(proto, samples(x=BATCH), STATIC, without=[nodes[0].name])
        assert found.kernels["QGemm"] == 0
        assert found.kernels["Gemm"] + found.kernels["FusedGemm"] == 2

    def test_an_output_of_the_graph_inside_a_chain_keeps_its_name_and_values(self) -> None:
        nodes = [conv("x", "c"), node("Relu", "c", "seen"), conv("seen", "y", 1)]
        weights = {n: weight(16, 16, 3, 3) for n in ("w0", "w1")} | {n: weight(16, scale=0.1) for n in ("b0", "b1")}
        found = emitted(model(nodes, {"x": BATCH}, {"seen": None, "y": None}, weights), samples(x=BATCH), STATIC)
        assert [info.name for info in found.session.outputs] == ["seen", "y"]
        assert found.kernels["QLinearConv"] == 2
        assert found.sqnr_db > 30

    @pytest.mark.parametrize("opset", [13, 17, 21])
    def test_opsets(self, opset: int) -> None:
        weights = {"w0": weight(16, 16, 3, 3), "b0": weight(16)}
        proto = model([conv("x", "c"), node("Relu", "c", "y")], {"x": BATCH}, {"y": None}, weights, opset=opset)
        proto.ir_version = 10
        assert emitted(proto, samples(x=BATCH), STATIC).kernels["QLinearConv"] == 1


class TestFields:
    def test_range_methods_choose_different_ranges(self) -> None:
        data = samples(x=[64, 96])
        data[0]["x"][0, 0] = 40.0  # an outlier
        proto = model([node("MatMul", "x w", "y")], {"x": [64, 96]}, {"y": None}, {"w": weight(96, 96)})
        highs = {}
        for method in ("mse", "minmax", "percentile"):
            made = configured(QuantizeStatic, "quantize-static", {"range": method})
            assert isinstance(made, QuantizeStatic)
            highs[method] = proposed(proto, data, made)[1].compute["y_node"][0].reads[0].high
        assert highs["minmax"] == 40.0
        assert highs["percentile"] < highs["mse"] < 40.0

    @pytest.mark.parametrize("fields", [{"range": "widest"}, {"percentile": "most"}, {"bits": "8"}])
    def test_wrong_fields_name_the_right_ones(self, fields: dict[str, str]) -> None:
        with pytest.raises(RecipeError, match=r"quantize-static"):
            configured(QuantizeStatic, "quantize-static", fields)


def test_clip_range_of_old_and_new_clips() -> None:
    proto = model(
        [node("Clip", "x low high", "a"), node("Relu", "a", "b"), node("Clip", "b _ computed", "y")],
        {"x": [4], "computed": []},
        {"y": None},
        {"low": np.float32(-1), "high": np.float32(2)},
    )
    context, _ = proposed(proto, [])
    ranges = [clip_range(each) for each in context.model.nodes()]
    assert ranges[:2] == [(-1.0, 2.0), (0.0, float("inf"))]
    assert np.isnan(ranges[2]).all()


def test_a_model_that_repeats_itself_gives_the_same_bytes() -> None:
    state = random.bit_generator.state
    made = []
    for _ in range(2):
        random.bit_generator.state = state
        made.append(network([conv("x", "c"), node("Relu", "c", "r"), conv("r", "y", 1)]).model.serialized())
    assert made[0] == made[1]
