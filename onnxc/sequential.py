"""What a weight meets while its model is being compressed, stage by stage. In: models, samples. Out: moments.

The samples go through a model once, in stages: each stage runs only the nodes between the tensors asked for and those
of the stage before, whose values wait (in memory up to a limit, then in files). So a model may be rewritten behind the
stage that was read last, and the next stage sees what the rewritten part really produces, at the cost of one run over
the data in all; an If runs again for every stage that reads a tensor inside it.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxc.bodies import HandedOut, hand_out, in_branches, paths
from onnxc.errors import ModelError
from onnxc.file.editing import in_order, reads
from onnxc.model import Constant, Model, Node, Tensor, Variable
from onnxc.session import Options, Session

if TYPE_CHECKING:
    from onnxc.data import Sample
    from onnxc.shapes import TensorType

MEMORY = 256 << 20  # bytes of waiting tensors; more go to files
BUFFERED = 1024  # rows added up at a time
NOTHING = np.zeros(0, np.float32)  # of a tensor in a branch that is not taken

Array = NDArray[np.float64]


class Samples(Protocol):
    """Samples that can be read again and again."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Sample]: ...


def too_few(seen: Iterable[tuple[int, int]]) -> str | None:
    """Why nothing is fitted unasked to so many rows of so many inputs, None where there is no reason: fewer rows than
    inputs say nothing of most directions, and what is fitted to them is right for these samples alone.
    """
    said = "{} rows were seen of its {} inputs, too few to fit a smaller form to unless it is asked for"
    return next((said.format(rows, inputs) for rows, inputs in seen if rows < inputs), None)


@dataclass(frozen=True)
class Reading:
    """How one tensor meets a weight.

    Attributes:
        tensor: the name of the activation; key: what the statistic is kept under.
        rows: (values, seed) -> rows [R, G, K], the same ones for the same seed and shape; None for indices.
        table: rows of an embedding table that the tensor indexes.
    """

    tensor: str
    key: str
    rows: Callable[[NDArray[Any], int], NDArray[np.float32] | None] | None = None
    table: int = 0


@dataclass
class Statistic:
    """Sums over rows x' [G, K] of the model being compressed and x of the original.

    Attributes:
        moment: sum of x' x'T [G, K, K]; cross: sum of x' xT [G, K, K]; mean, reference: sums of x' and x [G, K].
        counts: [V], how often each row of a table was read.
        rows: how many rows were added up.
    """

    moment: Array | None = None
    cross: Array | None = None
    mean: Array | None = None
    reference: Array | None = None
    counts: Array | None = None
    rows: int = 0
    _waiting: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = field(default_factory=list)

    def add(self, now: NDArray[np.float32], before: NDArray[np.float32]) -> None:
        """Rows [R, G, K] of both models, paired."""
        self._waiting.append((now, before))
        if sum(len(rows) for rows, _ in self._waiting) >= BUFFERED:
            self.flush()

    def flush(self) -> None:
        """Add up what waits."""
        if not self._waiting:
            return
        same = all(now is before for now, before in self._waiting)
        now = np.concatenate([rows for rows, _ in self._waiting]).swapaxes(0, 1)
        before = now if same else np.concatenate([rows for _, rows in self._waiting]).swapaxes(0, 1)
        self._waiting.clear()
        self.rows += now.shape[1]
        product = now.swapaxes(1, 2) @ now
        self.moment = plus(self.moment, product)
        self.mean = plus(self.mean, now.sum(1, dtype=np.float64))
        if not same or self.cross is not None:
            self.cross = plus(self.cross, now.swapaxes(1, 2) @ before)
            self.reference = plus(self.reference, before.sum(1, dtype=np.float64))

    def count(self, indices: NDArray[Any], table: int) -> None:
        """Indices of a table's rows, of any shape."""
        flat = indices.ravel().astype(np.int64) % table
        self.counts = plus(self.counts, np.bincount(flat, minlength=table))


def plus(total: Array | None, part: NDArray[Any]) -> Array:
    """``total`` with ``part`` added, in float64."""
    if total is None:
        return part.astype(np.float64)
    total += part
    return total


