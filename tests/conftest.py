"""Options of the tests."""

from __future__ import annotations

import numpy as np
import pytest

from tests.emission import random


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--refresh-golden",
        action="store_true",
        help="write the golden graphs of tests/golden anew, to be reviewed",
    )


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """Every test draws the same weights, alone or after others."""
    random.bit_generator.state = np.random.default_rng(0).bit_generator.state
