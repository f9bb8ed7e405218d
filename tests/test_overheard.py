"""Answers on the items of a user's score: what is heard of them, and what a hook may do meanwhile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxc.overheard import Overheard
from onnxc.session import Session

ITEMS = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)


def session(weight: np.ndarray) -> Session:
    """Two class scores and the inputs of words that are counted beside them."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["scores"]), helper.make_node("Identity", ["word"], ["said"])],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4]),
            helper.make_tensor_value_info("word", TensorProto.STRING, [1]),
        ],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 2]),
            helper.make_tensor_value_info("said", TensorProto.STRING, [1]),
        ],
        [numpy_helper.from_array(weight, "w")],
    )
    return Session(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


WEIGHT = np.random.default_rng(1).standard_normal((4, 2)).astype(np.float32)
WORD = np.array(["word"], dtype=object)


def in_batches(raw: Any) -> None:
    for start in range(0, 40, 10):
        raw.run(None, {"x": ITEMS[start : start + 10], "word": WORD})


def backwards(raw: Any) -> None:
    for start in (30, 20, 10, 0):
        raw.run(output_names=["said", "scores"], input_feed={"word": WORD, "x": ITEMS[start : start + 10]})


@pytest.mark.parametrize("hook", [in_batches, backwards])
def test_answers_are_compared_whatever_the_order(hook: Any) -> None:
    original, new = session(WEIGHT), session(WEIGHT + np.float32(0.3) * np.eye(4, 2, dtype=np.float32))
    overheard = Overheard({"scores": -1})
    with overheard.listening(original) as overheard.original:
        in_batches(original.raw)
    with overheard.listening(new) as heard:
        hook(new.raw)
    before, after = ITEMS @ WEIGHT, ITEMS @ (WEIGHT + 0.3 * np.eye(4, 2))
    different = int((before.argmax(1) != after.argmax(1)).sum())
    assert different > 0
    assert overheard.changed(heard) == (different, 40)
    assert overheard.changed(overheard.original) == (0, 40)


def test_a_hook_that_feeds_nothing_twice_tells_nothing() -> None:
    one, generator = session(WEIGHT), np.random.default_rng(2)
    overheard = Overheard({"scores": -1})
    found = []
    for _ in range(2):
        with overheard.listening(one) as heard:
            one.raw.run(None, {"x": generator.standard_normal((10, 4)).astype(np.float32), "word": WORD})
        found.append(heard)
    overheard.original = found[0]
    assert overheard.changed(found[1]) == (0, 0)


def test_a_hook_keeps_its_session() -> None:
    """Its errors are its own, and afterwards run() is what it was."""
    one = session(WEIGHT)
    with Overheard({"scores": -1}).listening(one) as heard:
        assert type(one.raw).__name__ == "InferenceSession"
        assert one.raw.run(["scores"], {"x": ITEMS[:1], "word": WORD})[0] == pytest.approx(ITEMS[:1] @ WEIGHT)
        with pytest.raises(Exception, match="unknown"):
            one.raw.run(["unknown"], {"x": ITEMS, "word": WORD})
        one.raw.run(["said"], {"x": ITEMS[:2], "word": WORD})  # no answer among its outputs
    assert [list(each) for each in heard.values()] == [["scores"], []]
    assert "run" not in vars(one.raw)


def test_labels_are_answers() -> None:
    one, other = session(WEIGHT), np.array(["other"], dtype=object)
    overheard = Overheard({"said": None})
    with overheard.listening(one) as overheard.original:
        one.raw.run(None, {"x": ITEMS, "word": WORD})
        one.raw.run(None, {"x": ITEMS, "word": other})
    assert overheard.changed(overheard.original) == (0, 2)
    swapped = dict(zip(overheard.original, reversed(list(overheard.original.values())), strict=True))
    assert overheard.changed(swapped) == (2, 2)


def test_only_so_many_answers_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte each: of four batches of ten the first two."""
    monkeypatch.setattr("onnxc.overheard.MOST_BYTES", 25)
    one, overheard = session(WEIGHT), Overheard({"scores": -1})
    with overheard.listening(one) as overheard.original:
        in_batches(one.raw)
    assert overheard.changed(overheard.original) == (0, 20)
