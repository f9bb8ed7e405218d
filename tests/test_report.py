"""Reports as JSON and as pages."""

from __future__ import annotations

import io
import json
import math
import re

import numpy as np
import pytest
from rich.console import Console

from onnxc.kernels import fused
from onnxc.quality import OutputError
from onnxc.report import Option, Report, RunnerUp, SiteRow, plain
from onnxc.reports.choices import next_best
from onnxc.reports.comparison_page import print_comparison
from onnxc.reports.figures import amount, decibels, operations, percent
from onnxc.reports.tables import print_table
from onnxc.runtime.timing import LoadCost, Ratio
from onnxc.validate import Comparison, SiteDamage


def page(report: Report, *, terminal: bool = False) -> str:
    stream = io.StringIO()
    report.render(Console(file=stream, force_terminal=terminal, width=160, no_color=True, highlight=False))
    return stream.getvalue()


def comparison() -> Comparison:
    result = Comparison([OutputError("y", 31.5, 0.1, 0.01, 0.999, None, 0.99, True, 64, 1, 100)], 31.5, 0.99, 1, 100)
    result.size_reference, result.size_new, result.samples = 1_000_000, 270_000, 64
    result.ratio = Ratio(1.83, 1.75, 1.9, 0.002, 0.0011)
    result.load_reference, result.load_new = LoadCost(0.05, 3_000_000), LoadCost(0.04, None)
    result.score_reference, result.score_new, result.drop = 0.9, 0.891, 0.01
    result.kernels_reference.update({"Conv": 3})
    result.kernels_new.update({"QLinearConv": 3, "QuantizeLinear": 1, "DynamicQuantizeMatMul": 1})
    result.leftover = ["w_q"]
    return result


def report(rows: int = 2) -> Report:
    made = Report("in.onnx", "out.onnx", bytes_before=1_000_000, bytes_after=270_000, comparison=comparison())
    made.rows = [
        SiteRow(
            f"conv{i}",
            "Conv",
            (64, 64, 3, 3),
            147456,
            37000,
            1_810_000,
            "quantize-static",
            "int8",
            33.0,
            0.2,
            0.1,
        )
        for i in range(rows)
    ]
    made.rows.append(SiteRow("tail", "Gemm", (10, 64), 2560, 2560, reason="too small"))
    for place in ("a", "b", "c", "d"):
        made.refuse("quantize-dynamic", "ConvInteger is slower", place)
    made.refuse("store-int8", "a vector", "bias|1")
    return made


def test_refusals_are_counted_with_real_names() -> None:
    first, second = report().refusals
    assert (first.count, first.examples) == (4, ["a", "b", "c"])
    assert second.count == 1


def test_the_page_outside_a_terminal_is_markdown() -> None:
    text = page(report())
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)
    assert "| conv0 | Conv     | 64x64x3x3 | 147 KB | 37.00 KB | 1.81 M | 0.2 |   0.1 | 33.0 dB |" in text
    assert "tail" not in text  # it stayed as it was
    assert "bias/1" in text  # a bar would break the table
    assert "1.83 times as fast (1.75 to 1.9" in text
    assert "1 of 100 changed" in text
    assert "1 % lost" in text
    assert "4 on integers: 3 QLinearConv, 1 DynamicQuantizeMatMul; 1 Quantize/DequantizeLinear" in text
    assert "1 weights are unfolded at every run" in text
    assert text.rstrip().endswith("wrote out.onnx: 1.00 MB -> 270 KB (27 %), 0.0 s")


def test_many_sites_are_grouped_on_the_page_and_whole_in_json() -> None:
    made = report(40)
    text = page(made)
    assert "conv7" not in text
    assert "| Conv     |    40 | 5.90 MB | 1.48 MB | 72.4 M |" in text
    assert len(json.loads(made.to_json())["rows"]) == 41


def test_the_terminal_page_holds_the_same_figures() -> None:
    text = page(report(), terminal=True)
    for word in ("conv0", "27 % of the bytes", "31.5 dB", "quantize-dynamic"):
        assert word in text


def test_json_has_no_model_and_no_value_that_json_lacks() -> None:
    made = report()
    assert made.comparison is not None
    made.comparison.sqnr_db = -math.inf
    made.limits = {"size": np.float32(0.25)}  # type: ignore[dict-item]  # numpy's numbers arrive here too
    document = json.loads(made.to_json(), parse_constant=pytest.fail)
    assert "model" not in document
    assert document["comparison"]["sqnr_db"] is None
    assert document["limits"] == {"size": 0.25}
    assert document["met"] is True
    assert plain({("a", 1): [np.int64(3), float("nan")]}) == {"('a', 1)": [3, None]}


def test_sentences() -> None:
    nothing = Report(changed=False)
    assert "no float weights" in nothing.sentences[0]
    nothing.rows = [SiteRow("a")]
    assert "no candidate" in nothing.sentences[0]
    nothing.refuse("store-int8", "too small", "a")
    assert nothing.sentences[0].endswith("too small (e.g. 'a')")
    made = Report(generated=True, missed=["x"], output="out.onnx")
    assert made.sentences[0] == "not met: x"
    assert "--calib" in made.sentences[1]
    assert "wrote" not in page(made)
    assert made.to_dict()["met"] is False


