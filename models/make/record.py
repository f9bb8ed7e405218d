"""Records what the README says: `models/scores.json`, the calibration files, the table of models/README.md.

In: the models of `models/*.onnx` and the data of `models/data`. Run after a model or a data set changed.

    python models/make/record.py      # numpy, onnx==1.23.2, onnxruntime==1.32.0, scikit-learn==1.9.1
"""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any, NamedTuple

import data
import numpy as np
import onnx

MODELS = data.MAKE.parent
sys.path.insert(0, str(MODELS))
import evaluate  # noqa: E402 - it stands alone, next to the models


class About(NamedTuple):
    """What no file can tell of a model."""

    what: str
    framework: str
    exporter: str


ABOUT = {
    "residual_cnn": About("residual CNN (ResNet)", "PyTorch", "torch.onnx, tracing"),
    "depthwise_cnn": About("depthwise CNN (MobileNetV2)", "PyTorch", "torch.onnx, torch.export"),
    "vision_transformer": About("vision transformer", "PyTorch", "torch.onnx, torch.export"),
    "lstm": About("two-layer LSTM over pixel rows", "PyTorch", "torch.onnx, tracing"),
    "text_gru": About("word embedding and bidirectional GRU", "TensorFlow/Keras", "tf2onnx"),
    "mixer": About("MLP-Mixer", "JAX/Flax", "jax2onnx"),
    "sklearn_mlp": About("scaler and MLP pipeline", "scikit-learn", "skl2onnx"),
    "lightgbm_trees": About("gradient boosted trees", "LightGBM", "onnxmltools"),
}
DATA = {"mnist": "MNIST", "digits": "scikit-learn's digits", "glosses": "WordNet's glosses"}


def parameters(model: onnx.ModelProto) -> int:
    """Numbers in initializers and constants of the main graph, and in the attributes of tree ensembles."""
    count = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                count += int(np.prod(attribute.t.dims))
            count += len(attribute.floats)
    return count


def write_calibration(name: str) -> None:
    """Calibration samples in the form of the model's own input, stacked along axis 0."""
    task = evaluate.TASKS[name]
    model = onnx.load(MODELS / f"{name}.onnx", load_external_data=False)
    samples = task.prepare(data.load(task.data).calib.x)
    np.savez_compressed(MODELS / "data" / f"{name}_calib.npz", **{model.graph.input[0].name: samples})


def main() -> None:
    """Write everything."""
    found = {}
    for name in (name for name in evaluate.TASKS if (MODELS / f"{name}.onnx").exists()):
        path = MODELS / f"{name}.onnx"
        write_calibration(name)
        model = onnx.load(path)
        record = {
            **ABOUT[name]._asdict(),
            "data": evaluate.TASKS[name].data,
            "opset": next(entry.version for entry in model.opset_import if entry.domain == ""),
            "parameters": parameters(model),
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for part in evaluate.PARTS:
            record[part] = evaluate.score(name, path, part)["value"]
        found[name] = record
        print(name, record)
    (MODELS / "scores.json").write_text(json.dumps(found, indent=2) + "\n", "utf8")
    readme = MODELS / "README.md"
    before, _, rest = readme.read_text("utf8").partition("<!-- table -->\n")
    _, _, after = rest.partition("<!-- end of table -->\n")
    readme.write_text(f"{before}<!-- table -->\n{table(found)}<!-- end of table -->\n{after}", "utf8")


def table(found: dict[str, dict[str, Any]]) -> str:
    """The models as a Markdown table."""
    lines = [
        "| name | what it is | framework, exporter | opset | parameters | bytes | test | select | data |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, record in found.items():
        cells = [
            f"`{name}`",
            record["what"],
            f"{record['framework']}, {record['exporter']}",
            record["opset"],
            f"{record['parameters']:,}",
            f"{record['bytes']:,}",
            f"{record['test']:.4f}",
            f"{record['select']:.4f}",
            DATA[record["data"]],
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
