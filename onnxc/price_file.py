"""Measured seconds that outlive a run. In: a path. Out: entries by key, and parts of keys: sites, samples, processor.

Keys hold operator, shapes, mode, threads, ONNX Runtime version and processor, so that the same prices give the same
plan.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from onnxc.errors import DataError
from onnxc.session import Options, runtime_version
from onnxc.sites import Site


@dataclass
class PriceFile:
    """Prices that outlive a run."""

    path: Path
    entries: dict[str, float] = field(default_factory=dict)

    @classmethod
    def open(cls, path: str | Path | None, *, fresh: bool = False) -> PriceFile:
        """The file at ``path``, by default in the user's cache folder; empty where there is none, or for ``fresh``.

        Raises DataError if it is not a price file.
        """
        place = Path(path) if path else default_path()
        entries: dict[str, float] = {}
        if place.exists() and not fresh:
            try:
                found = json.loads(place.read_text())
                entries = {str(key): float(value) for key, value in found["prices"].items()}
                if not all(0 <= value < np.inf for value in entries.values()):
                    raise ValueError
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                if path:
                    raise DataError(f"'{place}' is not a price file; delete it or name another one") from None
        return cls(place, entries)

    def save(self) -> None:
        """Write the file if anything is in it; a read-only cache folder is no reason to fail."""
        if not self.entries:
            return
        text = json.dumps({"prices": dict(sorted(self.entries.items()))}, indent=1)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_name(f"{self.path.name}.{os.getpid()}")
            partial.write_text(text)
            partial.replace(self.path)
        except OSError:
            return


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