def test_units() -> None:
    assert [amount(n) for n in (0, 999, 1000, 123_456, 5_300_000_000_000, None)] == [
        "0 B", "999 B", "1.00 KB", "123 KB", "5300 GB", "?",
    ]  # fmt: skip
    assert [percent(v) for v in (0.25, 0.98765, 1.0, None)] == ["25 %", "98.77 %", "100 %", ""]
    assert [decibels(v) for v in (200.0, -math.inf, 31.26, None)] == ["equal", "incomparable", "31.3 dB", ""]
    assert decibels(math.nan) == "not a number in both"
    assert [operations(n) for n in (0, 640, 1_810_000, 4.2e9)] == ["", "640", "1.81 M", "4.2 G"]


def test_the_page_of_compare() -> None:
    result = comparison()
    result.sites = [SiteDamage("conv1", "Conv", 0.01), SiteDamage("conv2", "Conv", 0.0)]
    result.unmatched = ["lost"]
    result.generated = True
    stream = io.StringIO()
    print_comparison(result, Console(file=stream, width=120))
    text = stream.getvalue()
    assert text.index("conv1") < text.index("conv2")
    assert "20.0 dB" in text
    assert "1 sites have no counterpart in it, e.g. 'lost'" in text
    assert "generated" in text


def test_fused_kernels() -> None:
    assert fused(comparison().kernels_new) == {"QLinearConv": 3, "DynamicQuantizeMatMul": 1}


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_words_and_figures_stay_whole_on_a_terminal(width: int) -> None:
    """Whatever the width, no figure or operator is cut or broken, and nothing is lost."""
    heading = ["site", "operator", "weight", "bytes", "after", "MACs", "ms", "after", "done"]
    sentence = "quantize-dynamic: int8, activations quantized at run time"
    rows = [
        ["/encoder/query", "MatMul", "256x1024", "1.05 MB", "266 KB", "4.19 M", "0.0997", "0.0661", sentence],
        ["y_node", "ConvTranspose", "64x32x3x3", "73.7 KB", "18.9 KB", "4.19 M", "0.0995", "0.0567", "float"],
    ]
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=width)
    print_table(console, heading, rows, right=[3, 4, 5, 6, 7], title="Sites")
    lines = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).split("\n")
    assert max(map(len, lines)) <= width
    shown = " ".join(lines)
    for cell in (*heading, *rows[0][:-1], *rows[1]):
        assert cell in shown
    assert all(word in shown.split() for word in sentence.split())


def explained() -> Report:
    """A report of which one site knows its options."""
    made = report()
    made.data, made.allowed_noise, made.predicted_bytes, made.predicted_speed = "64 samples", 0.01, 272_000, 1.9
    made.further = "why not further: <the next plan> was not taken"
    made.rows[0].considered = [
        Option("compute", "", "float", "as it was", None, 0.2, 0.0, False),
        Option("compute", "quantize-static", "static", "int8, uint8 activations (mse)", None, 0.1, 1e-3, True),
        Option("storage", "", "float", "as it was", 147456, None, 0.0, False),
        Option("storage", "store-int8", "int8", "int8 codes", 37000, None, 2e-6, True),
    ]
    made.rows[0].runner_up = RunnerUp("compute", "float", "as it was", 110_456, 0.1, -1e-3)
    return made


def test_the_page_tells_what_was_considered() -> None:
    made = explained()
    text = made.to_html()
    rows = re.findall(r"<tr[^>]*>.*?</tr>", text)
    chosen = [re.sub(r"<[^>]+>", "|", row) for row in rows if 'class="chosen"' in row]
    assert len(chosen) == 2
    assert "|int8, uint8 activations (mse)|" in chosen[0]
    assert "|10 %|" in chosen[0]
    assert "|37.00 KB|" in chosen[1]
    assert "|under 0.05 %|" in chosen[1]
    assert text.count("<details>") == len(made.rows)
    assert "float32: +110 KB, +0.1 ms, less noise: 10 % of the allowed" in text
    assert "&lt;the next plan&gt;" in text
    assert "<b>27 %</b>" in text
    assert "<b>1.83x</b>" in text
    assert "|size|272 KB|270 KB|" in re.sub(r"(<[^>]+>)+", "|", text)


def test_the_page_needs_nothing_else() -> None:
    """No network, no script; light and dark; every tag that is opened is closed."""
    text = explained().to_html()
    assert not re.search(r"https?://|<script|<link|@import|url\(", text)
    assert "prefers-color-scheme: dark" in text
    for tag in ("details", "summary", "table", "tr", "td", "div", "ul", "li", "span"):
        assert len(re.findall(rf"<{tag}[ >]", text)) == text.count(f"</{tag}>"), tag
    bare = Report("a.onnx", None).to_html()
    assert "<h1>a.onnx</h1>" in bare
    assert "nothing written" in bare


def test_the_next_best_in_words() -> None:
    assert next_best(None, 0.01) == ""
    best = RunnerUp("storage", "levels9", "3.2-bit codes", -2460, 0.0, 3e-4)
    assert next_best(best, 0.01) == "3.2-bit codes: -2.46 KB, more noise: 3 % of the allowed"
    assert next_best(best, None) == "3.2-bit codes: -2.46 KB"
    assert next_best(RunnerUp("compute", "dynamic", "int8", 0, 0.0, None), 0.01) == "int8: no difference"
    assert "float32: +110 KB" in page(explained())
