"""What an output joins, each part for itself. In: a model, samples. Out: which entries come from where, and groups.

A detector hands out boxes and scores in one tensor: coordinates up to 640 beside probabilities. At 27 dB of the whole
the scores of one had 3 dB, and found nothing any more. So where the last thing that a graph does is to join tensors,
those that are much quieter than the loudest are judged as outputs of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxc.errors import DataError, ModelError
from onnxc.model import Model, Tensor
from onnxc.session import Options, Session

MOVED = frozenset({"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose"})
MOST = 32  # tensors that one output joins: more are rows of a table
QUIET = 0.2  # of the root mean square of the loudest: what is quieter is not heard beside it
LARGEST = 1 << 31  # bytes of a model that is not held twice for this
KNOWN = 64  # shapes of inputs whose maps are kept
FIRST_OPSET = 9  # that has ConstantOfShape

Labels = NDArray[np.int8]


@dataclass
class Parts:
    """The tensors that the outputs of ``model`` join.

    Attributes:
        options: how it runs.
        leaves: output name -> the tensors that it joins, two or more; a label is a place in that list.
    """

    model: Model
    options: Options = Options()
    leaves: dict[str, list[Tensor]] = field(init=False)
    _session: Session | None = field(init=False, default=None)
    _known: dict[str, dict[str, Labels]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.leaves = {}
        if self.model.opset < FIRST_OPSET or self.model.source_bytes > LARGEST:
            return
        for output in self.model.graph.outputs:
            found = dict.fromkeys(joined(output, {}))
            if 1 < len(found) <= MOST:
                self.leaves[output.name] = list(found)

    def labels(self, sample: Mapping[str, NDArray[np.generic]]) -> dict[str, Labels]:
        """Output name -> for each of its entries, which of its leaves it comes from; nothing where that cannot be told.
        It depends on the shapes of the inputs alone.
        """
        if not self.leaves:
            return {}
        shapes = repr(sorted((name, np.shape(value)) for name, value in sample.items()))
        if shapes not in self._known:
            if len(self._known) >= KNOWN:
                self._known.clear()
            self._known[shapes] = self._told(sample)
        return self._known[shapes]

    def _told(self, sample: Mapping[str, NDArray[np.generic]]) -> dict[str, Labels]:
        """As labels(), from a run."""
        try:
            self._session = self._session or Session(labelled(self.model, self.leaves), self.options)
            found = list(self._session.run(sample).values())
        except (ModelError, DataError):  # as where an operator moves no floats
            return {}
        return {name: np.asarray(value).astype(np.int8) for name, value in zip(self.leaves, found, strict=True)}

    def mask(self, sample: Mapping[str, NDArray[np.generic]], output: str, group: Sequence[int]) -> NDArray[np.bool_]:
        """Which entries of an output come from ``group``; empty where that cannot be told."""
        labels = self.labels(sample).get(output)
        return np.zeros(0, np.bool_) if labels is None else np.isin(labels, group)

    def called(self, output: str, group: Sequence[int]) -> str:
        """The name of a part of an output."""
        names = [self.leaves[output][label].name for label in group]
        return f"{output}, part {names[0]}{' ...' if len(names) > 1 else ''}"


def joined(tensor: Tensor, seen: dict[str, list[Tensor]]) -> list[Tensor]:
    """The tensors that ``tensor`` is made of by joining and moving alone: itself where it is computed."""
    if tensor.name in seen:
        return seen[tensor.name]
    maker = tensor.inputs[0] if len(tensor.inputs) == 1 else None
    if maker is not None and not maker.domain and maker.op == "Concat":
        found = [leaf for each in maker.inputs for leaf in joined(each, seen)]
    elif maker is not None and not maker.domain and maker.op in MOVED | {"Cast"} and maker.inputs:
        found = joined(maker.inputs[0], seen)
    else:
        found = [tensor]
    seen[tensor.name] = found
    return found


def labelled(model: Model, leaves: Mapping[str, Sequence[Tensor]]) -> Model:
    """``model`` with labels for outputs, one for each of those in ``leaves``: joined and moved as their entries are."""
    copy = model.copy()
    outputs = {output.name: output for output in copy.graph.outputs}
    made = list[Tensor]()
    for name, found in leaves.items():
        places = {leaf.name: place for place, leaf in reversed(list(enumerate(found)))}
        result = _labels(copy, outputs[name], places, {})
        result.dtype = np.dtype(np.float32)
        made.append(result)
    copy.graph.outputs = made
    copy.tidy()
    return copy


def _labels(model: Model, tensor: Tensor, places: Mapping[str, int], done: dict[str, Tensor]) -> Tensor:
    """A tensor of the shape of ``tensor``, each entry the place of the leaf that it comes from."""
    if tensor.name in done:
        return done[tensor.name]
    if tensor.name in places:
        shape = model.insert("Shape", [tensor], [f"{tensor.name}_shape"]).outputs[0]
        value = np.array([places[tensor.name]], np.float32)
        made = model.insert("ConstantOfShape", [shape], [f"{tensor.name}_place"], value=value)
    else:
        maker = tensor.inputs[0]
        if maker.op == "Cast":
            return _labels(model, maker.inputs[0], places, done)
        count = len(maker.inputs) if maker.op == "Concat" else 1
        moved = [_labels(model, each, places, done) for each in maker.inputs[:count]]
        made = model.insert(maker.op, [*moved, *maker.inputs[count:]], [f"{tensor.name}_places"], **maker.attrs)
    done[tensor.name] = made.outputs[0]
    return done[tensor.name]


@dataclass
class Loudness:
    """How loud the parts of outputs are, sample by sample.

    Attributes:
        powers: output name -> sum of the squares of the finite entries with each label, and how many entries there are.
    """

    parts: Parts
    powers: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = field(default_factory=dict)

    def add(self, sample: Mapping[str, NDArray[np.generic]], outputs: Mapping[str, Any]) -> None:
        """What the model makes of ``sample``."""
        for name, labels in self.parts.labels(sample).items():
            values = outputs.get(name)
            if not isinstance(values, np.ndarray) or values.shape != labels.shape or values.dtype.kind != "f":
                continue
            where, count = labels.reshape(-1), len(self.parts.leaves[name])
            flat = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0).reshape(-1)
            power, entries = np.bincount(where, flat**2, count), np.bincount(where, minlength=count).astype(np.float64)
            before = self.powers.get(name, (np.zeros(count), np.zeros(count)))
            self.powers[name] = before[0] + power, before[1] + entries

    def quiet(self) -> list[tuple[str, list[int]]]:
        """(output, labels) of every part that is not heard beside a louder one."""
        return [(name, group) for name in self.powers for group in quiet(*self.powers[name])]


def quiet(power: NDArray[np.float64], entries: NDArray[np.float64]) -> list[list[int]]:
    """Groups of labels that are about as loud, without the loudest group and without what is zero throughout."""
    level = np.sqrt(power / np.maximum(entries, 1))
    groups = list[list[int]]()
    for label in np.argsort(-level, kind="stable").tolist():
        if level[label] <= 0:
            break
        if groups and level[label] >= QUIET * level[groups[-1][0]]:
            groups[-1].append(label)
        else:
            groups.append([label])
    return [sorted(group) for group in groups[1:]]
