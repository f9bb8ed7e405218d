"""What formats are expected to damage: the same for weights that are looked at together and for each alone."""

from __future__ import annotations

import numpy as np
import pytest

from onnxc.coder import Coder
from onnxc.codes import estimates
from onnxc.codes.estimates import Batch, Seen, estimated
from onnxc.codes.formats import parse_format
from onnxc.codes.gptq import factorize
from onnxc.contract.context import Context
from onnxc.passes.store_codebook import StoreCodebook
from onnxc.passes.store_low_bit import StoreLowBit
from onnxc.passes.store_trellis import StoreTrellis
from onnxc.propose import collect
from tests import trained

FORMATS = tuple(map(parse_format, ("int8", "levels16", "levels9/16", "codebook2", "trellis8", "trellis6", "trellis4")))


@pytest.fixture(scope="module")
def context() -> Context:
    return trained.context(trained.load("vision_transformer"), trained.samples("vision_transformer", 48))


def looked_at(context: Context) -> list[Seen]:
    """Some outputs of every matrix of the model."""
    coder = Coder(
        context, collect([(each, False) for each in (StoreLowBit(), StoreCodebook(), StoreTrellis())], context)
    )
    weights = [site.weight for site in context.sites if site.weight is not None]
    return [Seen.of(each, coder.values(each.name), coder.factors.of(each), FORMATS) for each in weights]


def test_together_as_alone(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = looked_at(context)
    together = estimated(seen, 127)
    assert len({each.kind for each in seen}) < len(seen) / 2, "nothing is looked at together here"
    monkeypatch.setattr(estimates, "TOGETHER", 1)
    alone = estimated(seen, 127)
    assert together.keys() == alone.keys() == {each.name for each in seen}
    for name, damages in alone.items():
        assert together[name] == pytest.approx(damages, rel=2e-3), name
        assert damages["int8"] < damages["trellis8"] < damages["trellis4"]


def test_an_estimate_is_near_what_solving_finds(context: Context) -> None:
    """Solved on the same outputs; what is interpolated may be off by a half (a fifth on average), what is measured is
    right.
    """
    ratios: dict[str, list[float]] = {}
    for each in looked_at(context):
        batch, expected = Batch([each], 127), estimated([each], 127)[each.name]
        for chosen in FORMATS:
            ratios.setdefault(chosen.name, []).append(
                expected[chosen.name] / float(batch.rounded(chosen, each.factor)[0])
            )
    for name, found in ratios.items():
        if name in ("levels16", "codebook2", "trellis4"):
            assert found == pytest.approx([1.0] * len(found), rel=1e-6), name
        assert 0.5 < min(found) <= max(found) < 1.5, name
        assert 0.8 < np.mean(found) < 1.25, name


def test_groups_of_a_batch_have_moments_of_their_own() -> None:
    """Two weights on different inputs: each gains by what meets itself."""
    generator = np.random.default_rng(0)
    matrix = generator.standard_normal((1, 32, 16)).astype(np.float32)
    mixed = generator.standard_normal((32, 4)).astype(np.float32)
    alike = (mixed @ mixed.T + 0.05 * np.eye(32, dtype=np.float32))[None]
    plain = np.eye(32, dtype=np.float32)[None]
    pair = [Seen(name, matrix, factorize(moment), FORMATS) for name, moment in (("plain", plain), ("alike", alike))]
    found = estimated(pair, 127)
    gains = {name: damages["levels16"] for name, damages in found.items()}
    assert gains["alike"] < 0.7 * gains["plain"]
