"""What the user asked for: limits, passes with their fields, target. In: the command line or TOML. Out: a Recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Budget:
    """The limits of section "limits" on the command line; None means no limit given.

    Attributes:
        size: largest allowed file, as a fraction of the input's bytes (0.25 is 25 %).
        speed: smallest allowed speed-up (2.0 is twice as fast).
        max_drop: largest relative loss of the user's metric (0.01 is 1 %); only with an evaluation hook.
        min_sqnr: smallest signal to quantization noise ratio of the outputs, in dB.
        min_agreement: smallest fraction of unchanged top-1 answers.
    """

    size: float | None = None
    speed: float | None = None
    max_drop: float | None = None
    min_sqnr: float | None = None
    min_agreement: float | None = None


@dataclass(frozen=True)
class PassRequest:
    """One pass that was asked for by name, with its fields; fields make it "done as told"."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result besides the model and the data."""

    budget: Budget = Budget()
    passes: tuple[PassRequest, ...] | None = None  # None: every lossy pass may propose
    target: str = "cpu"
    ops: str = "standard"  # or "ort": operators of com.microsoft are allowed
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    threads: int = 1
    seed: int = 0
    external_data: bool = False
    custom_ops: tuple[str, ...] = ()
