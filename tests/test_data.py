"""Calibration data in every format, what is refused and how it is said; generated inputs; hooks."""

import contextlib
import importlib
import sys
import warnings

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxc import data
from onnxc.data import Calibration, Evaluation, generate, index_limits
from onnxc.errors import DataError, HookError, ModelError, UsageError
from onnxc.model import Model
from onnxc.session import Session, TensorInfo

info = helper.make_tensor_value_info
F32, I64 = np.dtype(np.float32), np.dtype(np.int64)
IMAGE = (TensorInfo("x", "tensor(float)", ("batch", 3), F32),)
TEXT = (
    TensorInfo("ids", "tensor(int64)", ("batch", "seq"), I64),
    TensorInfo("rate", "tensor(int64)", (), I64),
)


def build(nodes, inputs, outputs, weights=()):
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def rows(calibration):
    return [{name: array.tolist() for name, array in sample.items()} for sample in calibration]


@pytest.mark.parametrize("held", [0, data.HELD])
def test_all_formats_give_the_same_samples(tmp_path, monkeypatch, held):
    monkeypatch.setattr(data, "HELD", held)
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    (tmp_path / "many").mkdir()
    for index, row in enumerate(values):
        np.savez(tmp_path / "many" / f"{index:02}.npz", x=row[None])
        folder = tmp_path / "sets" / f"test_data_set_{index + 8}"  # 8, 9, 10, 11: in numeric order
        folder.mkdir(parents=True)
        (folder / "input_0.pb").write_bytes(numpy_helper.from_array(row[None], "x").SerializeToString())
    np.savez(tmp_path / "stacked.npz", x=values)
    np.savez(tmp_path / "deeper.npz", x=values[:, None])
    np.savez(tmp_path / "unnamed.npz", values)
    np.save(tmp_path / "array.npy", values.astype(np.float64))
    (tmp_path / "feed.py").write_text(
        "import numpy\ndef rows():\n    for row in numpy.arange(12.0).reshape(4, 1, 3):\n        yield {'x': row}\n"
    )
    expected = [{"x": [row.tolist()]} for row in values]
    specs = [
        *(tmp_path / name for name in ("many", "sets", "stacked.npz", "deeper.npz", "unnamed.npz", "array.npy")),
        f"{tmp_path / 'feed.py'}:rows",
        [{"x": row[None]} for row in values],
        ({"x": row[None].tolist()} for row in values),
        lambda: (row[None] for row in values),
    ]
    digests = set()
    for spec in specs:
        calibration = Calibration.open(spec, IMAGE)
        assert len(calibration) == 4
        assert rows(calibration) == expected
        assert rows(calibration) == expected  # as often as you like
        assert next(iter(calibration))["x"].dtype == np.float32
        assert [each["x"][0, 0] for each in calibration.take(2)] == [3, 9]
        assert len(calibration.take(99)) == 4
        assert not calibration.generated
        digests.add(calibration.digest)
    assert len(digests) == 1
    assert Calibration.open([{"x": values[:1]}], IMAGE).digest not in digests


def test_few_bytes_are_read_once(tmp_path, monkeypatch):
    values = np.arange(12, dtype=np.float32).reshape(4, 1, 3)
    buffer = np.empty((1, 3), np.float32)

    def reused():  # a function may yield the same array again and again
        for row in values:
            buffer[:] = row
            yield {"x": buffer}

    assert rows(Calibration.open(reused, IMAGE)) == [{"x": row.tolist()} for row in values]
    for index, row in enumerate(values):
        np.savez(tmp_path / f"{index}.npz", x=row)
    few = Calibration.open(tmp_path, IMAGE)
    monkeypatch.setattr(data, "HELD", values.nbytes - 1)
    many = Calibration.open(tmp_path, IMAGE)
    assert rows(few) == rows(many)
    assert rows(few.fitted()) == rows(many.fitted())
    for file in tmp_path.iterdir():
        file.unlink()
    assert rows(few) == [{"x": row.tolist()} for row in values]
    assert len(few.fitted().take(9)) == 3
    with pytest.raises(DataError, match="cannot be read"):
        rows(many)


