r"""Scores of the stored models: hooks for `onnxc --eval`, a command for the score that is reported.

In: an ONNX model (or a session of one) that answers the same task as a stored model, and `models/data/*.npz`.
Out: the share of items it classifies right. The hooks (`quality_NAME`) count the *select* items, `score`
counts the *test* items; the calibration data (`models/data/NAME_calib.npz`) has items of neither, and nothing
was trained on any of the three.

    onnxc optimize models/residual_cnn.onnx small.onnx \
        --calib models/data/residual_cnn_calib.npz --eval models/evaluate.py:quality_residual_cnn
    python models/evaluate.py score residual_cnn small.onnx

Needs numpy and onnxruntime, nothing else.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

HERE = Path(__file__).resolve().parent
PARTS = ("select", "test")


class Task(NamedTuple):
    """What a model is asked: the items of `data` (models/data/DATA.npz), made into its input by `prepare`."""

    data: str
    prepare: Callable[[np.ndarray], np.ndarray]
    batch: int = 50


def image(pixels: np.ndarray) -> np.ndarray:
    """Float32 [n, 1, 28, 28] of uint8 [n, 28, 28], with MNIST's usual mean and deviation."""
    return ((pixels[:, None].astype(np.float32) / np.float32(255) - 0.1307) / 0.3081).astype(np.float32)


def rows(pixels: np.ndarray) -> np.ndarray:
    """Float32 [n, 28, 28]: the same, each row of pixels one time step."""
    return image(pixels)[:, 0]


def channels_last(pixels: np.ndarray) -> np.ndarray:
    """Float32 [n, 28, 28, 1]: the same, channels last."""
    return image(pixels)[:, 0, :, :, None]


def floats(values: np.ndarray) -> np.ndarray:
    """Float32 of the same shape."""
    return values.astype(np.float32)


def tokens(values: np.ndarray) -> np.ndarray:
    """Int32 of the same shape."""
    return values.astype(np.int32)


TASKS = {
    "residual_cnn": Task("mnist", image),
    "depthwise_cnn": Task("mnist", image),
    "vision_transformer": Task("mnist", image),
    "lstm": Task("mnist", rows),
    "text_gru": Task("glosses", tokens),
    "mixer": Task("mnist", channels_last),
    "sklearn_mlp": Task("digits", floats),
    "lightgbm_trees": Task("digits", floats),
}


def items(name: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of a model's `select` or `test` items, and the right answers."""
    task = TASKS[name]
    with np.load(HERE / "data" / f"{task.data}.npz") as archive:
        return task.prepare(archive[f"{part}_x"]), archive[f"{part}_y"].astype(np.int64)


def answers(session: Any, inputs: np.ndarray, batch: int) -> tuple[np.ndarray, float]:
    """Class number of every item, -1 where a score is not finite, and the median seconds of one call.

    The class scores are the model's last output: converters of scikit-learn and LightGBM put the label first.
    A model with a fixed batch gets batches of that size, the last one filled up from the first items.
    """
    source, scores = session.get_inputs()[0], session.get_outputs()[-1].name
    fixed = isinstance(source.shape[0], int)
    size = source.shape[0] if fixed else batch
    found, seconds = [], []
    for start in range(0, len(inputs), size):
        stop = start + size if fixed else min(start + size, len(inputs))
        given = inputs.take(range(start, stop), axis=0, mode="wrap")
        begin = time.perf_counter()
        (result,) = session.run([scores], {source.name: given})
        seconds.append(time.perf_counter() - begin)
        result = result[: len(inputs) - start]
        found.append(np.where(np.isfinite(result).all(axis=1), result.argmax(axis=1), -1))
    return np.concatenate(found), float(np.median(seconds))


def quality(name: str, session: Any, part: str = "select") -> float:
    """Share of a part's items that the session of any model for this task classifies right."""
    inputs, truth = items(name, part)
    return float((answers(session, inputs, TASKS[name].batch)[0] == truth).mean())


def quality_residual_cnn(session: Any) -> float:
    """Accuracy of `residual_cnn` on the select items, for `--eval`."""
    return quality("residual_cnn", session)


def quality_depthwise_cnn(session: Any) -> float:
    """Accuracy of `depthwise_cnn` on the select items, for `--eval`."""
    return quality("depthwise_cnn", session)


def quality_vision_transformer(session: Any) -> float:
    """Accuracy of `vision_transformer` on the select items, for `--eval`."""
    return quality("vision_transformer", session)


def quality_lstm(session: Any) -> float:
    """Accuracy of `lstm` on the select items, for `--eval`."""
    return quality("lstm", session)


def quality_text_gru(session: Any) -> float:
    """Accuracy of `text_gru` on the select items, for `--eval`."""
    return quality("text_gru", session)


def quality_mixer(session: Any) -> float:
    """Accuracy of `mixer` on the select items, for `--eval`."""
    return quality("mixer", session)


def quality_sklearn_mlp(session: Any) -> float:
    """Accuracy of `sklearn_mlp` on the select items, for `--eval`."""
    return quality("sklearn_mlp", session)


def quality_lightgbm_trees(session: Any) -> float:
    """Accuracy of `lightgbm_trees` on the select items, for `--eval`."""
    return quality("lightgbm_trees", session)


def open_session(path: Path, threads: int = 1) -> Any:
    """A session on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def records() -> dict[str, dict[str, Any]]:
    """What is known of the stored models (models/scores.json)."""
    path = HERE / "scores.json"
    found: dict[str, dict[str, Any]] = json.loads(path.read_text("utf8")) if path.exists() else {}
    return found


def score(name: str, path: Path, part: str = "test", threads: int = 1) -> dict[str, Any]:
    """Score of a model file on a part's items, next to the stored model's, ready for JSON.

    `drop_relative` is (stored - new) / stored; `one_item` is how much of it a single item makes.
    """
    inputs, truth = items(name, part)
    found, seconds = answers(open_session(path, threads), inputs, TASKS[name].batch)
    value = float((found == truth).mean())
    baseline = records().get(name, {}).get(part, value)
    return {
        "name": name,
        "part": part,
        "metric": "accuracy",
        "value": value,
        "items": len(truth),
        "baseline": baseline,
        "drop_relative": round((baseline - value) / baseline, 6),
        "one_item": round(1 / len(truth) / baseline, 6),
        "bytes": path.stat().st_size,
        "milliseconds": round(1000 * seconds, 3),
        "batch": TASKS[name].batch,
        "threads": threads,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Scores of the stored models.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the models, their sizes and scores")
    one = commands.add_parser("score", help="one JSON line: how well a model does on the test items")
    one.add_argument("name", choices=TASKS)
    one.add_argument("model", nargs="?", type=Path, help="default: the stored model")
    one.add_argument("--part", choices=PARTS, default="test")
    one.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    if given.command == "list":
        for name, record in records().items():
            print(f"{name:14} {record['bytes']:9,} bytes  test {record['test']:.4f}  {record['what']}")
    else:
        path = given.model or HERE / f"{given.name}.onnx"
        print(json.dumps(score(given.name, path, given.part, given.threads)))


if __name__ == "__main__":
    main()
