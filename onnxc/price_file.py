"""What was measured, and outlives a run. In: a path. Out: seconds and findings by key, and parts of keys.

Keys of seconds hold operator, shapes, mode, threads, ONNX Runtime version and processor, so that the same prices give
the same plan, and another model with operators of these shapes finds them. Findings are about one model and its data:
what took long to learn and is the same in every run.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxc.errors import DataError
from onnxc.session import Options, runtime_version
from onnxc.sites import Site

Finding = dict[str, Any]  # what JSON holds, floats exactly
MOST_FINDINGS = 8 << 20  # bytes: those that were not asked for longest are dropped beyond


@dataclass
class PriceFile:
    """Prices that outlive a run.

    Attributes:
        entries: seconds by key; findings: by key, the one that was asked for last at the end.
        forgotten: what findings were dropped that other runs may have kept.
    """

    path: Path
    entries: dict[str, float] = field(default_factory=dict)
    findings: dict[str, Finding] = field(default_factory=dict)
    forgotten: set[str] = field(default_factory=set)

    @classmethod
    def open(cls, path: str | Path | None, *, fresh: bool = False) -> PriceFile:
        """The file at ``path``, by default in the user's cache folder; empty where there is none, or for ``fresh``.

        Raises DataError if it is not a price file, or if one that is named cannot be written.
        """
        place = Path(path) if path else default_path()
        if path:
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DataError(f"prices cannot be kept in '{place}': {error.strerror}") from None
            if not os.access(place.parent, os.W_OK):
                raise DataError(f"prices cannot be kept in '{place}': its folder is read-only")
        try:
            known = ({}, {}) if fresh else contents(place)
        except ValueError:
            if path:
                raise DataError(f"'{place}' is not a price file; delete it or name another one") from None
            known = {}, {}
        return cls(place, *known)

    def found(self, what: str, *parts: str, learn: Callable[[], Finding]) -> Finding:
        """The finding called ``what`` of everything that ``parts`` say; ``learn`` finds it where it is not known."""
        finding = self.known(what, *parts)
        if finding is None:
            finding = learn()
            self.keep(what, *parts, finding=finding)
        return finding

    def known(self, what: str, *parts: str) -> Finding | None:
        """The finding called ``what`` of everything that ``parts`` say; None where there is none."""
        key = finding_key(what, parts)
        if key in self.findings:
            self.findings[key] = self.findings.pop(key)
        return self.findings.get(key)

    def keep(self, what: str, *parts: str, finding: Finding) -> None:
        """Remember a finding."""
        self.findings[finding_key(what, parts)] = finding

    def forget(self, what: str) -> None:
        """Drop every finding called ``what``, also those that the file has."""
        self.forgotten.add(what)
        self.findings = {key: finding for key, finding in self.findings.items() if not key.startswith(f"{what} ")}

    def save(self) -> None:
        """Add what this run knows to the file; a read-only cache folder is no reason to fail."""
        if not self.entries and not self.findings:
            return
        try:
            entries, findings = contents(self.path)  # other runs may have written meanwhile, or this one began fresh
        except ValueError:
            entries, findings = {}, {}
        dropped = tuple(f"{what} " for what in self.forgotten)
        known = {
            key: each for key, each in findings.items() if key not in self.findings and not key.startswith(dropped)
        }
        known |= self.findings
        lines, left = dict[str, str](), MOST_FINDINGS
        for key, finding in reversed(known.items()):
            line = json.dumps(finding, separators=(",", ":"))
            left -= len(line)
            if left >= 0:
                lines[key] = line
        found = ",\n".join(f" {json.dumps(key)}: {line}" for key, line in reversed(lines.items()))
        prices = json.dumps(dict(sorted((entries | self.entries).items())), indent=1)
        text = f'{{"prices": {prices},\n"findings": {{\n{found}\n}}}}\n'
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_name(f"{self.path.name}.{os.getpid()}")
            partial.write_text(text)
            partial.replace(self.path)
        except OSError:
            return


def contents(path: Path) -> tuple[dict[str, float], dict[str, Finding]]:
    """Prices and findings of a file; none where there is no file. Raises ValueError if it is not a price file."""
    try:
        found = json.loads(path.read_text())
        entries = {str(key): float(value) for key, value in found["prices"].items()}
        findings = {str(key): dict(value) for key, value in found.get("findings", {}).items()}
    except FileNotFoundError:
        return {}, {}
    except (OSError, KeyError, TypeError, AttributeError) as error:
        raise ValueError from error
    if not all(0 <= value < np.inf for value in entries.values()):
        raise ValueError
    return entries, findings


def finding_key(what: str, parts: Sequence[str]) -> str:
    """One key for what a finding is called and all that it depends on."""
    return f"{what} {hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:32]}"


def default_path() -> Path:
    """Where prices are kept when no file is named."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "onnxc" / "prices.json"


def site_key(site: Site, shapes: Mapping[str, tuple[int, ...]], mode: str, options: Options) -> str:
    """What a price depends on: operator, attributes, shapes, what follows, mode, and the machine."""
    attributes = sorted((k, str(v)) for k, v in site.node.attrs.items() if not hasattr(v, "nodes"))
    parts = [
        site.operator,
        str(attributes),
        str(site.weight.shape if site.weight else ""),
        str([shapes.get(t.name) for t in site.inputs]),
        "+".join(str(node.op) for node in site.tail),
        mode,
        f"{options.threads} threads",
        f"onnxruntime {runtime_version()}",
        cpu_name(),
    ]
    return " | ".join(parts)


def sample_shapes(sample: Mapping[str, np.ndarray]) -> str:
    """The shapes of a sample, as a part of a key."""
    return ",".join(f"{k}{list(np.shape(v))}" for k, v in sorted(sample.items()))


def cpu_name() -> str:
    """The processor's model name, as far as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "flags")) and "flags" not in line:
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
