"""What was considered for a site, in words. In: options and the next best one of a row. Out: text for any report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxc.reports.figures import amount, milliseconds

if TYPE_CHECKING:
    from onnxc.report import Option, RunnerUp

UNSEEN = 5e-4  # of the allowed noise, and of a millisecond: a difference that nobody sees


def signed(value: int) -> str:
    """Bytes more or less."""
    return f"{'-' if value < 0 else '+'}{amount(abs(value))}"


def option_name(option: Option | RunnerUp) -> str:
    """How it would be computed or stored."""
    plain = "float32" if option.specification == "as it was" else option.specification
    return {"float": plain, "float16": "float16"}.get(option.mode, option.specification)


def share_of_noise(noise: float | None, allowed: float | None) -> str:
    """Noise as a share of what the quality floor allows."""
    if noise is None or not allowed:
        return ""
    share = noise / allowed
    if abs(share) < UNSEEN:
        return f"under {100 * UNSEEN:g} %" if noise else "none"
    return f"{100 * share:.2g} %" if abs(share) < 10 else f"{share:,.0f} times"


def next_best(best: RunnerUp | None, allowed: float | None) -> str:
    """The best other option of a site and what it would change, everything else as it is."""
    if best is None:
        return ""
    changes = []
    if best.bytes:
        changes.append(signed(best.bytes))
    if abs(best.milliseconds) >= UNSEEN:
        changes.append(f"{'+' if best.milliseconds > 0 else '-'}{milliseconds(abs(best.milliseconds))} ms")
    if best.noise is not None and allowed and abs(best.noise) / allowed >= UNSEEN:
        share = share_of_noise(abs(best.noise), allowed)
        changes.append(f"{'more' if best.noise > 0 else 'less'} noise: {share} of the allowed")
    return f"{option_name(best)}: {', '.join(changes) or 'no difference'}"