class Walk:
    """The samples on their way through one model.

    Args:
        model: may be rewritten between two calls, behind what was asked for.
        samples: read again, one at a time, at every call.
        types: of the tensors, by name; float32 where one is not known.
    """

    def __init__(
        self,
        model: Model,
        samples: Samples,
        options: Options,
        types: Mapping[str, TensorType] | None = None,
    ) -> None:
        self.model, self.samples, self.options, self.types = model, samples, options, types or {}
        self.done: set[Node] = set()
        self.waiting: list[dict[str, NDArray[Any] | Path]] = [{} for _ in range(len(samples))]
        self.folder = Path(tempfile.mkdtemp(prefix="onnxc-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.held = self.files = 0

    def advance(self, names: Sequence[str]) -> Iterator[dict[str, NDArray[Any]]]:
        """Sample after sample, the values of the tensors called ``names``; empty where it takes another branch.

        Raises:
            ModelError: a part of the model does not run by itself: a sequence or an optional lies on the border.
        """
        tensors = {t.name: t for node in self.model.graph.nodes for t in (*node.inputs, *node.outputs) if t.name}
        where = paths(self.model)
        inside = [name for name in names if name in where]
        around = {where[name][0][0] for name in inside if in_branches(where[name])}
        entered = self.before([tensors[name] for name in names if name in tensors], around)
        needed = entered - around  # what is read inside again has to run again
        kept = self.needed_later(needed, [name for name in names if name not in where])
        fed = {t.name for t in self.model.graph.inputs}
        made = {t.name for node in needed for t in node.outputs}
        wanted = [name for name in kept if name in made]
        entries = sorted({t.name for node in entered for t in reads(node) if t.name and t.name in self.waiting[0]})
        session = None
        if wanted or inside:
            part, handed = self.part(entries, wanted, inside)
            session = Session(part, self.options)
        self.done |= needed
        for sample, held in zip(self.samples, self.waiting, strict=True):
            found: dict[str, NDArray[Any]] = {}
            if session is not None:
                taken = {t.name for t in session.inputs}
                optional = {t.name for t in session.optional}
                feeds = {n: v for n, v in sample.items() if n in taken or n in optional}
                feeds |= {name: self.load(held[name]) for name in entries}
                results = session.run(feeds, [*wanted, *(tensor.name for tensor in handed.outputs.values())])
                found = {name: results[name] for name in wanted}
                found |= {name: (*handed.values(name, results), NOTHING)[0] for name in inside}
            lost = [name for name in names if name not in found and name not in fed and name not in held]
            if lost:  # it was read before, and nobody behind it needed it any more
                raise ModelError(f"tensor '{lost[0]}' cannot be read again behind what was already rewritten")
            values = {
                name: found[name] if name in found else sample[name] if name in fed else self.load(held[name])
                for name in names
            }
            yield values
            for name in [name for name in held if name not in kept]:
                self.drop(held.pop(name))
            for name in wanted:
                held[name] = self.keep(np.asarray(found[name]))

    def before(self, tensors: Sequence[Tensor], nodes: Iterable[Node] = ()) -> set[Node]:
        """The nodes not yet run that ``tensors`` and ``nodes`` depend on, these included."""
        maker = {t: node for node in self.model.graph.nodes for t in node.outputs if t.name}
        found: set[Node] = set()
        stack = [*(maker[t] for t in tensors if t in maker), *nodes]
        while stack:
            node = stack.pop()
            if node not in found and node not in self.done:
                found.add(node)
                stack += [maker[t] for t in reads(node) if t in maker]
        return found

    def needed_later(self, needed: set[Node], names: Sequence[str]) -> list[str]:
        """Names of computed tensors that nodes still to come read, and ``names``."""
        ran = self.done | needed
        made = {t for node in ran for t in node.outputs if t.name}
        later = {t.name for node in self.model.graph.nodes if node not in ran for t in reads(node) if t in made}
        return sorted(later | set(names))

    def part(self, entries: Sequence[str], wanted: Sequence[str], inside: Sequence[str]) -> tuple[Model, HandedOut]:
        """The nodes between ``entries``, which become inputs, and ``wanted``, which become the outputs, with those that
        hold what is ``inside`` of Ifs.
        """
        copy = self.model.copy()
        kinds = {name: known.dtype for name, known in self.types.items() if known.dtype is not None}
        handed = hand_out(copy, inside, kinds)
        tensors = {t.name: t for node in copy.graph.nodes for t in (*node.inputs, *node.outputs) if t.name}
        copy.graph.outputs = [tensors[name] for name in wanted]
        for tensor in copy.graph.outputs:
            known = self.types.get(tensor.name)
            tensor.dtype = known.dtype if known is not None and known.dtype is not None else np.dtype(np.float32)
            tensor.shape = None
        copy.graph.outputs += list(handed.outputs.values())
        for name in entries:
            value = self.load(self.waiting[0][name])
            entry = Variable(name, value.dtype, [None] * value.ndim)
            copy.redirect(tensors[name], entry)
            copy.graph.inputs.append(entry)
        for node in copy.graph.nodes:
            node.kept = False
        for weight in copy.graph.weights:
            weight.kept = False
        copy.tidy()
        read = {id(t) for graph in copy.graphs() for node in graph.nodes for t in node.inputs}
        read |= {id(t) for t in copy.graph.outputs}
        copy.graph.inputs = [t for t in copy.graph.inputs if id(t) in read]
        copy.graph.listed = [t for t in copy.graph.listed if id(t) in read]
        copy.graph.value_info = []
        return copy, handed

    def keep(self, values: NDArray[Any]) -> NDArray[Any] | Path:
        """``values`` where they wait: in memory, or in a file once that is full."""
        if self.held + values.nbytes <= MEMORY or values.dtype == object:
            self.held += values.nbytes
            return values
        path = self.folder / f"{self.files}.npy"
        self.files += 1
        np.save(path, values)
        return path

    def load(self, held: NDArray[Any] | Path) -> NDArray[Any]:
        """The values, wherever they wait."""
        return np.asarray(np.load(held)) if isinstance(held, Path) else held

    def drop(self, held: NDArray[Any] | Path) -> None:
        """Free what nobody reads any more."""
        if isinstance(held, Path):
            held.unlink()
        else:
            self.held -= held.nbytes


def statistics(walk: Walk, readings: Sequence[Reading], original: Walk | None = None) -> dict[str, Statistic]:
    """What ``readings`` meet in the model of ``walk``; with ``original`` also paired with what they met there."""
    found = {reading.key: Statistic() for reading in readings}
    unique = list({reading.key: reading for reading in readings}.values())
    names = list(dict.fromkeys(reading.tensor for reading in unique))
    befores = original.advance(names) if original is not None else None
    for seed, values in enumerate(walk.advance(names)):
        before: Mapping[str, NDArray[Any]] = next(befores) if befores is not None else values
        for reading in unique:
            if not values[reading.tensor].size or not before[reading.tensor].size:
                continue
            if reading.rows is None:
                found[reading.key].count(values[reading.tensor], reading.table)
                continue
            now = reading.rows(values[reading.tensor], seed)
            then = now if befores is None else reading.rows(before[reading.tensor], seed)
            if now is None or then is None or now.shape != then.shape or not len(now):
                continue
            if np.isfinite(now).all() and np.isfinite(then).all():
                found[reading.key].add(now, then)
    if befores is not None:
        next(befores, None)  # the last sample's tensors are put away
    for statistic in found.values():
        statistic.flush()
    return found


def stages(model: Model, sites: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Sites in the order in which they can be compressed: none of a stage depends on another of the same.

    Args:
        sites: name of a unit -> names of the nodes that it is about, of the main graph or of Ifs; the first one tells
            its place.
    """
    owners = {node: unit for unit, nodes in sites.items() for node in nodes}
    found: list[list[str]] = [[]]
    placed: set[str] = set()
    tainted: set[Tensor] = set()
    for node in with_branches(in_order(model.graph)):
        touched = any(t in tainted for t in reads(node) if not isinstance(t, Constant))
        unit = owners.get(node.name)
        if unit is not None:
            if touched and found[-1] and unit not in placed:
                found.append([])
                tainted, touched = set(), False
            if unit not in placed:
                found[-1].append(unit)
                placed.add(unit)
            touched = True
        if touched:
            tainted.update(node.outputs)
    return [stage for stage in found if stage]


def with_branches(nodes: Iterable[Node]) -> Iterator[Node]:
    """``nodes``, those in the branches of an If before it: what it gives depends on them."""
    for node in nodes:
        for branch in node.bodies() if node.op == "If" else ():
            yield from with_branches(in_order(branch))
        yield node
