"""Damaged files are refused in one line, new ones appear whole or not at all, weights stay on disk."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxc.errors import ModelError
from onnxc.exactness import file_bytes
from onnxc.file import storage
from onnxc.model import Model

LARGE = np.arange(16384, dtype=np.float32).reshape(4, 4096)


def example() -> ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(LARGE[0], "value")),
        helper.make_node("Add", ["h", "k"], ["y"], name="last"),
    ]
    inputs = [helper.make_tensor_value_info("x", 1, ["batch", 4])]
    outputs = [helper.make_tensor_value_info("y", 1, ["batch", 4096])]
    weights = [numpy_helper.from_array(LARGE, "w"), numpy_helper.from_array(LARGE[1], "spare")]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(example(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """The example with its weights in model.data."""
    onnx.save(example(), tmp_path / "e.onnx", save_as_external_data=True, location="model.data", size_threshold=1000)
    return tmp_path / "e.onnx"


class TestReading:
    def test_weights_are_views_of_the_file(self, path: Path) -> None:
        model = Model.load(path)
        weight = model.graph.weights[0]
        assert weight.stored is not None
        assert weight.stored.raw is not None
        assert weight.values.base is not None
        assert not weight.values.flags.owndata
        assert not weight.values.flags.writeable
        assert np.array_equal(weight.values, LARGE)
        assert model.source_bytes == path.stat().st_size
        assert model.proto(weights=False).ByteSize() < 1000
        assert model.proto() == example()

    def test_the_same_bytes_come_back(self, path: Path) -> None:
        before = path.read_bytes()
        model = Model.load(path)
        assert model.serialized() == before
        assert model.save(path) == len(before)
        assert path.read_bytes() == before
        assert np.array_equal(model.graph.weights[0].values, LARGE)  # of the file that was replaced

    def test_external_data(self, external: Path) -> None:
        model = Model.load(external)
        assert model.source_bytes == external.stat().st_size + (external.parent / "model.data").stat().st_size
        assert model.proto() == example()
        model.save(external.parent / "inline.onnx")
        assert onnx.load(external.parent / "inline.onnx") == example()
        with pytest.raises(ModelError, match="hand over the model's path"):
            Model.load(onnx.load(external, load_external_data=False))

    def test_graphs_that_are_not_there(self) -> None:
        assert Model.load(ModelProto(ir_version=8)).proto() == ModelProto(ir_version=8)
        old = example()
        del old.opset_import[:]
        assert Model.load(old).opset == 1


def damage(change: Callable[[ModelProto], Any]) -> ModelProto:
    model = example()
    change(model)
    return model


class TestRefusals:
    def refused(self, source: Any, match: str) -> None:
        with pytest.raises(ModelError, match=match) as caught:
            Model.load(source)
        assert "\n" not in str(caught.value)

    def test_not_a_model(self, tmp_path: Path, path: Path) -> None:
        self.refused(tmp_path / "missing.onnx", "missing.onnx does not exist")
        self.refused(tmp_path, "is a folder")
        for name, data in {
            "empty": b"",
            "text": b"hello, this is no model\n" * 10,
            "cut": path.read_bytes()[:-100],
            "zeros": bytes(1000),
        }.items():
            (tmp_path / name).write_bytes(data)
            self.refused(tmp_path / name, f"{name} is (empty|not an ONNX model)")
        os.mkfifo(tmp_path / "pipe")
        self.refused(tmp_path / "pipe", "not a regular file")
        self.refused("a\0b", "cannot be read")

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (lambda m: m.graph.node[0].input.__setitem__(0, "q"), "node 'first' .MatMul.: input 'q'"),
            (
                lambda m: m.graph.node[2].output.__setitem__(0, "h"),
                "node 'last' .Add.: output 'h' is made twice",
            ),
            (lambda m: m.graph.node[0].output.__setitem__(0, "x"), "output 'x' is made twice"),
            (
                lambda m: m.graph.initializer.append(m.graph.initializer[0]),
                "initializer 'w': the name is taken",
            ),
            (
                lambda m: m.graph.initializer[0].dims.append(2),
                "initializer 'w' of shape .4, 4096, 2. needs 131072",
            ),
            (lambda m: m.graph.initializer[0].dims.__setitem__(0, -4), "impossible shape"),
            (lambda m: m.graph.initializer[0].dims.__setitem__(0, 1 << 62), "impossible shape"),
            (lambda m: setattr(m.graph.initializer[0], "data_type", 99), "'w' has element type 99"),
            (
                lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 77),
                "tensor 'x': no element type 77",
            ),
            (
                lambda m: setattr(m.graph.node[1].attribute[0].t, "raw_data", b"12345"),
                "node '' .Constant.: tensor",
            ),
            (lambda m: m.graph.output.add(name="nobody"), "output 'nobody' is made by no node"),
            (lambda m: m.graph.output.append(m.graph.output[0]), "output 'y' is listed twice"),
            (lambda m: m.graph.input.append(m.graph.input[0]), "input 'x': the name is taken"),
            (lambda m: m.graph.node[0].ClearField("op_type"), "node 'first' has no operator"),
            (
                lambda m: m.graph.node[0].attribute.extend(m.graph.node[1].attribute[:] * 2),
                "'value' is given twice",
            ),
        ],
    )
    def test_unsound_graphs(self, change: Callable[[ModelProto], Any], match: str) -> None:
        self.refused(damage(change), match)

    @pytest.mark.parametrize(
        ("key", "value", "match"),
        [
            ("location", "../model.data", "outside the model's folder"),
            ("location", "{folder}/model.data", "not a relative path"),
            ("location", "link.data", "outside the model's folder"),
            ("location", "sub/../model.data", "outside the model's folder"),
            ("location", "..\\model.data", "outside the model's folder"),
            ("location", "", "not a relative path"),
            ("location", "none.data", "none.data does not exist"),
            ("location", "pipe", "not a regular file"),
            ("offset", "-1", "needs bytes -1"),
            ("offset", "70000", "needs bytes 70000"),
            ("length", "99999999", "which has"),
            ("length", "65532", "needs 65536 bytes or entries, has 65532"),
            ("length", "many", "no number"),
        ],
    )
    def test_external_data(self, external: Path, key: str, value: str, match: str) -> None:
        folder = external.parent
        outside = folder.parent / f"{folder.name}.outside"
        outside.write_bytes((folder / "model.data").read_bytes())
        (folder / "link.data").symlink_to(outside)
        os.mkfifo(folder / "pipe")
        model = onnx.load(external, load_external_data=False)
        entries = {entry.key: entry for entry in model.graph.initializer[0].external_data}
        entry = entries.get(key) or model.graph.initializer[0].external_data.add(key=key)
        entry.value = value.format(folder=folder)
        onnx.save(model, external)
        self.refused(external, match)

    def test_a_thousand_damaged_files(self, tmp_path: Path) -> None:
        generator = random.Random(0)
        sound, file = example().SerializeToString(), tmp_path / "damaged.onnx"
        heads = len(sound) - 3 * 16384
        messages = []
        for _ in range(1000):
            data = bytearray(sound)
            for _ in range(generator.randrange(1, 6)):
                place = generator.choice([generator.randrange(heads), generator.randrange(len(data))])
                data[place] = generator.choice([generator.randrange(256), data[place] ^ 1, 0, 255])
            file.write_bytes(data[: generator.randrange(len(data))] if generator.random() < 0.1 else data)
            try:
                model = Model.load(file)
                model.tidy()
                model.serialized()
            except ModelError as error:
                messages.append(str(error))
        assert 100 < len(messages) < 1000
        assert not any("\n" in message for message in messages)


class Interruption:
    """Stands for a file's ``writelines``: fails in the middle."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self, path: Path, write: Callable[[BinaryIO], None]) -> None:
        class Broken:
            def writelines(_, pieces: Any) -> None:  # noqa: N805 - the error is the outer one's
                next(iter(pieces))
                raise self.error

        original(path, lambda _: write(Broken()))  # type: ignore[arg-type]  # all that is used of a file


