"""A compressed model with some sites as they were. In: a model, sites of the reference. Out: the model with both.

    x -> Q -> DQ -> Conv(codes) -> y        x -> Conv(float) -> y
                                    or, behind a switch, Where(switch, codes, float) -> y

A restored site reads the tensor that the reference's site reads, before anything rounds it, and hands its result to
whatever comes next, a rounding it may be. Where the model holds one of the two in other units, a Mul stands between.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from onnxc.culprits.matching import Pair, tensors
from onnxc.culprits.scales import Factors
from onnxc.model import Constant, Model, Tensor, Variable
from onnxc.sensitivity import Probe
from onnxc.targets import ABSORBED

OLD_CLIP = 11  # before it bounds are attributes


def restorable(new: Model, pairs: Iterable[Pair], reference: Model) -> list[Pair]:
    """The pairs whose nodes can be put into ``new``: it has every tensor that they read and that is read of them."""
    there = tensors(new)
    attributes = reference.opset < OLD_CLIP <= new.opset
    found = []
    outputs = {tensor.name for tensor in reference.graph.outputs}
    for pair in pairs:
        own = {id(node) for node in pair.nodes}
        made = {id(tensor) for node in pair.nodes for tensor in node.outputs}
        read = [
            t for node in pair.nodes for t in node.inputs if isinstance(t, Variable) and t.name and id(t) not in made
        ]
        used = [t for node in pair.nodes for t in node.outputs if t.name]
        used = [t for t in used if t.name in outputs or any(id(reader) not in own for reader in t.outputs)]
        if (
            all(t.name in there for t in read)
            and all(t.name in there and there[t.name].inputs for t in used)
            and not (attributes and any(node.op == "Clip" for node in pair.nodes))
        ):
            found.append(pair)
    return found


def restored(new: Model, pairs: Sequence[Pair], factors: Factors) -> Model:
    """A copy of ``new`` in which ``pairs`` are as in the reference, and what nothing reads any more is gone."""
    made = new.copy()
    Restorer(made, factors).add(pairs)
    made.tidy()
    return made


def switched(new: Model, pairs: Sequence[Pair], factors: Factors) -> Probe:
    """A copy of ``new`` in which ``pairs`` are as in the reference, until the switch of a site's name is on."""
    probe = Probe(new.copy())
    Restorer(probe.model, factors, probe).add(pairs)
    probe.model.tidy()
    return probe


class Restorer:
    """Copies nodes of the reference into one model.

    Args:
        model: is edited; factors: of the tensors that it holds in other units than the reference.
        probe: gets a switch for every site, which puts the model's own form back.
    """

    def __init__(self, model: Model, factors: Factors, probe: Probe | None = None) -> None:
        self.model, self.factors, self.probe = model, factors, probe
        self.tensors = tensors(model)
        self.constants: dict[int, Constant] = {}
        self.activated: dict[str, Tensor] = {}
        self.converted: dict[str, Tensor] = {}

    def add(self, pairs: Sequence[Pair]) -> None:
        """Put ``pairs`` in."""
        for pair in pairs:
            for name, tensor in self.copied(pair).items():
                old = self.tensors.get(name)
                if old is None or not old.inputs:
                    continue  # between the operator and what follows it: nobody else reads it
                chosen = self.times(tensor, self.factors[name], name) if name in self.factors else tensor
                if self.probe is not None:
                    switch = self.switch(self.probe, pair.site)
                    chosen = self.model.insert("Where", [switch, old, chosen], [f"{name}_chosen"]).outputs[0]
                self.model.redirect(old, chosen)
                self.tensors[name] = chosen

    def copied(self, pair: Pair) -> dict[str, Tensor]:
        """The nodes of ``pair`` in this model: name of the reference's tensor -> the tensor that they make here."""
        made: dict[str, Tensor] = {}
        for node in pair.nodes:
            inputs = [
                self.constant(t) if isinstance(t, Constant) else made.get(t.name) or self.given(t) for t in node.inputs
            ]
            outputs = [f"{t.name}_float" if t.name else Variable("") for t in node.outputs]
            twin = self.model.insert(
                node.op, inputs, outputs, name=f"{node.name or node.op}_float", domain=node.domain or "", **node.attrs
            )
            made |= {t.name: other for t, other in zip(node.outputs, twin.outputs, strict=True) if t.name}
        return made

    def given(self, tensor: Tensor) -> Tensor | None:
        """The tensor of this model with the same name, in the reference's units; None for one that is left out."""
        if tensor.name not in self.factors:
            return self.read(tensor)
        if tensor.name not in self.converted:
            read = self.read(tensor)
            assert read is not None
            self.converted[tensor.name] = self.times(read, 1 / self.factors[tensor.name], tensor.name)
        return self.converted[tensor.name]

    def times(self, tensor: Tensor, factor: np.ndarray, name: str) -> Tensor:
        """``tensor`` in other units; called after ``name``."""
        values = factor.astype(tensor.dtype or np.float32)
        return self.model.insert(
            "Mul", [tensor, self.model.constant(f"{name}_factors", values)], [f"{name}_converted"]
        ).outputs[0]

    def read(self, tensor: Tensor) -> Tensor | None:
        """The tensor of this model with the same name; None for an input that is left out. An activation that has
        vanished into the Q behind it is done again: the tensor under its name is what it would have read.
        """
        if not tensor.name:
            return None
        found = self.tensors[tensor.name]
        makers = [found.inputs[0].op if found.inputs else None, tensor.inputs[0].op if tensor.inputs else None]
        if makers[1] not in ABSORBED or makers[0] in (makers[1], None):
            return found
        if tensor.name not in self.activated:
            node = tensor.inputs[0]
            bounds = [self.constant(t) if isinstance(t, Constant) else None for t in node.inputs[1:]]
            made = self.model.insert(node.op, [found, *bounds], [f"{tensor.name}_active"], **node.attrs)
            self.activated[tensor.name] = made.outputs[0]
        return self.activated[tensor.name]

    def constant(self, tensor: Constant) -> Constant:
        """An initializer with the reference's values, one for all sites that read it."""
        if id(tensor) not in self.constants:
            self.constants[id(tensor)] = self.model.constant(f"{tensor.name}_float", tensor.values)
        return self.constants[id(tensor)]

    def switch(self, probe: Probe, site: str) -> Tensor:
        """The bool input that puts the model's own form of ``site`` back."""
        if site not in probe.switches:
            made = probe.add_input(f"switch_{len(probe.switches)}", np.bool_(False))
            probe.switches[site] = made.name
            self.tensors[made.name] = made
        return self.tensors[probe.switches[site]]
