"""Which outputs of a model are answers. In: a Model. Out: output name -> axis of its class scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxc.model import Model, Node, Tensor

_PASSING = frozenset({"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_CLASSIFIERS = frozenset({"LinearClassifier", "SVMClassifier", "TreeEnsembleClassifier"})
_SCORES = frozenset({"Gemm", "MatMul", "ZipMap", "Normalizer"})
_LABELS = frozenset({"ArgMax", "ArrayFeatureExtractor", "LabelEncoder"})


def class_scores(model: Model) -> dict[str, int | None]:
    """Outputs whose answers matter: name -> axis of the classes; None where the entries are the answers.

    Class scores come from Softmax or LogSoftmax, also written out as exponentials over their sum, from a last Gemm or
    MatMul (and Add of a constant bias: a sum with activations is a hidden state), or from a classifier of ai.onnx.ml;
    answers from ArgMax or a classifier's labels; also through Identity, Cast, Reshape.
    """
    found: dict[str, int | None] = {}
    for output in model.graph.outputs:
        node, tensor, reshaped = _producer(output)
        if node is None:
            continue
        if node.op in ("Softmax", "LogSoftmax"):
            axis = int(node.attrs.get("axis", -1 if model.opset >= 13 else 1))
            found[output.name] = -1 if reshaped else axis
        elif (summed := _summed_exponentials(node, model)) is not None:
            found[output.name] = -1 if reshaped else summed
        elif node.op in _LABELS or (node.op in _CLASSIFIERS and tensor is node.outputs[0]):
            found[output.name] = None
        elif node.op in _SCORES | _CLASSIFIERS or (node.op == "Add" and _adds_bias(node)):
            found[output.name] = -1
    return found


def _summed_exponentials(node: Node, model: Model) -> int | None:
    """The axis of a Softmax that is written out: Exp(x) / ReduceSum(Exp(x)), as JAX does; None of anything else."""
    if node.op != "Div" or not node.inputs[0].inputs or node.inputs[0].inputs[0].op != "Exp":
        return None
    total = node.inputs[1]
    while total.inputs and total.inputs[0].op in _PASSING | {"Expand"}:
        total = total.inputs[0].inputs[0]
    if not total.inputs or total.inputs[0].op != "ReduceSum" or total.inputs[0].inputs[0] is not node.inputs[0]:
        return None
    reduced = total.inputs[0]
    axes = reduced.attrs.get("axes")
    if axes is None and len(reduced.inputs) > 1 and _is_constant(given := reduced.inputs[1]):
        axes = (
            model.values(given).reshape(-1).tolist() if not given.inputs or given.inputs[0].op == "Constant" else None
        )
    return int(axes[0]) if axes is not None and len(axes) == 1 else None


def _producer(tensor: Tensor) -> tuple[Node | None, Tensor, bool]:
    """The node behind changes of type and shape, its output that is meant, and whether the shape changed."""
    reshaped = False
    while tensor.inputs:
        node = tensor.inputs[0]
        if node.op not in _PASSING or node.domain not in (None, "", "ai.onnx"):
            return node, tensor, reshaped
        reshaped |= node.op not in ("Identity", "Cast")
        tensor = node.inputs[0]
    return None, tensor, reshaped


def _adds_bias(node: Node) -> bool:
    """Whether an Add is the one of a linear layer: of a product and a constant."""
    pairs = ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0]))
    return any(a.inputs and a.inputs[0].op == "MatMul" and _is_constant(b) for a, b in pairs)


def _is_constant(tensor: Tensor) -> bool:
    """An initializer or a Constant node's output, also through changes of type and shape."""
    while tensor.inputs and tensor.inputs[0].op in _PASSING | {"DequantizeLinear"}:
        tensor = tensor.inputs[0].inputs[0]
    return tensor.inputs[0].op == "Constant" if tensor.inputs else tensor.is_constant()