def test_stacked_arrays(tmp_path):
    path = tmp_path / "s.npz"
    np.savez(path, ids=np.arange(6).reshape(3, 2), rate=np.int64(7))
    assert rows(Calibration.open(path, TEXT))[2] == {"ids": [[4, 5]], "rate": 7}
    np.savez(path, ids=np.arange(6).reshape(3, 1, 2), rate=np.arange(3))
    assert rows(Calibration.open(path, TEXT))[2] == {"ids": [[4, 5]], "rate": 2}
    fixed = (TensorInfo("x", "tensor(float)", (2, 3), F32),)
    np.savez(path, x=np.zeros((4, 3), np.float32))
    assert len(Calibration.open(path, fixed)) == 2
    np.savez(path, x=np.zeros((5, 3), np.float32))
    with pytest.raises(DataError, match="multiple of the model's fixed batch 2"):
        Calibration.open(path, fixed)
    np.savez(path, x=np.zeros(3, np.float32))
    with pytest.raises(DataError, match="rank 1"):
        Calibration.open(path, fixed)
    pair = (TensorInfo("a", "tensor(float)", ("n", 2), F32), TensorInfo("b", "tensor(float)", ("m", 2), F32))
    np.savez(path, a=np.zeros((4, 2), np.float32), b=np.zeros((1, 2), np.float32))
    assert len(Calibration.open(path, pair)) == 1  # different axes of different size: one sample
    same = (pair[0], TensorInfo("b", "tensor(float)", ("n", 2), F32))
    with pytest.raises(DataError, match="same number of samples: 'a' 4, 'b' 1"):
        Calibration.open(path, same)


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        ({"idx": np.zeros((1, 2), np.int64), "rate": 1}, "no input 'idx'; did you mean 'ids'"),
        ({"ids": np.zeros((1, 2), np.int64)}, "'rate' is missing"),
        ({"ids": np.zeros((1, 2)), "rate": 1}, "'ids' is float64, but the model takes int64"),
        ({"ids": np.zeros(2, np.int64), "rate": 1}, "rank 1"),
        ({"ids": np.full((1, 2), 9), "rate": 1}, "'ids' holds 9, but it is an index from -5 to 4"),
        ({"ids": np.full((1, 2), -6), "rate": 1}, "holds -6"),
        ({"ids": np.full((1, 2), 1 << 63, np.uint64), "rate": 1}, "do not fit"),
        ({"ids": np.array([["a", "b"]]), "rate": 1}, "takes int64"),
        ([1, 2], "samples are dicts"),
    ],
)
def test_samples_that_do_not_fit(sample, words):
    with pytest.raises(DataError, match=r"^sample 1") as caught:
        Calibration.open([{"ids": [[0, 1]], "rate": 1}, sample], TEXT, limits={"ids": (-5, 4)})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.array([[1, np.nan, 3]], np.float32), "NaN"),
        (np.array([[1, np.inf, 3]]), "infinity"),
        (np.array([[1, 1e300, 3]]), "too large"),
        (np.array([[1, 2, (1 << 24) + 1]]), "exactly"),
        (np.array([[1, 2]], np.float32), "axis 1 must be 3"),
        (np.array([[1, 2, 3j]]), "complex"),
    ],
)
def test_values_that_do_not_fit(array, words):
    with pytest.raises(DataError, match=words):
        Calibration.open([{"x": array}], IMAGE)


def test_casts_that_lose_nothing_are_made():
    small = (TensorInfo("x", "tensor(int8)", ("n",), np.dtype(np.int8)),)
    assert next(iter(Calibration.open([{"x": np.array([1, -128])}], small)))["x"].dtype == np.int8
    with pytest.raises(DataError):
        Calibration.open([{"x": np.array([128])}], small)
    assert next(iter(Calibration.open([np.array([[0, 128, 255]], np.uint8)], IMAGE)))["x"].dtype == np.float32
    words = (TensorInfo("x", "tensor(string)", ("n",), np.dtype(object)),)
    assert next(iter(Calibration.open([{"x": np.array(["a", "bc"])}], words)))["x"].tolist() == ["a", "bc"]
    with pytest.raises(DataError, match="strings"):
        Calibration.open([{"x": np.array([1])}], words)
    optional = (TensorInfo("scale", "tensor(float)", (1,), F32),)
    Calibration.open([{"x": [[1.0, 2, 3]]}, {"x": [[1.0, 2, 3]], "scale": [1.0]}], IMAGE, optional=optional)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 truncated")
    (tmp_path / "none.npy").write_bytes(b"")
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "cut.npz", x=np.zeros((50, 3)))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:500])
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "feed.py").write_text("def rows():\n    yield {}\n")
    broken = tmp_path / "sets" / "test_data_set_0"
    broken.mkdir(parents=True)
    (broken / "input_0.pb").write_bytes(b"\xff\xff\xff")
    cases = {
        "empty": r"holds no \*\.npz .*test_data_set",
        "bad.npz": "bad.npz cannot be read",
        "none.npy": "none.npy cannot be read",
        "objects.npy": "objects.npy .*plain arrays",
        "cut.npz": "cut.npz cannot be read",
        "text.txt": "text.txt is none of",
        "nowhere": "nowhere does not exist",
        "feed.py": "feed.py:FUNCTION",
        "feed.py:row": "did you mean 'rows'",
        "feed.py:rows": "'x' is missing",
        "sets": r"input_0\.pb cannot be read",
    }
    for name, words in cases.items():
        with pytest.raises(DataError, match=words) as caught:
            Calibration.open(tmp_path / name if ":" not in name else f"{tmp_path}/{name}", IMAGE)
        assert "\n" not in str(caught.value)
    for spec in ([], {"x": np.zeros((1, 3))}, 5, lambda: 1 / 0):
        with pytest.raises(DataError):
            Calibration.open(spec, IMAGE)
    (tmp_path / "two.npy").write_bytes((tmp_path / "none.npy").read_bytes())
    with pytest.raises(DataError, match="2 inputs"):
        Calibration.open(tmp_path / "two.npy", TEXT)