original = storage.replace_file


class TestWriting:
    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), MemoryError()])
    @pytest.mark.parametrize("external_data", [False, True])
    def test_failures_leave_the_old_file(
        self, path: Path, error: BaseException, external_data: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = Model.load(path)
        model.graph.weights[0].values = np.zeros((4, 4096), np.float32)
        before = path.read_bytes()
        monkeypatch.setattr(storage, "replace_file", Interruption(error))
        expected = ModelError if isinstance(error, OSError) else type(error)
        with pytest.raises(expected, match="No space left on device" if isinstance(error, OSError) else None):
            model.save(path, external_data=external_data)
        assert path.read_bytes() == before
        assert [item.name for item in path.parent.iterdir()] == [path.name]

    def test_failure_at_the_model_takes_its_data_away(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model = Model.load(path)

        def fail_at_the_model(target: Path, write: Callable[[BinaryIO], None]) -> None:
            if target.suffix == ".data":
                return original(target, write)
            raise KeyboardInterrupt

        monkeypatch.setattr(storage, "replace_file", fail_at_the_model)
        with pytest.raises(KeyboardInterrupt):
            model.save(path, external_data=True)
        assert [item.name for item in path.parent.iterdir()] == [path.name]

    def test_targets_that_cannot_be(self, path: Path, tmp_path: Path) -> None:
        model = Model.load(path)
        for target, match in (
            (tmp_path, "not a regular file"),
            (tmp_path / "no" / "out.onnx", "there is no folder"),
            (Path("/dev/null"), "not a regular file"),
        ):
            with pytest.raises(ModelError, match=match):
                model.save(target)

    def test_external_data(self, path: Path, tmp_path: Path) -> None:
        model = Model.load(path)
        total = model.save(tmp_path / "out.onnx", external_data=True)
        data = sorted(item.name for item in tmp_path.glob("out.onnx.*.data"))
        assert len(data) == 1
        assert len(data[0]) == len("out.onnx.") + 8 + len(".data")
        assert total == sum(item.stat().st_size for item in tmp_path.glob("out.onnx*"))
        read = onnx.load(tmp_path / "out.onnx").graph.initializer
        assert [numpy_helper.to_array(item).tolist() for item in read] == [LARGE.tolist(), LARGE[1].tolist()]
        plain = onnx.load(tmp_path / "out.onnx", load_external_data=False)
        offsets = [int(e.value) for w in plain.graph.initializer for e in w.external_data if e.key == "offset"]
        assert offsets == [0, 65536]
        assert Model.load(tmp_path / "out.onnx").proto() == example()
        model.save(tmp_path / "out.onnx", external_data=True)  # the same content has the same name
        assert sorted(item.name for item in tmp_path.glob("out.onnx.*.data")) == data

    def test_over_two_gigabytes_goes_outside(self, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(storage, "PROTOBUF_LIMIT", 50_000)
        model = Model.load(path)
        with pytest.raises(ModelError, match="more than one message can hold"):
            model.serialized()
        model.save(tmp_path / "out.onnx")
        assert len(list(tmp_path.glob("out.onnx.*.data"))) == 1
        monkeypatch.undo()
        assert Model.load(tmp_path / "out.onnx").proto() == example()

    def test_layouts_and_types_are_written_in_row_order(self, path: Path, tmp_path: Path) -> None:
        model = Model.load(path)
        for values in (
            LARGE.T,
            LARGE[:, ::2],
            LARGE.astype(">f4"),
            np.asfortranarray(LARGE),
            LARGE.astype(bool),
        ):
            for outside in (False, True):
                model.graph.weights[1].values = values
                model.save(tmp_path / "out.onnx", external_data=outside)
                assert np.array_equal(Model.load(tmp_path / "out.onnx").graph.weights[1].values, values)

    def test_links_and_modes_stay(self, path: Path, tmp_path: Path) -> None:
        link = tmp_path / "link.onnx"
        link.symlink_to(path)
        path.chmod(0o640)
        Model.load(path).save(link)
        assert link.is_symlink()
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_narrow_types_of_any_size(tmp_path: Path) -> None:
    """2 and 4 bit types are packed in the file and unfold to a byte each; large ones are mapped, too."""
    for data_type in (TensorProto.INT4, TensorProto.UINT4, TensorProto.UINT2, TensorProto.FLOAT8E4M3FN):
        for count in (1, 5, 9001, 20000):
            dtype = helper.tensor_dtype_to_np_dtype(data_type)
            values = (np.arange(count) % 2).astype(dtype)
            model = Model.load(example())
            model.graph.weights[1].values = values
            model.save(tmp_path / "m.onnx")
            again = Model.load(tmp_path / "m.onnx")
            assert again.graph.weights[1].values.dtype == dtype
            assert again.graph.weights[1].values.tolist() == values.tolist()
            assert again.serialized() == (tmp_path / "m.onnx").read_bytes()


STORED = sorted((Path(__file__).parents[1] / "models").glob("*.onnx"))


@pytest.mark.parametrize("stored", STORED, ids=[each.stem for each in STORED])
def test_the_size_of_a_file_is_known_before_it_is_written(stored: Path) -> None:
    """Of weights in raw and in typed fields (sklearn-onnx writes those), unedited and edited."""
    model = Model.load(stored)
    assert file_bytes(model) == pytest.approx(stored.stat().st_size, abs=200)
    for graph in model.graphs():
        for tensor in graph.weights:
            tensor.values = np.array(tensor.values)
    assert file_bytes(model) == pytest.approx(len(model.serialized()), abs=200)
