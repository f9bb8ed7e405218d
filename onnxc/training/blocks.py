"""Block-wise reconstruction: each block learns to give what the teacher gives there, from what the student feeds it.

      teacher  ───●───────●───────●──
                  ║       ║       ║      block 2 learns to turn the student's tensor at cut 1 into the
      student  ───○──[2]──○──[3]──○──    teacher's at cut 2; one block is in training, the others are at rest

A cut is a place that few float tensors cross, all of which the teacher has too, and no codes (Li et al., BRECQ, 2021).
Only tensors of the student at two cuts are held at a time; the teacher's are made in one run and may go to disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from onnxc.errors import ModelError
from onnxc.file import editing
from onnxc.file.shell import is_constant
from onnxc.model import Model, Node, Tensor, Variable
from onnxc.session import Options, Session
from onnxc.training.interpreter import Program
from onnxc.training.latents import Latent, values_of
from onnxc.training.operators.table import from_numpy, to_numpy
from onnxc.training.samples import Shelf

WIDEST = 2  # float tensors that may cross a cut
MOST = 12  # blocks


@dataclass(eq=False)
class Block:
    """A part of the student between two cuts.

    Attributes:
        nodes: what is computed, weights that unfold first. latents: what it learns.
        given: tensors that come in from the cut before. made: tensors that go on at its end.
        targets: float tensors at its end -> the teacher's name of them.
    """

    nodes: list[Node]
    latents: list[Latent]
    given: list[Tensor]
    made: list[Tensor]
    targets: dict[Tensor, str]


def partner(name: str, theirs: Mapping[str, tuple[int, ...]], shape: tuple[int, ...]) -> str | None:
    """The teacher's tensor that a student's should equal: the same name, without what quantizing it appends."""
    for candidate in (name, name.removesuffix("_dq"), name.removesuffix("_dequantized")):
        if theirs.get(candidate) == shape:
            return candidate
    return None


def blocks(
    program: Program, latents: Sequence[Latent], sample: Mapping[str, object], theirs: Mapping[str, tuple[int, ...]]
) -> list[Block]:
    """The blocks of a student, in order; empty where it cannot be cut anywhere.

    Args:
        program: the student, computing ``latents``.
        sample: a batch that tells shapes and types.
        theirs: shape of every tensor that the teacher computes from that batch.
    """
    data = program.from_data()
    shapes = _described(program, latents, sample)
    last = {}
    for index, node in enumerate(program.nodes):
        for tensor in editing.reads(node):
            last[tensor] = index
    final = {tensor for tensor in program.outputs if shapes.get(tensor, (False, ()))[0]}
    for tensor in final:
        last[tensor] = len(program.nodes)
    owner = {tensor: latent for latent in latents for tensor in latent.tensors}
    found: list[Block] = []
    taken: set[Latent] = set()
    inputs = set(program.model.graph.inputs)  # both models read the same ones
    live: dict[Tensor, None] = dict.fromkeys(t for t in program.model.graph.inputs if t in last)
    given, chunk = list(live), list[Node]()
    for index, node in enumerate(program.nodes):
        if not any(each in data for each in node.outputs):
            continue
        chunk.append(node)
        live.update(dict.fromkeys(each for each in node.outputs if each in last))
        live = {each: None for each in live if last[each] > index}
        floats = [each for each in live if each not in inputs and shapes.get(each, (True, ()))[0]]
        if not 1 <= len(floats) <= WIDEST:
            continue
        targets = {each: partner(each.name, theirs, shapes[each][1]) for each in floats if each in shapes}
        if len(targets) < len(floats) or None in targets.values():
            continue
        nodes = weight_nodes(program, chunk, data) + chunk
        mine = [owner[each] for node in nodes for each in (*editing.reads(node), *node.outputs) if each in owner]
        mine = [each for each in dict.fromkeys(mine) if each not in taken]
        if not mine:
            continue
        taken.update(mine)
        found.append(Block(nodes, mine, given, list(live), {k: v for k, v in targets.items() if v is not None}))
        given, chunk = list(live), []
    return merged(found) if len(found) > 1 else []


def merged(found: list[Block]) -> list[Block]:
    """At most MOST blocks: neighbours with the fewest weights are joined."""
    while len(found) > MOST:
        sizes = [sum(each.parameter.numel() for each in block.latents) for block in found]
        place = min(range(len(found) - 1), key=lambda index: sizes[index] + sizes[index + 1])
        first, second = found[place], found[place + 1]
        nodes, latents = [*first.nodes, *second.nodes], [*first.latents, *second.latents]
        found[place : place + 2] = [Block(nodes, latents, first.given, second.made, second.targets)]
    return found


def weight_nodes(program: Program, chunk: Sequence[Node], data: set[Tensor]) -> list[Node]:
    """The nodes that unfold what ``chunk`` reads, in order."""
    wanted = {each for node in chunk for each in editing.reads(node)}
    chosen = []
    for node in reversed(program.nodes):
        if any(each in wanted for each in node.outputs) and not any(each in data for each in node.outputs):
            chosen.append(node)
            wanted.update(editing.reads(node))
    return chosen[::-1]


def _described(
    program: Program, latents: Sequence[Latent], sample: Mapping[str, object]
) -> dict[Tensor, tuple[bool, tuple[int, ...]]]:
    """Whether a tensor is float, and its shape, for all tensors of the main graph; codes that learn are float."""
    for latent in latents:
        latent.parameter.requires_grad_(True)
    scope = program.start(sample, values_of(latents))
    program.run_nodes(program.nodes, scope)
    for latent in latents:
        latent.parameter.requires_grad_(False)
    return {
        tensor: (value.dtype.is_floating_point, tuple(value.shape))
        for tensor, value in scope.items()
        if isinstance(value, torch.Tensor) and not is_constant(tensor)
    }


def shapes_of(model: Model, outputs: Sequence[str], sample: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
    """Shape of every float tensor on the way to ``outputs`` that ``model`` makes of a batch, by name."""
    program = Program(model, outputs=outputs)
    with torch.no_grad():
        scope = program.start(sample)
        program.run_nodes(program.nodes, scope)
    return {
        tensor.name: tuple(value.shape)
        for tensor, value in scope.items()
        if isinstance(value, torch.Tensor) and value.dtype.is_floating_point and not is_constant(tensor)
    }


def witness(model: Model, names: Sequence[str], options: Options) -> Session:
    """A session of ``model`` that gives tensors inside it too.

    Raises:
        ModelError: ONNX Runtime cannot give one of them.
    """
    copy = model.copy()
    there = {each.name for each in copy.graph.outputs}
    inside = {t.name: t for node in copy.graph.nodes for t in node.outputs if isinstance(t, Variable)}
    for name in names:
        if name not in there:
            if name not in inside:
                raise ModelError(f"the teacher has no tensor {name!r}")
            tensor = inside[name]
            if tensor.dtype is None:
                tensor.dtype = np.dtype(np.float32)
            copy.graph.outputs.append(tensor)
    return Session(copy, options)


def advanced(program: Program, block: Block, states: Shelf, values: Mapping[Tensor, torch.Tensor]) -> Shelf:
    """What the student hands on at the end of a block, batch by batch."""
    fresh = Shelf(states.memory)
    with torch.no_grad():
        for number in range(len(states)):
            scope = entered(program, block, states, number, values)
            program.run_nodes(block.nodes, scope)
            fresh.append({str(place): to_numpy(scope[tensor]) for place, tensor in enumerate(block.made)})
    return fresh


def entered(
    program: Program, block: Block, states: Shelf, number: int, values: Mapping[Tensor, torch.Tensor]
) -> dict[Tensor, torch.Tensor]:
    """The scope at the start of a block."""
    row = states[number]
    scope = {tensor: from_numpy(row[str(place)], program.device) for place, tensor in enumerate(block.given)}
    return {**values, **scope}


@dataclass
class Lesson:
    """What one block learns from.

    Attributes:
        states: what the student feeds it, batch by batch. wanted: the teacher's tensors.
        rest: values of all that other blocks learn. train, held: numbers of batches.
    """

    program: Program
    block: Block
    states: Shelf
    wanted: Shelf
    rest: Mapping[Tensor, torch.Tensor]
    train: Sequence[int]
    held: Sequence[int]
    seed: int

    def order(self, epoch: int) -> list[list[int]]:
        """Every batch once, in another order each time."""
        return [
            [self.train[int(each)]] for each in np.random.default_rng([self.seed, epoch]).permutation(len(self.train))
        ]

    def held_back(self) -> float:
        """The loss of the batches held back."""
        return float(self.loss(self.held))

    def loss(self, numbers: Sequence[int]) -> torch.Tensor:
        """Squared error of the block's end over the teacher's power there, mean over batches."""
        values = {**self.rest, **values_of(self.block.latents)}
        total = torch.zeros((), device=self.program.device)
        for number in numbers:
            scope = entered(self.program, self.block, self.states, number, values)
            self.program.run_nodes(self.block.nodes, scope)
            for tensor, name in self.block.targets.items():
                reference = from_numpy(self.wanted[number][name], self.program.device)
                error = (scope[tensor] - reference).square().sum() / reference.square().sum().clamp(min=1e-12)
                total = total + error / len(self.block.targets)
        return total / max(len(numbers), 1)
