"""Attributes that say what their operator's definition says without them are dropped: 60 bytes of every convolution.

before: Conv {group: 1, dilations: [1, 1], strides: [2, 2], pads: [1, 1, 1, 1]}
after:  Conv {strides: [2, 2], pads: [1, 1, 1, 1]}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx

from onnxc.contract.passes import FinishingPass, Outcome
from onnxc.model import Model

# Optional attributes of windows that have a default in words only, "1 along each spatial axis" from opset 11 on.
WINDOWS_OPSET = 11
WINDOWS = {"Conv", "ConvTranspose", "QLinearConv", "ConvInteger", "MaxPool", "AveragePool", "LpPool"}
SPATIAL = {"strides": 1, "dilations": 1, "pads": 0}


@dataclass(frozen=True)
class StripDefaults(FinishingPass):
    """Remove attributes that have their default value.

    1. Nodes of standard operators, in every graph, by the operator's definition at the model's opset (onnx.defs).
    2. Strides, dilations and paddings of windows, whose defaults the definition has in words.
    3. It must not touch custom operators, nor local functions, whose attributes have defaults of their own.
    """

    name: ClassVar[str] = "strip-defaults"

    def finish(self, model: Model, *, told: bool = False) -> Outcome:
        """Edit ``model`` in place."""
        functions = {(function.domain, function.name) for function in model.functions}
        count = 0
        for node in model.nodes():
            domain = node.domain or ""
            opset = model.opsets.get(domain)
            if not node.attrs or opset is None or (domain, node.op) in functions:
                continue
            defaults = defaults_of(node.op, opset, domain)
            plain = [name for name, value in node.attrs.items() if name in defaults and same(value, defaults[name])]
            if domain == "" and opset >= WINDOWS_OPSET and node.op in WINDOWS:
                plain += [name for name, value in SPATIAL.items() if is_all(node.attrs.get(name), value)]
            for name in plain:
                del node.attrs[name]
            count += len(plain)
        return Outcome(count, (f"{count} attributes removed that only repeat their default",) if count else ())


def defaults_of(operator: str, opset: int, domain: str) -> Mapping[str, Any]:
    """The default values of an operator's optional attributes: numbers, text, and lists of them."""
    try:
        schema = onnx.defs.get_schema(operator, opset, domain)
    except onnx.defs.SchemaError:
        return {}
    optional = {name: each.default_value for name, each in schema.attributes.items() if not each.required}
    return {name: onnx.helper.get_attribute_value(value) for name, value in optional.items() if value.type}


def same(value: Any, default: Any) -> bool:
    """Whether an attribute of the model has the value ``default``."""
    if isinstance(default, bytes):
        default = default.decode()
    if isinstance(default, float) and isinstance(value, int | float):
        return bool(np.float32(value) == np.float32(default))
    return type(value) is type(default) and bool(value == default)


def is_all(value: Any, number: int) -> bool:
    """Whether an attribute is a list of ``number`` alone."""
    return isinstance(value, list | tuple) and len(value) > 0 and all(each == number for each in value)
