"""The codes of every weight that a plan may store, made when first asked for. In: names and formats. Out: codes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from onnxc.codes.estimates import Seen, estimated
from onnxc.codes.formats import FLOATS, INT8, Format, is_small, parse_format
from onnxc.codes.moments import Factors, Given, factor_key
from onnxc.codes.saturation import as_matrix, machine_saturates, may_overflow, overflows
from onnxc.codes.solve import as_groups, solved
from onnxc.codes.sparse_packing import SPARSE_OPSET, PackedSparse, smaller
from onnxc.contract.context import Context
from onnxc.encoding import BlockCodes, Codes
from onnxc.propose import Proposals
from onnxc.sites import Site

PROBED = ("levels16", "levels16/64", "codebook2", "trellis16")  # whose noise is measured, for all formats of a weight


class Coder:
    """Solves a weight for a format, once.

    Where this machine's kernels add pairs in 16 bits, a weight whose site runs in int8 and would overflow gets codes
    of 7 bits at most; the same weight behind a float site keeps 8.

    Attributes:
        overflowing: weights and formats with codes of 8 bits that overflow at one of their sites, on any machine of
            that kind.
        sparse: how those are stored of which only what is not zero is, by weight and format.
        asked: what fields of passes say of the codes of a weight, by its name.
    """

    def __init__(self, context: Context, proposals: Proposals) -> None:
        self.context = context
        self.late = False  # models are late to load
        self.asked, self.rounding = proposals.asked, proposals.rounding
        self.made: dict[tuple[str, str, bool], Codes] = {}
        self.damages: dict[str, dict[str, float]] = {}
        self.known: dict[tuple[str, str], float] = {}
        self.overflowing: set[tuple[str, str]] = set()
        self.sparse: dict[tuple[str, str], str] = {}
        self.factors = Factors(context.sites, context.observations)
        self.weights = {weight.name: weight for weight in context.sites.weights}
        self.ways = {name: [c.mode for c in found if c.mode not in FLOATS] for name, found in proposals.storage.items()}
        for site in context.sites:  # formats that a way to compute brings with it
            if site.weight is not None:
                own = [candidate.form for candidate in proposals.compute.get(site.name, ()) if candidate.form]
                self.ways[site.weight.name] = [*self.ways.get(site.weight.name, []), *own]
        self.readers: dict[str, list[Site]] = {}
        for site in context.sites:
            if site.weight is not None and site.name in proposals.compute:
                further = {name for candidate in proposals.compute[site.name] for name in candidate.weights}
                for name in (site.weight.name, *sorted(further)):
                    self.readers.setdefault(name, []).append(site)

    def codes(self, name: str, mode: str, *, computed: bool) -> Codes:
        """The codes of a weight in the format ``mode``; ``computed``: an int8 kernel multiplies them."""
        key = (name, mode, computed)
        if key not in self.made:
            codes = self.rounded(name, mode)
            if computed and not isinstance(codes, BlockCodes) and self.overflow(name, mode, codes):
                codes = self.solved(name, mode, self.factors, narrow=True)
            self.made[key] = codes
        return self.made[key]

    def rounded(self, name: str, mode: str) -> Codes:
        """Codes up to the target's largest magnitude."""
        key = (name, mode, False)
        if key not in self.made:
            self.made[key] = self.solved(name, mode, self.factors)
        return self.made[key]

    def fitted(self, name: str, mode: str, factor: Given, target: NDArray[np.float32], *, computed: bool) -> Codes:
        """Codes for ``target`` [G, K, N] in the place of the weight, on inputs that were seen elsewhere; not kept."""
        codes = self.solved(name, mode, factor, target)
        if computed and not isinstance(codes, BlockCodes) and self.overflow(name, mode, codes):
            codes = self.solved(name, mode, factor, target, narrow=True)
        return codes

    def overflow(self, name: str, mode: str, codes: Codes) -> bool:
        """Whether pair sums of a site that reads the weight overflow, noted, and this target adds them in 16 bits."""
        if not any(self.saturates(site, codes) for site in self.readers.get(name, [])):
            return False
        self.overflowing.add((name, mode))
        return self.narrows

    @property
    def narrows(self) -> bool:
        """Whether weights that would overflow get codes of 7 bits: the target adds pairs in 16 bits."""
        expected = self.context.target.saturates
        return machine_saturates() if expected is None else expected

    def solved(
        self,
        name: str,
        mode: str,
        factors: Factors | Given,
        target: NDArray[np.float32] | None = None,
        *,
        narrow: bool = False,
    ) -> Codes:
        """Codes up to 127, or ``narrow`` ones that never overflow."""
        rules = self.context.target
        levels = rules.safe_weight_levels if narrow else rules.weight_levels
        chosen = self.form(name, mode)
        codes = solved(self.weights[name], self.values(name), self.context, factors, chosen, levels, target)
        if self.may_be_sparse(chosen) and not isinstance(codes, BlockCodes):
            codes.packed = smaller(codes.values, codes.packed, len(self.weights))
        self.sparse.pop((name, mode), None)
        if isinstance(codes.packed, PackedSparse):
            self.sparse[name, mode] = codes.packed.told
        return codes

    def may_be_sparse(self, form: Format) -> bool:
        """Whether zeros may be left out: nodes have to be there, and time where nobody asked for zeros."""
        able = self.context.model.opset >= SPARSE_OPSET and not self.context.target.plain
        return able and bool(form.zeros or not self.late)

    def form(self, name: str, mode: str) -> Format:
        """The format ``mode`` of a weight, rounded as asked for."""
        chosen = parse_format(mode)
        return replace(chosen, rounding=self.rounding.get((name, mode), chosen.rounding))

    def values(self, name: str) -> NDArray[np.float32]:
        """The float weight."""
        return np.asarray(self.context.model.values(self.weights[name].tensor), np.float32)

    def probed(self, name: str) -> str:
        """The format in which a weight's noise is measured: a coarse one, where it has one."""
        ways = [mode for mode in self.ways.get(name, []) if not parse_format(mode).scaled]
        coarse = next((mode for mode in PROBED if mode in ways), None)
        if coarse is None and any(is_small(mode) for mode in self.ways.get(name, [])):
            coarse = PROBED[0]
        return coarse or (INT8.name if INT8.name in ways or not ways else ways[0])

    def noise_ratios(self) -> dict[str, dict[str, float]]:
        """Weight -> format -> its damage over that of the format whose noise is measured."""
        found: dict[str, dict[str, float]] = {}
        for name, damages in self.noise_damages().items():
            base = max(damages[self.probed(name)], 1e-30)
            found[name] = {mode: value / base for mode, value in damages.items()}
        return found

    def noise_damages(self) -> dict[str, dict[str, float]]:
        """Weight -> format -> its damage, as solved where that was done, else as estimated."""
        self.damages = self.damages or self.estimates()
        return {
            name: {mode: self.known.get((name, mode), value) for mode, value in damages.items()}
            for name, damages in self.damages.items()
        }

    def estimates(self) -> dict[str, dict[str, float]]:
        """Weight -> format -> its expected damage, of every weight that may be stored in another format than int8."""

        def seen() -> Iterator[Seen]:
            for name in self.in_order(self.ways):
                modes, weight = self.ways[name], self.weights[name]
                if weight.channel_axis is not None and modes not in ([], [INT8.name]):
                    formats = [self.form(name, mode) for mode in dict.fromkeys((*modes, INT8.name, self.probed(name)))]
                    yield Seen.of(weight, self.values(name), self.factors.of(weight), formats)

        return estimated(seen(), self.context.target.weight_levels)

    def probe(self, names: Collection[str], sites: Collection[str]) -> dict[str, Codes]:
        """The codes with which the noise of each weight is measured: as they are at run time, not packed."""
        made = self.of({name: self.probed(name) for name in names}, sites)
        self.learn(made, {name: self.probed(name) for name in names})
        return {name: replace(codes, packed=None) for name, codes in made.items()}

    def optimism(self, name: str, codes: Codes) -> float:
        """How many times the damage of ``codes`` on the rows that they were solved on has to be expected on others.

        A classifier behind a global pooling sees one row per sample, fewer than it has inputs: solved on them, its
        outputs for these samples are nearly right at any number of bits (28 times, measured, for 1,280 inputs and 48
        samples).
        """
        weight, samples = self.weights[name], self.context.samples
        readers = [site for site in self.context.sites if site.weight is weight]
        rows = self.context.observations.rows_of(readers[0]) if len(readers) == 1 else None
        if rows is None or samples is None or weight.channel_axis is None or len(rows) > 2 * len(samples):
            return 1.0
        before, after = (as_groups(each, weight.channel_axis, 1)[0] for each in (self.values(name), codes.restored()))
        if rows.shape[1] != len(before) or not np.isfinite(codes.damage):
            return 1.0
        with np.errstate(over="ignore", invalid="ignore"):  # of huge weights nothing is said
            lost, whole = (float(np.square(rows @ each, dtype=np.float64).sum()) for each in (before - after, before))
        return max(codes.damage * whole / lost, 1.0) if lost > 0 and np.isfinite(whole / lost) else 1.0

    def saturates(self, site: Site, codes: Codes) -> bool:
        """Whether the pair sums of ``site`` overflow 16 bits on its calibration rows; where no rows were seen, as of
        the hidden state of a recurrent one, whether they ever can (on trained models that was 20 dB).
        """
        if site.kind == "recurrent":
            return may_overflow(np.moveaxis(codes.values, -1, 0))
        seen = self.context.observations
        rows = seen.rows_of(site)
        if rows is None and site.kind == "linear":
            return may_overflow(as_matrix(site, codes))
        if (
            rows is None
            or site.input.name not in seen.ranges
            or codes.axis is None
            or site.node.attrs.get("group", 1) != 1
        ):
            return False
        low, high = seen.limits(site.input.name)
        scale = max((high - low) / 255.0, 1e-12)
        return overflows(site, codes, rows, scale, int(np.clip(np.rint(-low / scale), 0, 255)))

    def in_order(self, names: Collection[str]) -> list[str]:
        """``names``, those that share inputs one after the other."""
        return sorted(names, key=lambda name: (factor_key(self.weights[name], self.context.sites), name))

    def of(self, stored: Mapping[str, str], sites: Collection[str]) -> dict[str, Codes]:
        """The codes of several weights, each in its format, where ``sites`` run in int8."""
        return {
            name: self.codes(
                name, stored[name], computed=any(site.name in sites for site in self.readers.get(name, []))
            )
            for name in self.in_order([name for name, mode in stored.items() if mode not in FLOATS])
        }

    def learn(self, made: Mapping[str, Codes], stored: Mapping[str, str]) -> None:
        """From now on the true damage of these codes counts, not the estimate."""
        for name, codes in made.items():
            if np.isfinite(codes.damage):
                self.known[name, stored[name]] = codes.damage

    def forget(self) -> None:
        """Drop what was solved and what it was solved with; it is made again where it is asked for."""
        self.made.clear()
        self.factors = Factors(self.context.sites, self.context.observations)

    def settle(self, stored: Mapping[str, str], sites: Collection[str]) -> None:
        """Learn from the codes of a plan that was tried, and drop all others: a search tries many."""
        self.learn(self.of(stored, sites), stored)
        self.made = {key: codes for key, codes in self.made.items() if stored.get(key[0]) == key[1]}