def embedding():
    """Table[Cast(ids) + 2], a mask as in a transformer, If(rate == 16000) around a Reshape to rows of 8."""
    table = numpy_helper.from_array(np.ones((10, 4), np.float32), "table")
    bodies = []
    for name, end in (("then", 8), ("else", 4)):
        nodes = [
            helper.make_node("Constant", [], [f"{name}_shape"], value_ints=[-1, end, 4]),
            helper.make_node("Reshape", ["masked", f"{name}_shape"], [f"{name}_y"]),
        ]
        bodies.append(helper.make_graph(nodes, name, [], [info(f"{name}_y", TensorProto.FLOAT, None)]))
    constants = [
        ("two", np.int32(2)),
        ("one", np.float32(1)),
        ("much", np.float32(-1e9)),
        ("rate_", np.int64(16000)),
    ]
    nodes = [
        helper.make_node("Cast", ["ids"], ["ids32"], to=TensorProto.INT32),
        helper.make_node("Add", ["ids32", "two"], ["moved"]),
        helper.make_node("Gather", ["table", "moved"], ["rows"]),
        helper.make_node("Cast", ["keep"], ["keepf"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["one", "keepf"], ["drop"]),
        helper.make_node("Mul", ["drop", "much"], ["bias"]),
        helper.make_node("Unsqueeze", ["bias", "axis"], ["wide"]),
        helper.make_node("Add", ["rows", "wide"], ["masked"]),
        helper.make_node("Equal", ["rate", "rate_"], ["high"]),
        helper.make_node("If", ["high"], ["y"], then_branch=bodies[0], else_branch=bodies[1]),
    ]
    inputs = [
        info("ids", TensorProto.INT64, ["batch", "seq"]),
        info("keep", TensorProto.INT64, ["batch", "seq"]),
        info("rate", TensorProto.INT64, []),
    ]
    weights = [table, numpy_helper.from_array(np.array([2]), "axis")]
    weights += [numpy_helper.from_array(np.asarray(value), name) for name, value in constants]
    return Model.load(build(nodes, inputs, [info("y", TensorProto.FLOAT, None)], weights))


def test_generated_inputs_respect_the_graph():
    model = embedding()
    session = Session(model)
    assert index_limits(model) == {"ids": (-12, 7)}
    calibration = generate(model, session, count=4)
    assert calibration.generated
    samples = list(calibration)
    assert {int(each["rate"]) for each in samples} == {16000, 16001}  # both branches
    for sample in samples:
        session.run(sample)
        assert sample["ids"].dtype == np.int64
        assert set(np.unique(sample["ids"])) <= set(range(8))
        assert (sample["keep"] == 1).all()
        assert sample["ids"].shape[0] == 1
        assert sample["ids"].shape[1] % 8 == 0
    again = generate(model, session, count=4)
    assert again.digest == calibration.digest
    assert generate(model, session, count=4, seed=1).digest != calibration.digest
    batched = generate(model, session, batch=3, shapes={"ids": (3, 16)})
    assert next(iter(batched))["keep"].shape == (3, 16)


def test_generated_shapes():
    weight = numpy_helper.from_array(np.ones((6, 3, 3, 3), np.float32), "w")
    model = Model.load(
        build(
            [helper.make_node("Conv", ["x", "w"], ["y"])],
            [info("x", TensorProto.FLOAT, [None, None, "height", "width"])],
            [info("y", TensorProto.FLOAT, None)],
            [weight],
        )
    )
    session = Session(model)
    shapes = [each["x"].shape for each in generate(model, session)]
    assert all(shape[:2] == (1, 3) for shape in shapes)
    assert shapes[0] == (1, 3, 8, 8)
    assert shapes[-1] == (1, 3, 256, 256)
    assert next(iter(generate(model, session, shapes={"x": (2, 3, 5, 7)})))["x"].shape == (2, 3, 5, 7)
    for wrong in ({"x": (1, 3)}, {"y": (1,)}, {"x": (1, 3, -4, 4)}):
        with pytest.raises(UsageError):
            generate(model, session, shapes=wrong)
    with pytest.raises(DataError, match="--calib PATH, or --shape"):
        generate(model, session, shapes={"x": (1, 5, 8, 8)})


def test_one_hot_by_comparison_bounds_the_codes():
    codes = numpy_helper.from_array(np.arange(257), "codes")
    model = Model.load(
        build(
            [helper.make_node("Equal", ["x", "codes"], ["y"])],
            [info("x", TensorProto.INT64, ["batch", 64, 1])],
            [info("y", TensorProto.BOOL, None)],
            [codes],
        )
    )
    values = np.concatenate([each["x"].ravel() for each in generate(model, Session(model))])
    assert set(values) <= set(range(257))
    assert values.max() > 100
    assert index_limits(model) == {}  # others are legal: they are none of the codes


def test_axes_that_depend_on_each_other():
    inputs = [
        info("x", TensorProto.FLOAT, ["batch", "sequence", 4]),
        info("past", TensorProto.FLOAT, ["batch", "past", 4]),
        info("total", TensorProto.FLOAT, ["batch", "past + sequence", 4]),
    ]
    nodes = [
        helper.make_node("Concat", ["past", "x"], ["all"], axis=1),
        helper.make_node("Add", ["all", "total"], ["y"]),
    ]
    model = Model.load(build(nodes, inputs, [info("y", TensorProto.FLOAT, None)]))
    sample = next(iter(generate(model, Session(model), shapes={"past": (1, 5, 4)})))
    assert sample["total"].shape[1] == 5 + sample["x"].shape[1]


def test_the_hook_gets_a_session_and_returns_a_score(tmp_path, capsys):
    path = tmp_path / "hook.py"
    path.write_text(
        "import helper_of_hook\n"
        "print('loading')\n"
        "def good(session):\n"
        "    print('scoring')\n"
        "    return helper_of_hook.SCORE * len(session.get_inputs())\n"
        "def zero(session):\n    return 0.0\n"
        "def nan(session):\n    return float('nan')\n"
        "def text(session):\n    return 'much'\n"
        "def fails(session):\n    return good(None)\n"
        "def leaves(session):\n    raise SystemExit(3)\n"
        "number = 3\n"
    )
    (tmp_path / "helper_of_hook.py").write_text("SCORE = 0.25\n")
    model = build(
        [helper.make_node("Relu", ["x"], ["y"])],
        [info("x", TensorProto.FLOAT, [1])],
        [info("y", TensorProto.FLOAT, [1])],
    )
    session = Session(model)
    assert Evaluation.open(f"{path}:good")(session) == 0.25
    assert Evaluation.open(lambda raw: np.float32(len(raw.get_outputs()))).reference(session) == 1
    assert capsys.readouterr().out == ""  # what a hook prints is no result of ours
    assert Evaluation.open(f"{path}:zero")(session) == 0
    with pytest.raises(HookError, match="returned 0 for the original"):
        Evaluation.open(f"{path}:zero").reference(session)
    cases = {
        "nan": "finite",
        "text": "'much'",
        "fails": r"AttributeError.*hook\.py line 5",
        "leaves": "SystemExit: 3",
    }
    for name, words in cases.items():
        with pytest.raises(HookError, match=words) as caught:
            Evaluation.open(f"{path}:{name}")(session)
        assert "\n" not in str(caught.value)
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("def f(:\n", "f", "SyntaxError.*line 1"),
        ("import no_such_module_anywhere\n", "f", "ModuleNotFoundError.*line 1"),
        ("def score(s):\n    return 1\n", "scor", "did you mean 'score'"),
        ("def score(s):\n    return 1\n", "x y", "FILE.py:FUNCTION"),
        (None, "f", "does not exist"),
    ],
)
def test_hooks_that_do_not_load(tmp_path, text, name, words):
    path = tmp_path / "hook.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(HookError, match=words) as caught:
        Evaluation.open(f"{path}:{name}")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_most_operators_run_on_generated_inputs():
    """A part of the ONNX backend corpus: models of one operator with inputs of every type."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the corpus computes its expected outputs with overflows on purpose
        cases = importlib.import_module("onnx.backend.test.loader").load_node_model_tests()
    refused = []
    judged = 0
    for case in cases[::23]:
        model = Model.load(case.model)
        try:
            session = Session(model)
        except ModelError:  # ONNX Runtime has no kernel for it
            continue
        judged += 1
        with contextlib.suppress(DataError):
            generate(model, session, count=1)
            continue
        refused.append(case.name)
    assert judged > 60
    assert len(refused) <= 0.05 * judged, refused
