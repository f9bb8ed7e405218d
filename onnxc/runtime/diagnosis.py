"""What ONNX Runtime meant: its exceptions as one line with the operator and node.

In: an exception raised while a session was created or run. Out: the sentence (or error) that the user sees.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator

import onnx

from onnxc.errors import DataError, InputError, ModelError

_LONGEST = 400  # characters; ONNX Runtime sometimes quotes whole type lists


def one_line(error: BaseException) -> str:
    """The message of ``error`` as one line, without ONNX Runtime's error code and source positions."""
    text = " ".join(str(error).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"/onnxruntime_src/\S+:\d+ .*?\)( const\b| \[with .*?\])* (?=\S)", "", text)
    text = re.sub(
        r"^((Exception during (initialization|loading)|Fatal error|This is an invalid model\.) ?:? )",
        "",
        text,
    )
    text = text.replace(" Please fix either the inputs/outputs or the model.", "").strip()
    if not text:
        return type(error).__name__
    return text[: _LONGEST - 3] + "..." if len(text) > _LONGEST else text


def load_failure(error: BaseException, where: str, proto: Callable[[], onnx.ModelProto]) -> str:
    """Why a session could not be created.

    Args:
        error: what InferenceSession raised.
        where: the path of the model, or "" when it has none.
        proto: reads the model (weights not needed); called only to find the name of a node.
    """
    text = one_line(error)
    if "Failed to write external initializers" in text or "No space left" in text:
        return (
            f"ONNX Runtime cannot write to the temporary folder {tempfile.gettempdir()}: make room there or set TMPDIR"
        )
    advice = "register it with --custom-ops LIB"
    if found := re.search(r"([\w.\-]*):(\w+)\(-?\d+\) is not a registered function/op", text):
        domain, op = found.groups()
        node = _first_node(proto, op, domain)
        return f"ONNX Runtime cannot run {_node(node, op)} of domain {domain or 'ai.onnx'}: unknown; {advice}"
    if found := re.search(r'In Node, \("(.*?)", ([\w.]+), "(.*?)", .*Error No Op registered for \S+ with (.*)', text):
        name, op, domain, version = found.groups()
        version = version.replace("domain_version of", "opset")
        where = f"{_node(name, op)} of domain {domain or 'ai.onnx'}"
        return f"ONNX Runtime cannot run {where}: unknown in {version}; {advice}"
    if found := re.search(r"Could not find an implementation for (\w+)\((\d+)\) node with name '(.*?)'", text):
        op, version, name = found.groups()
        return f"ONNX Runtime cannot run {_node(name, op)}: no kernel of version {version} for these types"
    if found := re.search(r'In Node, \("(.*?)", ([\w.]+), .*?, Error (.*)', text):
        name, op, reason = found.groups()
        return f"ONNX Runtime cannot load {_node(name, op)}: {reason}"
    return f"{where}: {text}" if where else f"ONNX Runtime cannot load the model: {text}"


def run_failure(error: BaseException) -> InputError:
    """The error for a failed run: DataError when the inputs were refused, ModelError when a node failed."""
    text = one_line(error)
    pattern = r"Non-zero status code returned while running (\w+) node\. Name:'(.*?)' Status Message: ?(.*)"
    if found := re.search(pattern, text):
        op, name, reason = found.groups()
        return ModelError(f"ONNX Runtime failed in {_node(name, op)}: {reason or 'no reason given'}")
    if found := re.search(r"Required inputs \(\[(.*?)\]\) are missing", text):
        return DataError(f"input {found.group(1)} is missing: give an array for every input of the model")
    return DataError(f"the inputs do not fit the model: {text}")


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node of ``graph`` and of the bodies in it, depth first."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from nodes(attribute.g)
            for body in attribute.graphs:
                yield from nodes(body)


def _node(name: str, op: str) -> str:
    return f"node {name!r} (operator {op})" if name else f"operator {op} (its node has no name)"


def _first_node(proto: Callable[[], onnx.ModelProto], op: str, domain: str) -> str:
    try:
        model = proto()
        candidates = list(nodes(model.graph))
        candidates += [each for function in model.functions for each in function.node]
    except Exception:  # noqa: BLE001 - this only decorates an error that is already on its way
        return ""
    names = [node.name for node in candidates if node.op_type == op and node.domain == domain]
    return names[0] if names else ""
