"""Kernel times go back to their sites, prices survive a file, the same prices give the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from onnxc import coder, cost, exactness, optimize, planning, price_file
from onnxc.coder import Coder
from onnxc.cost import APART, crossing_line, measure
from onnxc.errors import DataError
from onnxc.exactness import Exactness
from onnxc.judge import build
from onnxc.model import Model
from onnxc.owners import owner_names, owners_of
from onnxc.passes.quantize_dynamic import QuantizeDynamic
from onnxc.passes.quantize_static import QuantizeStatic
from onnxc.price import priced
from onnxc.price_file import PriceFile, default_path, site_key
from onnxc.profiling import FLOAT, corrected
from onnxc.session import Options, Session
from tests import trained
from tests.emission import Emission, emitted, model, node, proposed, samples, weight

SHAPE = [1, 16, 12, 12]


def convolutions() -> onnx.ModelProto:
    """Conv, Relu, Conv, Add, Relu, pool, MatMul, Add."""
    nodes = [
        node("Conv", "x w0 b0", "c0", pads=[1] * 4),
        node("Relu", "c0", "r0"),
        node("Conv", "r0 w1 b1", "c1", pads=[1] * 4),
        node("Add", "c1 r0", "s"),
        node("Relu", "s", "r1"),
        node("GlobalAveragePool", "r1", "p"),
        node("Flatten", "p", "f"),
        node("MatMul", "f w2", "m"),
        node("Add", "m b2", "y"),
    ]
    weights = {f"w{i}": weight(16, 16, 3, 3) for i in range(2)} | {f"b{i}": weight(16) for i in range(2)}
    weights |= {"w2": weight(16, 400), "b2": weight(400)}
    return model(nodes, {"x": SHAPE}, {"y": None}, weights)


def owned(found: Emission) -> dict[str, set[str]]:
    """Site -> operators of its kernels in the graph that runs."""
    names = owner_names(found.context.model, found.context.sites)
    optimized = found.session.optimized()
    owners = owners_of(optimized, names)
    result: dict[str, set[str]] = {}
    for each in optimized.graph.node:
        owner = "crossing" if each.name in owners.crossings else owners.sites.get(each.name, "")
        result.setdefault(owner, set()).add(each.op_type)
    return result


class TestOwners:
    def test_float_kernels(self) -> None:
        """A fused Conv, its change of layout, a MatMul that became a Gemm with its Add: each has its site."""
        found = owned(emitted(convolutions(), samples(1, x=SHAPE)))
        assert "Conv" in found["c0_node"]
        assert "Conv" in found["c1_node"]  # the residual Add is a part of it
        assert found["m_node"] <= {"Gemm", "FusedGemm", "MatMul", "Add"}
        assert found["m_node"]
        assert not {"Conv", "FusedConv", "Gemm", "MatMul"} & found.get("", set())

    def test_static_kernels(self) -> None:
        found = owned(emitted(convolutions(), samples(2, x=SHAPE), QuantizeStatic()))
        assert "QLinearConv" in found["c0_node"]
        assert "QLinearConv" in found["c1_node"]
        assert "QLinearAdd" in found["s_node"]
        assert found["m_node"] == {"QGemm"}
        assert found["crossing"] >= {"QuantizeLinear"}  # priced by element
        assert found["crossing"] <= {"QuantizeLinear", "DequantizeLinear", "Transpose"}
        assert "" not in found

    def test_layout_kernels_beside_a_crossing_are_a_part_of_it(self) -> None:
        """The second convolution stays float and in its own layout: Reorders stand between it and the codes."""
        nodes = [node("Conv", f"{s} w{i}", t, pads=[1] * 4) for i, (s, t) in enumerate(("xa", "ab", "by"))]
        proto = model(nodes, {"x": SHAPE}, {"y": None}, {f"w{i}": weight(16, 16, 3, 3) for i in range(3)})
        found = emitted(proto, samples(2, x=SHAPE), QuantizeStatic(), without=["b_node", "y_node"])
        optimized = found.session.optimized()
        owners = owners_of(optimized, owner_names(found.context.model, found.context.sites))
        kinds = {each.name: each.op_type for each in optimized.graph.node}
        assert found.kernels["ReorderInput"] == 1
        assert {kinds[name] for name in owners.crossings} >= {"QuantizeLinear", "DequantizeLinear", "ReorderInput"}
        assert all(kinds[crossing] in {"QuantizeLinear", "DequantizeLinear"} for crossing in owners.crossings.values())

    def test_a_fusion_that_int8_breaks_is_its_sites_affair(self) -> None:
        """Gelu in float; Div, Erf, Add and Mul behind a convolution in int8, each with a DQ of its own."""
        nodes = [
            node("Conv", "x w", "c", pads=[1] * 4),
            node("Div", "c root", "d"),
            node("Erf", "d", "e"),
            node("Add", "e one", "f"),
            node("Mul", "c f", "g"),
            node("Mul", "g half", "y"),
        ]
        constants = {"root": np.array(2**0.5), "one": np.array(1.0), "half": np.array(0.5)}
        weights = {"w": weight(16, 16, 3, 3)} | {k: v.astype(np.float32) for k, v in constants.items()}
        found = emitted(model(nodes, {"x": SHAPE}, {"y": None}, weights), samples(2, x=SHAPE), QuantizeStatic())
        optimized = found.session.optimized()
        names = owner_names(found.context.model, found.context.sites)
        kinds = {each.name: each.op_type for each in optimized.graph.node}
        owners = owners_of(optimized, names)
        assert {kinds[name] for name, site in owners.followers.items() if site == "c_node"} >= {"Erf", "Div", "Mul"}
        plain = Session(found.context.model, dump=True).optimized()
        before = owners_of(plain, names)
        gelu = [each.name for each in plain.graph.node if each.op_type in ("Gelu", "BiasGelu")]
        assert [before.followers.get(name) or before.sites.get(name) for name in gelu] == ["c_node"]

    def test_dynamic_kernels(self) -> None:
        nodes = [node("MatMul", f"x w{i}", f"m{i}") for i in range(2)] + [node("Sum", "m0 m1", "y")]
        proto = model(nodes, {"x": [8, 96]}, {"y": None}, {f"w{i}": weight(96, 96) for i in range(2)})
        found = owned(emitted(proto, samples(2, x=[8, 96]), QuantizeDynamic()))
        assert found["m0_node"] | found["m1_node"] == {"DynamicQuantizeLinear", "MatMulIntegerToFloat"}
        assert "MatMulIntegerToFloat" in found["m0_node"]
        assert "MatMulIntegerToFloat" in found["m1_node"]
        assert found[""] == {"Sum"}

    def test_names_that_begin_alike_are_not_confused(self) -> None:
        names = {"MatMul": "MatMul", "MatMul_1": "MatMul_1", "MatMul_1_out": "MatMul_1", "Softmax": ""}
        kernels = [
            "MatMul",
            "MatMul_1",
            "MatMul_1_int8",
            "MatMul_scaled",
            "Softmax",
            "Softmax_2",
            "unknown",
            "MatMul_1/x",
        ]
        made = [onnx.helper.make_node("Kernel", [], [f"o{i}"], name=name) for i, name in enumerate(kernels)]
        graph = onnx.helper.make_graph(made, "g", [], [])
        owners = owners_of(onnx.helper.make_model(graph), names).sites
        assert owners == {
            "MatMul": "MatMul",
            "MatMul_scaled": "MatMul",
            "MatMul_1": "MatMul_1",
            "MatMul_1_int8": "MatMul_1",
            "MatMul_1/x": "MatMul_1",
        }


class TestPriceFile:
    def test_round_trip(self, tmp_path: Path) -> None:
        path = tmp_path / "deep" / "prices.json"
        prices = PriceFile.open(path)
        assert prices.entries == {}
        prices.entries |= {"b": 1 / 3, "a": 1e-9}
        prices.save()
        assert PriceFile.open(path).entries == {"a": 1e-9, "b": 1 / 3}
        assert PriceFile.open(path, fresh=True).entries == {}
        assert [each.name for each in path.parent.iterdir()] == ["prices.json"]

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"not json",
            b"[]",
            b"{}",
            b'{"prices": []}',
            b'{"prices": {"a": "fast"}}',
            b"\xff\xfe\x00",
            b'{"prices": {"a": NaN}}',
            b'{"prices": {"a": -1}}',
            b'{"prices": {"a": Infinity}}',
            b'{"prices": {}, "findings": {"a": 1}}',
            b'{"prices": {}, "findings": []}',
        ],
    )
    def test_a_damaged_file_is_bad_data(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "prices.json"
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"is not a price file") as error:
            PriceFile.open(path)
        assert "\n" not in str(error.value)
        assert path.read_bytes() == content

    def test_a_folder_is_bad_data(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"is not a price file"):
            PriceFile.open(tmp_path)

    def test_the_users_own_damaged_cache_is_measured_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        default_path().parent.mkdir()
        default_path().write_text("not json")
        assert PriceFile.open(None).entries == {}

    def test_a_cache_that_cannot_be_written_is_no_failure(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        prices = PriceFile.open(None)
        prices.entries["a"] = 1.0
        prices.save()
        with pytest.raises(DataError, match=r"prices cannot be kept in '.*prices\.json'"):
            PriceFile.open(tmp_path / "file" / "prices.json")

    def test_what_other_runs_learned_is_kept(self, tmp_path: Path) -> None:
        """Also by one that began fresh, and by two at a time; what was forgotten is gone."""
        path = tmp_path / "prices.json"
        first, second = PriceFile.open(path), PriceFile.open(path)
        first.entries |= {"a": 1.0, "b": 2.0}
        first.keep("noise", "x", finding={"n": 1})
        first.keep("trial", "x", finding={"n": 2})
        first.save()
        second.entries["b"] = 3.0
        second.save()
        fresh = PriceFile.open(path, fresh=True)
        fresh.entries["a"] = 4.0
        fresh.forget("trial")
        fresh.save()
        found = PriceFile.open(path)
        assert found.entries == {"a": 4.0, "b": 3.0}
        assert (found.known("noise", "x"), found.known("trial", "x")) == ({"n": 1}, None)

    def test_findings_outlive_a_run_the_latest_ones(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        prices, exact = PriceFile.open(tmp_path / "prices.json"), 0.1 + 0.2
        for part in ("old", "kept", "new"):
            assert prices.found("noise", part, learn=lambda: {"a": exact, "b": [1.5, -2.0]}) == {
                "a": exact,
                "b": [1.5, -2],
            }
        prices.found("noise", "kept", learn=dict)
        monkeypatch.setattr(price_file, "MOST_FINDINGS", 90)
        prices.save()
        again = PriceFile.open(prices.path)
        assert [again.found("noise", part, learn=dict) for part in ("old", "new", "kept")] == [
            {},
            {"a": exact, "b": [1.5, -2.0]},
            {"a": exact, "b": [1.5, -2.0]},
        ]


class TestPrices:
    def test_known_prices_are_not_measured_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data = samples(2, x=SHAPE)
        context, found = proposed(convolutions(), data, QuantizeStatic())
        prices = PriceFile.open(tmp_path / "prices.json")
        arguments = (context, found, Coder(context, found), data[0], Options())
        first = priced(*arguments, prices)
        assert set(first.sites) == {site.name for site in context.sites}
        assert all(first.sites[name].keys() - {APART} == {FLOAT, "static"} for name in found.compute)
        assert {name for name in first.sites if APART in first.sites[name]} == {"s_node", "p_node", "f_node"}
        assert 0 < sum(times[FLOAT] for times in first.sites.values()) <= first.total * 1.01
        prices.save()

        def never(*_: object) -> dict[str, dict[str, float]]:
            raise AssertionError("measured again")

        monkeypatch.setattr(cost, "profile", never)
        again = priced(*arguments, PriceFile.open(prices.path))
        assert again == first

    def test_what_was_heard_of_a_model_is_not_heard_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neither the noise of single roundings nor the damage of formats: with the same plan, byte for byte."""
        source, calib = trained.MODELS / "sklearn_mlp.onnx", trained.MODELS / "data" / "sklearn_mlp_calib.npz"
        passes = "quantize-dynamic,store-low-bit"
        outputs, asked = [tmp_path / "first.onnx", tmp_path / "second.onnx"], list[str]()
        for where, name in ((planning, "measure"), (coder, "estimated")):
            original = getattr(where, name)

            def watched(*arguments: object, original: object = original, name: str = name, **more: object) -> object:
                asked.append(name)
                assert callable(original)
                return original(*arguments, **more)

            monkeypatch.setattr(where, name, watched)
        optimize(source, outputs[0], calib=calib, passes=passes, prices=tmp_path / "prices.json")
        assert {"measure", "estimated"} <= set(asked)
        asked.clear()
        optimize(source, outputs[1], calib=calib, passes=passes, prices=tmp_path / "prices.json")
        assert not asked
        assert outputs[0].read_bytes() == outputs[1].read_bytes()

    def test_whether_a_rewrite_pays_is_measured_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A machine that was busy meanwhile does not make another model of it."""
        ratios, entries = iter([0.7, 1.2]), dict[str, float]()
        monkeypatch.setattr(exactness, "measure_ratio", lambda *_, **__: SimpleNamespace(median=next(ratios), high=0.8))
        before, data = Model.load(convolutions()), samples(2, x=SHAPE)
        after = before.copy()
        after.metadata["changed"] = "yes"
        for _ in range(2):
            judge = Exactness(before, data, Options(known=entries))
            assert judge.unpaid(after, 1.0) == "it is 0.70 times as fast"
        assert list(entries.values()) == [0.7]
        assert Exactness(after, data, Options(known=entries)).unpaid(before, 1.0) is None

    def test_equal_sites_have_one_price(self) -> None:
        nodes = [node("MatMul", "x w0", "m"), node("MatMul", "m w1", "y")]
        proto = model(nodes, {"x": [8, 32]}, {"y": None}, {f"w{i}": weight(32, 32) for i in range(2)})
        data = samples(1, x=[8, 32])
        context, _ = proposed(proto, data, QuantizeStatic())
        prices = PriceFile(Path("unused"))
        found = measure(
            {FLOAT: lambda: context.model},
            context.sites,
            {},
            data[0],
            context.observations.shapes,
            Options(),
            prices,
            0.01,
        )
        one, two = (found.sites[name][FLOAT] for name in ("m_node", "y_node"))
        assert one == two > 0

    def test_a_profile_is_reduced_to_what_was_measured_without_it(self) -> None:
        kernels = {("a", "Conv"): (30e-6, 1.0), ("b", "Add"): (4e-6, 1.0), ("loop", "Mul"): (8e-6, 2.0)}
        found = corrected(kernels, 34e-6)  # 8 microseconds over, in four calls
        assert {key: seconds for key, (seconds, _) in found.items()} == pytest.approx(
            {("a", "Conv"): 28e-6, ("b", "Add"): 2e-6, ("loop", "Mul"): 4e-6}
        )
        for total in (5e-6, 20e-6, 42e-6, 100e-6):  # also on a machine that was busy meanwhile
            assert sum(seconds for seconds, _ in corrected(kernels, total).values()) == pytest.approx(total)

    def test_crossings_lie_on_a_line(self) -> None:
        shapes = {"x": (1, 10, 10), "x/y": (1, 1000), "z": ()}
        crossings = {("static", "x_q"): 3e-6, ("static", "x/y_dq"): 12e-6, ("static", "unknown"): 1.0}
        assert crossing_line(crossings, shapes) == pytest.approx((1e-8, 2e-6))
        per_element, per_crossing = crossing_line({("static", "x_q"): 9e-6, ("static", "x/y_q"): 1e-6}, shapes) or (
            -1,
            -1,
        )
        assert per_element >= 0
        assert per_crossing > 0
        assert crossing_line({("static", "unknown"): 1.0}, shapes) is None

    def test_what_a_price_depends_on(self) -> None:
        context, _ = proposed(convolutions(), samples(1, x=SHAPE), QuantizeStatic())
        first, second = [site for site in context.sites if site.operator == "Conv"]
        shapes: Mapping[str, tuple[int, ...]] = context.observations.shapes
        keys = {
            site_key(first, shapes, FLOAT, Options()),
            site_key(first, shapes, "static", Options()),
            site_key(first, shapes, FLOAT, Options(threads=2)),
            site_key(first, {**shapes, "x": (2, 16, 12, 12)}, FLOAT, Options()),
            site_key(second, shapes, FLOAT, Options()),  # no Relu behind it
        }
        assert len(keys) == 5


SCRIPT = """
import sys, numpy, onnxc
report = onnxc.optimize(sys.argv[1], sys.argv[2], calib=sys.argv[3], prices=sys.argv[4],
                        budget=onnxc.Budget(min_sqnr=36.0))
"""


def test_the_same_prices_give_the_same_bytes_whatever_the_hash_seed(tmp_path: Path) -> None:
    """The floor is high enough that every rounding alone is measured and the plan is searched for."""
    onnx.save(convolutions(), tmp_path / "in.onnx")
    np.savez(tmp_path / "calib.npz", x=np.stack([each["x"] for each in samples(4, x=SHAPE)]))
    made = []
    for seed in ("0", "1"):
        arguments = [str(tmp_path / name) for name in ("in.onnx", f"out{seed}.onnx", "calib.npz", "prices.json")]
        subprocess.run(
            [sys.executable, "-c", SCRIPT, *arguments],
            check=True,
            timeout=120,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        made.append((tmp_path / f"out{seed}.onnx").read_bytes())
        entries = json.loads((tmp_path / "prices.json").read_text())["prices"]
        assert all(value >= 0 for value in entries.values())
    assert made[0] == made[1]


def test_a_plan_is_built_the_same_twice() -> None:
    found = emitted(convolutions(), samples(2, x=SHAPE), QuantizeStatic())
    again: Model = build(found.context.model, found.plan, found.codes)
    assert again.serialized() == found.model.serialized()
    assert Session(again).outputs == found.session.outputs
