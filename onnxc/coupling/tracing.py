"""The shape of every tensor in one run. In: a Model and a sample. Out: tensor name -> shape.

Every tensor gets a Shape node of its own and those are the outputs: nothing large leaves the run.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxc.coupling.operators import RULES
from onnxc.model import Model, Variable
from onnxc.session import Options, Session
from onnxc.shapes import infer


def traced(model: Model, sample: Mapping[str, np.ndarray], options: Options) -> dict[str, tuple[int, ...]]:
    """Shapes of the main graph's tensors when ``sample`` is run; sequences and maps have none.

    Raises:
        ModelError, DataError: the model does not run.
    """
    copy, known = model.copy(), infer(model)
    names: dict[str, str] = {}
    for node in list(copy.graph.nodes):
        for tensor in node.outputs:
            if isinstance(tensor, Variable) and tensor.name and (node.op in RULES or tensor.name in known):
                made = copy.insert("Shape", [tensor], [f"{tensor.name} shape"]).outputs[0]
                made.dtype = np.dtype(np.int64)
                names[tensor.name] = made.name
                copy.graph.outputs.append(made)
    if not names:
        return {name: tuple(np.shape(value)) for name, value in sample.items()}
    keep = set(names.values())
    copy.graph.outputs[:] = [tensor for tensor in copy.graph.outputs if tensor.name in keep]
    copy.tidy()
    found = Session(copy, options).run(sample)
    shapes = {name: tuple(int(size) for size in found[made]) for name, made in names.items()}
    return shapes | {name: tuple(np.shape(value)) for name, value in sample.items()}
