"""How long unfolding takes on this machine. In: prices. Out: seconds of it for each that formats say.

Formats tell what they cost at load in seconds of one machine (codes/formats.py). Another is slower or faster by a
factor, which a small model shows: the same codes of some weights, packed and as they are.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from onnxc.cheapest import load_seconds
from onnxc.codes.fitting import make_grid
from onnxc.codes.formats import parse_format
from onnxc.codes.gptq import gptq
from onnxc.codes.layouts import layout_of
from onnxc.codes.packing import packed
from onnxc.codes.sheets import Packed, Sheet, emit_together
from onnxc.loading import load_costs
from onnxc.model import Model
from onnxc.price_file import PriceFile, cpu_name
from onnxc.session import Options, runtime_version

MODES, EACH, SHAPE = ("levels16", "trellis16"), 5, (96, 256)  # formats, weights of each, and their shape
LEAST, MOST = 0.2, 2.5  # a machine as fast or slow as that was disturbed


def load_pace(options: Options, prices: PriceFile) -> float:
    """The factor, measured once for a price file."""
    key = f"pace of loading in turn | {options.threads} threads | onnxruntime {runtime_version()} | {cpu_name()}"
    if key not in prices.entries:
        with TemporaryDirectory(prefix="onnxc-", ignore_cleanup_errors=True) as folder:
            plain, small = Path(folder, "plain.onnx"), Path(folder, "packed.onnx")
            codes = weights()
            products(codes).save(plain)
            unfolding(codes).save(small)
            before, after = load_costs(plain, small, options)
        elements = int(np.prod(SHAPE))
        expected = sum(
            EACH * load_seconds(mode, elements) + parse_format(mode).chain_seconds(EACH * elements) for mode in MODES
        )
        prices.entries[key] = float(np.clip((after.seconds - before.seconds) / expected, LEAST, MOST))
    return prices.entries[key]


def weights() -> dict[str, tuple[np.ndarray, Packed]]:
    """Codes by name, int8, and their packed form."""
    found, random = {}, np.random.default_rng(0)
    for mode in MODES:
        chosen = parse_format(mode)
        for number in range(EACH):
            matrix = random.standard_normal((1, *SHAPE)).astype(np.float32)
            grid, scale = make_grid(matrix, chosen, np.ones(matrix.shape[:2], np.float32), 127)
            values, digits = gptq(matrix / scale[:, None], None, grid)
            form = packed(chosen, grid, digits, layout_of(SHAPE, 1, 1), native=False)
            found[f"{mode}_{number}"] = values[0].astype(np.int8), form
    return found


def products(codes: dict[str, tuple[np.ndarray, Packed]]) -> Model:
    """A model that multiplies its input with every weight, in int8."""
    nodes = [helper.make_node("MatMulInteger", ["x", name], [f"y_{name}"]) for name in codes]
    ends = [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, SHAPE[0]])]
    outputs = [helper.make_tensor_value_info(f"y_{name}", TensorProto.INT32, [1, SHAPE[1]]) for name in codes]
    stored = [numpy_helper.from_array(values, name) for name, (values, _) in codes.items()]
    graph = helper.make_graph(nodes, "pace", ends, outputs, stored)
    return Model.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8))


def unfolding(codes: dict[str, tuple[np.ndarray, Packed]]) -> Model:
    """The same model, its weights packed."""
    model = products(codes)
    stored = list(model.graph.weights)
    made = emit_together(Sheet(model), {f"{name}_q": form for name, (_, form) in codes.items()})
    for weight in stored:
        model.redirect(weight, made[f"{weight.name}_q"])
    model.tidy()
    return model
