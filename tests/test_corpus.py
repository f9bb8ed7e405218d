"""A sample of the backend suite through load, save, copy, tidy and new values; all of it: tests/corpus.py."""

from __future__ import annotations

import pytest

from tests import corpus


@pytest.fixture(scope="module")
def findings() -> dict[str, dict[str, str]]:
    """Every twentieth model, and all with bodies, sequences, optionals, sparse or narrow tensors."""
    special = (
        "if_",
        "loop",
        "scan",
        "sequence",
        "optional",
        "sparse",
        "int4",
        "int2",
        "FLOAT8",
        "FLOAT4",
        "string",
    )
    return {
        case.name: corpus.judge(case)
        for index, case in enumerate(corpus.cases())
        if index % 20 == 0 or any(part in case.name for part in special)
    }


def test_the_sample_is_worth_its_name(findings: dict[str, dict[str, str]]) -> None:
    assert len(findings) > 240
    assert sum("runtime" not in found for found in findings.values()) > 180


def test_nothing_is_lost_or_changed(findings: dict[str, dict[str, str]]) -> None:
    lost = {name: found for name, found in findings.items() if found.keys() - {"runtime"}}
    assert lost == {}


def test_the_command_needs_no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """``make corpus`` gives none."""
    asked: list[str] = []
    monkeypatch.setattr(corpus, "roundtrip", lambda pattern: asked.append(pattern) or 0)
    assert corpus.main([]) == 0
    assert asked == [""]
