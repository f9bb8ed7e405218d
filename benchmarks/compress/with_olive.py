"""Olive, its passes one at a time, as its command line runs them.

dynamic: OnnxDynamicQuantization, int8 weights.
static: OnnxStaticQuantization, QDQ, ranges by minimum and maximum.
rtn4: OnnxBlockWiseRtnQuantization, 4 bits in blocks of 128.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"  # before the import

import job
import onnx
from olive.data.config import DataConfig
from olive.data.registry import Registry
from olive.model import ONNXModelHandler
from olive.passes.olive_pass import create_pass_from_dict
from olive.passes.onnx.quantization import OnnxDynamicQuantization, OnnxStaticQuantization
from olive.passes.onnx.rtn_quantization import OnnxBlockWiseRtnQuantization


def through(work: job.Job, kind: type, fields: dict[str, Any]) -> None:
    """Run one pass and keep its result as one file."""
    with tempfile.TemporaryDirectory() as folder:
        made = create_pass_from_dict(kind, fields, disable_search=True).run(
            ONNXModelHandler(str(work.source)), str(Path(folder, "out"))
        )
        work.save(onnx.load(made.model_path))


def dynamic(work: job.Job) -> None:
    """For recurrent and linear layers, so without Conv."""
    through(work, OnnxDynamicQuantization, {"precision": "int8", "op_types_to_exclude": ["Conv"]})


def static(work: job.Job) -> None:
    """The samples come as a data set and its loader, both registered under the name "samples"."""

    @Registry.register_dataset("samples")
    def dataset(**_: Any) -> list[job.Sample]:
        return list(work.samples())

    @Registry.register_dataloader("samples")
    def loader(found: list[job.Sample], **_: Any) -> list[tuple[job.Sample, int]]:
        return [(sample, 0) for sample in found]

    data = DataConfig(
        name="samples",
        load_dataset_config={"type": "samples"},
        pre_process_data_config={"type": "skip_pre_process"},
        post_process_data_config={"type": "skip_post_process"},
        dataloader_config={"type": "samples"},
    )
    fields = {"precision": "int8", "activation_type": "uint8", "per_channel": True, "data_config": data}
    through(work, OnnxStaticQuantization, fields)


def rtn4(work: job.Job) -> None:
    """Round to nearest."""
    through(work, OnnxBlockWiseRtnQuantization, {"bits": 4, "block_size": 128, "accuracy_level": 4})


if __name__ == "__main__":
    job.main({"dynamic": dynamic, "static": static, "rtn4": rtn4})
