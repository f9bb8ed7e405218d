"""Empirical bias correction: the mean error of every channel goes, the kernels stay."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from onnxc.encoding import round_to_nearest
from onnxc.equalizing.bias_correction import corrected, places_of, rounds
from onnxc.kernels import operators
from onnxc.model import Model
from onnxc.session import Options, Session
from onnxc.sites import find
from onnxc.targets import target
from tests.emission import model as made_of
from tests.emission import node, weight
from tests.emission import samples as random_samples
from tests.trained import context, load, samples, sqnr, static


@cache
def quantized(name: str) -> tuple[Model, Model]:
    model = load(name)
    return model, static(context(model, samples(name)))


@cache
def mended(name: str) -> Model:
    model, rounded = quantized(name)
    return corrected(model, rounded, samples(name), Options())[0]


@pytest.mark.parametrize(("name", "gain"), [("depthwise_cnn", 1.0), ("residual_cnn", 1.0)])
def test_it_gains_on_samples_that_it_has_not_seen(name: str, gain: float) -> None:
    """Weights of 4 bits, rounded to nearest: what is lost has a mean."""
    model = load(name)
    rounded = model.copy()
    sites = [s for s in find(rounded, target("cpu")) if s.kind in ("linear", "convolution")]
    for site in sites:
        assert site.weight is not None
        values = np.asarray(site.weight.tensor.values)
        site.weight.tensor.values = round_to_nearest(values, site.weight.channel_axis, 7).restored()
    after, _ = corrected(model, rounded, samples(name, 24), Options(), only=[site.name for site in sites])
    others = samples(name, 96)[32:]
    assert sqnr(model, after, others) > sqnr(model, rounded, others) + gain


def test_the_mean_error_of_every_channel_goes() -> None:
    model, rounded = quantized("residual_cnn")
    data = samples("residual_cnn")

    def offset(found: Model) -> float:
        before, after = Session(model), Session(found)
        (name,) = (info.name for info in before.outputs)
        error = [after.run(sample)[name] - before.run(sample)[name] for sample in data]
        return float(np.square(np.mean(error, 0)).sum())

    assert offset(mended("residual_cnn")) < 0.05 * offset(rounded)


def test_kernels_and_bytes_stay() -> None:
    _, rounded = quantized("depthwise_cnn")
    after = mended("depthwise_cnn")
    assert operators(Session(after, dump=True).optimized()) == operators(Session(rounded, dump=True).optimized())
    assert len(after.serialized()) == len(rounded.serialized())
    assert {t.name for t in after.graph.outputs} == {t.name for t in rounded.graph.outputs}


def test_sites_are_measured_shallow_ones_first() -> None:
    model, rounded = quantized("residual_cnn")
    places = places_of(rounded, model)
    groups = rounds(rounded, places)
    order = {node.name: index for index, node in enumerate(rounded.graph.nodes)}
    first = [min(order[place.name] for place in group) for group in groups]
    assert first == sorted(first)
    assert sum(map(len, groups)) == len(places) == 14
    assert len(groups) > 8


def test_a_float_model_and_a_shared_bias_are_left_alone() -> None:
    model, _ = quantized("residual_cnn")
    same, said = corrected(model, model, samples("residual_cnn", 2), Options())
    assert said == "no quantized site has a bias of its own"
    assert same.serialized() == model.serialized()
    nodes = [node("Gemm", "x w b", "a"), node("Relu", "a", "r"), node("Gemm", "r w b", "y")]
    proto = made_of(nodes, {"x": ["n", 96]}, {"y": None}, {"w": weight(96, 96), "b": weight(96)})
    loaded = Model.load(proto)
    rounded = static(context(loaded, random_samples(x=[4, 96])))
    places = places_of(rounded, loaded)
    assert all(place.bias.name != "b" for place in places)
