"""Without data: made-up images, and what they tell the solver about the convolutions of real trained models."""

from __future__ import annotations

import numpy as np
import pytest

from onnxc import optimize
from onnxc.codes import moments
from onnxc.samples.images import image_layout, is_image, make_image
from onnxc.session import Session
from tests import trained


def test_power_falls_with_the_square_of_the_frequency() -> None:
    image = make_image((2, 3, 128, 128), 1, np.random.default_rng(0))
    power = np.square(np.abs(np.fft.fft2(image))).mean((0, 1))
    frequency = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128)[None])
    inside = (frequency > 0.02) & (frequency < 0.5)
    slope = np.polyfit(np.log(frequency[inside]), np.log(power[inside]), 1)[0]
    assert slope == pytest.approx(-2, abs=0.1)
    assert np.corrcoef(image[0].reshape(3, -1)).min() > 0.6
    assert image.std() == pytest.approx(1, abs=0.4)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((1, 3, 32, 48), 1),
        ((2, 32, 48, 4), 3),
        ((1, 1, 28, 28), 1),
        ((1, 3, 4, 4), None),
        ((1, 64, 28, 28), None),
        ((8, 32), None),
    ],
)
def test_what_is_an_image(shape: tuple[int, ...], axis: int | None) -> None:
    assert image_layout(shape) == axis
    assert is_image(np.zeros(shape, np.float32)) == (axis is not None)
    assert not is_image(np.zeros(shape, np.int64))
    if axis is not None:
        assert make_image(shape, axis, np.random.default_rng(0)).shape == shape


@pytest.mark.parametrize(("name", "gained"), [("depthwise_cnn", 0.8), ("residual_cnn", -1.2)])
def test_less_is_lost_than_with_what_the_graph_tells_alone(
    name: str, gained: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dB on real data, which neither run has seen. Digits of 8 x 8 pixels are hardly pictures: little is lost there."""
    model = trained.load(name)
    before, found = Session(model), {}
    for share in (0.0, moments.IMAGINED):
        monkeypatch.setattr(moments, "IMAGINED", share)
        made = optimize(model.proto(), passes="simplify,store-int8").model
        assert made is not None
        after, noise, signal = Session(made), 0.0, 0.0
        for sample in trained.samples(name, 64):
            wanted, got = (next(iter(session.run(sample).values())) for session in (before, after))
            noise, signal = noise + float(np.square(got - wanted).sum()), signal + float(np.square(wanted).sum())
        found[share] = 10 * np.log10(signal / noise)
    assert found[moments.IMAGINED] > found[0.0] + gained, found
