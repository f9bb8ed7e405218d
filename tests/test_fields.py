"""What a field of a pass may hold is said before anything is done: the field, the value, and what there is instead."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest

from onnxc.cli import main
from onnxc.contract.fields import Between, Implies, OneOf, configured
from onnxc.errors import RecipeError
from onnxc.passes import PASSES, QuantizeStatic, RaiseOpset, SmoothActivations
from onnxc.propose import passes_of
from onnxc.recipe import PassRequest, Recipe, parse_passes
from onnxc.registry import load_passes

MODELS = Path(__file__).parents[1] / "models"
FREE = {"strip-debug:prefixes"}  # text that may be anything

WRONG = {
    "smooth-activations:aim=weights:block=-3": "smooth-activations:block=-3 must be at least 0",
    "smooth-activations:alpha=7": "smooth-activations:alpha=7 must be at least 0 and at most 1, or -1",
    "smooth-activations:alpha=nan": "smooth-activations:alpha=nan is not a number",
    "smooth-activations:bits=0": "smooth-activations:bits=0 must be at least 2 and at most 8",
    "smooth-activations:bits=99": "smooth-activations:bits=99 must be at least 2 and at most 8",
    "smooth-activations:aim=activations:bits=3": "bits is read only with aim=weights, not aim=activations",
    "quantize-static:percentile=150": "quantize-static:percentile=150 must be above 50 and at most 100",
    "quantize-static:percentile=0.001": "percentile=0.001 must be above 50",
    "quantize-static:range=mse:percentile=90": "percentile is read only with range=percentile, not range=mse",
    "quantize-decode:bits=3": "quantize-decode:bits=3 is not one of 0, 4, 8",
    "quantize-decode:block=16": "quantize-decode:block=16 is not one of 0, 128, 64, 32",
    "store-low-bit:block=-5": "store-low-bit:block=-5 must be at least 0, or -1",
    "store-low-bit:levels=5": "levels=5 is not one of 0, 144",
    "store-low-bit:levels=3:block=32": "3 levels have no blocks",
    "store-low-bit:levels=144:rounding=hqq": "144 levels have no blocks",
    "store-low-bit:levels=9:block=32:zeros=0.6": "zeros is a share of codes without blocks",
    "store-low-bit:zeros=0.999": "zeros=0.999 must be at least 0.01 and at most 0.99",
    "store-low-bit:rounding=hqq:block=0": "takes no block=0",
    "store-codebook:dimension=3": "dimension=3 is not one of 0, 1, 2, 4, 8",
    "store-codebook:entries=32": "entries=32 is not one of 16, 256",
    "store-codebook:dimension=2:entries=16": "entries is read only with dimension=1, not dimension=2",
    "store-int8:rounding=hqq": "rounding=hqq is not one of gptq, nearest",
    "quantize-static:bias=none": "bias=none is not one of auto, corrected, kept",
    "quantize-dynamic:rounding=nearest:feedback=on": "takes no rounding=nearest",
    "store-low-bit:rounding=hqq:feedback=on": "takes no rounding=hqq",
    "store-trellis:levels=5": "levels=5 is not one of 0, 32, 16, 8, 6, 4, 2",
    "raise-opset:version=99": "raise-opset:version=99 must be at least 7 and at most",
    "raise-opset:version=5": "raise-opset:version=5 must be at least 7",
    "raise-opset:gaining=MatMul Konv": "there is no operator 'Konv'",
    "prune-weights:fraction=150%": "prune-weights:fraction=150% must be above 0 and below 1",
    "prune-weights:fraction=0": "must be above 0",
    "prune-weights:threshold=inf": "must be above 0 and finite",
    "prune-weights:pattern=4:2": "write N:M",
    "prune-weights:pattern=2:4:scope=model": "scope=model shares out a fraction",
    "prune-weights:threshold=0.1:importance=gradient": "takes no scope, pattern or importance",
    "prune-channels:macs=1.5": "prune-channels:macs=1.5 must be above 0 and below 1",
    "prune-channels:fraction=0.5:rounding=0": "rounding=0 must be at least 1",
    "prune-channels:importance=norm": "needs one of fraction, macs and parameters",
    "factor-matmul:rank=-1": "factor-matmul:rank=-1 must be at least 1",
    "factor-matmul:smallest=-1": "must be at least 0",
    "factor-conv:energy=1.5": "must be above 0 and at most 1",
    "factor-conv:rank=4.5": "is not a whole number",
    "factor-conv:rank=2:energy=0.5": "one of rank, energy and parameters",
    "factor-conv:refit=2": "is neither true nor false",
    "store-int8,store-int8": "pass 'store-int8' is named twice",
    "store-low-bit:levels=4:levels=3": "says levels twice",
    "store-low-bit:level=4": "did you mean 'levels'",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_value_is_one_line_and_exit_code_3(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.onnx"
    assert main(["optimize", str(MODELS / "sklearn_mlp.onnx"), str(out), "--passes", text]) == 3
    said = capsys.readouterr().err
    assert said.startswith("onnxc: error: ")
    assert said.count("\n") == 1
    assert WRONG[text] in said
    assert not out.exists()


def test_every_number_and_word_of_a_built_in_pass_is_bounded() -> None:
    unbounded = {
        f"{name}:{each.name}"
        for name, kind in load_passes().items()
        if kind in PASSES
        for each in fields(kind)
        for hint in [get_type_hints(kind, include_extras=True)[each.name]]
        if hint in (int, float, str)
    }
    assert unbounded == FREE


def test_defaults_hold_where_nothing_else_was_asked() -> None:
    """A default that is no value of its own (0: not asked for) may lie outside; one that acts may not."""
    outside = set()
    for kind in PASSES:
        hints = get_type_hints(kind, include_extras=True)
        for each in fields(kind):
            rules = get_args(hints[each.name])[1:] if get_origin(hints[each.name]) is Annotated else ()
            if any(rule.complaint(each.default) for rule in rules if not isinstance(rule, Implies)):
                outside.add((each.name, each.default))
    assert {default for _, default in outside} == {0}
    assert {name for name, _ in outside} == {"energy", "rank", "parameters", "fraction", "macs", "threshold"}


def test_a_field_that_is_read_only_with_another_implies_it() -> None:
    made = {
        text: next(each for each, _ in passes_of(Recipe(passes=parse_passes(text))).lossy)
        for text in ("quantize-static:percentile=90", "quantize-static:percentile=99.9%", "quantize-static:range=mse")
    }
    assert list(made.values()) == [
        QuantizeStatic(range="percentile", percentile=90.0),
        QuantizeStatic(range="percentile", percentile=99.9),
        QuantizeStatic(),
    ]
    smooth = configured(SmoothActivations, "smooth-activations", {"bits": "3"})
    assert smooth == SmoothActivations(aim="weights", bits=3)
    assert configured(RaiseOpset, "raise-opset", {"gaining": ""}) == RaiseOpset(gaining="")


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("store-low-bit", {"levels": 4.5}, "is not a whole number"),
        ("store-low-bit", {"levels": True}, "is not a whole number"),
        ("store-low-bit", {"zeros": "some"}, "is not a number"),
        ("factor-conv", {"refit": 1}, "neither true nor false"),
        ("prune-weights", {"fraction": False}, "is not a number"),
    ],
)
def test_types_of_a_recipe_are_not_bent(name: str, values: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        passes_of(Recipe(passes=(PassRequest(name, values),)))


def test_types_that_fit_are_taken() -> None:
    kinds = load_passes()
    assert configured(kinds["store-low-bit"], "", {"levels": 16.0, "zeros": "50%"}).zeros == 0.5
    assert configured(kinds["factor-conv"], "", {"refit": False, "rank": "8"}).refit is False
    assert configured(kinds["recover"], "", {"minutes": 3}).minutes == 3.0


def test_rules() -> None:
    assert OneOf(4, 8).complaint(4) == ""
    assert OneOf(4, 8).complaint(5) == " is not one of 4, 8"
    within = Between(0, 1, open_low=True)
    assert [within.complaint(value) == "" for value in (0, 1e-9, 1, 1.1)] == [False, True, True, False]
    assert Between(0, beside=-1).complaint(-1) == ""
