"""Samples mixed of two: of what may be mixed, in which numbers, and that a student learns more of few samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import parser

torch = pytest.importorskip("torch")

from onnxc.cli import main
from onnxc.model import Model
from onnxc.session import Session
from onnxc.training.lesson import Asked, Lesson
from onnxc.training.losses import Classes, Loss, Output, matched
from onnxc.training.mixing import Mixer, Mixture, quantities, told
from onnxc.training.recover import recover
from onnxc.training.samples import Shelf
from onnxc.training.tuning import Settings
from tests.training.students import MODELS, rounded, samples
from tests.training.trainings import made

FEW = Settings(minutes=30, steps=20, batch=8, threads=1)
ALL = replace(FEW, mix=1.0)
Rows = list[dict[str, np.ndarray]]


def shelf(rows: Rows) -> Shelf:
    found = Shelf()
    for row in rows:
        found.append(row)
    return found


def various(count: int = 6) -> Rows:
    """Samples of every kind of input; the rate differs in the last one."""
    random = np.random.default_rng(0)
    return [
        {
            "image": random.standard_normal((1, 3)).astype(np.float32),
            "half": random.standard_normal((1, 2)).astype(np.float16),
            "state": np.zeros((1, 2), np.float32),
            "mask": np.asarray([[1, place % 2]], np.float32),
            "holes": np.asarray([[place, np.nan]], np.float32),
            "rate": np.asarray(16000 if place < count - 1 else 8000, np.int64),
        }
        for place in range(count)
    ]


def test_only_quantities_are_mixed() -> None:
    rows = shelf(various())
    assert quantities(rows, range(6), ()) == {"image", "half"}
    assert quantities(rows, range(6), {"image"}) == {"half"}


def test_what_a_model_looks_up_compares_or_decides_by_is_not_mixed() -> None:
    model = Model.load(
        parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[1] place, float[1, 4] loud, float[1, 4] plain) => (float[1, 4] y)
        <float[2, 4] table = {1, 2, 3, 4, 5, 6, 7, 8}, float limit = {0.5}> {
            whole = Cast <to = 7> (place)
            row = Gather(table, whole)
            over = Greater(loud, limit)
            some = Where(over, row, plain)
            y = Mul(some, plain)
        }
    """)
    )
    assert told(model) == {"place", "loud"}


def test_mixtures_are_between_two_samples_alike_in_the_rest() -> None:
    given = various()
    mixer = Mixer(shelf([{k: v for k, v in row.items() if k in {"image", "half", "rate"}} for row in given]), range(6),
                  frozenset({"image", "half"}), 1.0, 0)  # fmt: skip
    (mixture,) = mixer.mixtures([[0, 1, 2, 3, 4, 5]], 0)
    assert sorted(mixture.partners) == [0, 1, 2, 3, 4, 5]
    assert all(one != other for one, other in zip(mixture.numbers[:5], mixture.partners[:5], strict=True))
    assert (mixture.partners[5], mixture.shares[5]) == (5, 1.0), "nobody has its rate"
    assert all(0 < share < 1 for share in mixture.shares[:5])
    for row, number, partner, share in zip(
        mixer.inputs(mixture), mixture.numbers, mixture.partners, mixture.shares, strict=True
    ):
        between = share * given[number]["image"] + (1 - share) * given[partner]["image"]
        np.testing.assert_allclose(row["image"], between, rtol=1e-6)
        assert (row["image"].dtype, row["half"].dtype) == (np.float32, np.float16)
        assert row["rate"] == given[number]["rate"]


def test_shares_are_uniform_and_drawn_by_seed_and_epoch() -> None:
    rows = shelf([{"x": np.full((1, 1), place, np.float32)} for place in range(4000)])

    def drawn(share: float, seed: int, epoch: int) -> list[float]:
        mixer = Mixer(rows, range(4000), frozenset({"x"}), share, seed)
        return mixer.mixtures([list(range(4000))], epoch)[0].shares

    half = np.asarray(drawn(0.5, 0, 0))
    assert (half < 1).mean() == pytest.approx(0.5, abs=0.03)
    assert (half[: (half < 1).sum()] < 1).all(), "those that are mixed come first"
    whole = np.asarray(drawn(1.0, 0, 0))
    assert np.histogram(whole, 4, (0, 1))[0] == pytest.approx(1000, abs=120)
    assert drawn(1.0, 0, 0) == whole.tolist()
    assert drawn(1.0, 1, 0) != whole.tolist() != drawn(1.0, 0, 1)


@pytest.mark.parametrize("one", [False, True])
def test_the_teacher_answers_what_is_mixed(one: bool) -> None:
    """Also a teacher that takes one sample at a time."""
    teacher = Model.load(
        parser.parse_model(f"""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[{1 if one else "N"}, 3] x) => (float[{1 if one else "N"}, 3] y) {{
            y = Exp(x)
        }}
    """)
    )
    random = np.random.default_rng(0)
    given = [{"x": random.standard_normal((1, 3)).astype(np.float32)} for _ in range(8)]
    session = Session(teacher)
    asked = Asked(session, ["y"], Lesson.given(session, session, given, ["y"], 0))
    assert asked.together is not one
    got = asked(given[:3])["y"]
    np.testing.assert_allclose(got.numpy(), np.exp(np.concatenate([row["x"] for row in given[:3]])), rtol=1e-5)


def test_a_mixed_sample_has_both_classes_by_their_shares() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, 1.0, 0.0]])
    loss = Loss([Output("y", "y", "logits", -1)], "kl", labels=1.0)
    classes = Classes(torch.tensor([1, 0]), torch.tensor([2, 0]), torch.tensor([0.75, 0.5]))
    chance = torch.log_softmax(logits, -1)
    expected = -(0.75 * chance[0, 1] + 0.25 * chance[0, 2] + chance[1, 0]) / 2
    assert float(loss({"y": logits}, {"y": logits}, classes)) == pytest.approx(float(expected), rel=1e-6)


def test_a_step_learns_what_the_teacher_says_between_samples() -> None:
    teacher = Model.load(MODELS / "sklearn_mlp.onnx")
    found = made(teacher, rounded(teacher), "sklearn_mlp", 24, ALL)
    one, other = found.lesson.learning[:2]
    mixture = Mixture([one], [other], [0.25])
    x = {name: 0.25 * a + 0.75 * found.lesson.rows[other][name] for name, a in found.lesson.rows[one].items()}
    wanted = Session(teacher).run({name: a.astype(np.float32) for name, a in x.items()}, ["probabilities"])
    got = Session(found.start).run({name: a.astype(np.float32) for name, a in x.items()}, ["probabilities"])
    expected = found.loss(*({k: torch.from_numpy(v) for k, v in each.items()} for each in (got, wanted)))
    with torch.no_grad():
        assert float(found.mixed_loss(mixture)) == pytest.approx(float(expected), rel=1e-3)
        unmixed = Mixture([one], [other], [1.0])
        assert float(found.mixed_loss(unmixed)) == float(found.batch_loss([one])) != pytest.approx(float(expected))
        both = Mixture([one, other], [other, one], [0.25, 1.0])
        found.loss = replace(found.loss, measure="kl")  # a mean over samples
        single = [float(found.mixed_loss(each)) for each in (mixture, Mixture([other], [one], [1.0]))]
        assert float(found.mixed_loss(both)) == pytest.approx(sum(single) / 2, rel=1e-4)


def learned_of_few(mix: float) -> float:
    """The loss on 32 fresh samples of a student that began with weights of chance and saw 96."""
    teacher = Model.load(MODELS / "sklearn_mlp.onnx")
    student = teacher.copy()
    random = np.random.default_rng(0)
    for tensor in student.graph.weights:
        if len(tensor.shape) == 2:
            tensor.values = (random.standard_normal(tensor.shape) / np.sqrt(tensor.shape[0])).astype(np.float32)
    given = samples("sklearn_mlp", 128)
    settings = replace(FEW, steps=1500, mix=mix, rate=1e-2)
    trained = recover(teacher, student, given[:96], settings, blockwise=False).model
    loss = Loss(matched(teacher, student))
    names = [each.teacher for each in loss.outputs]
    fresh = [(Session(each), each) for each in (trained, teacher)]
    total = 0.0
    for row in given[96:]:
        got, wanted = ({k: torch.from_numpy(np.asarray(v)) for k, v in s.run(row, names).items()} for s, _ in fresh)
        total += float(loss(got, wanted))
    return total / 32


def test_a_student_of_few_samples_is_nearer_to_its_teacher_on_fresh_ones() -> None:
    plain, mixed = learned_of_few(0.0), learned_of_few(1.0)
    assert mixed < 0.5 * plain


def test_ids_are_learned_as_they_are() -> None:
    teacher = Model.load(MODELS / "text_gru.onnx")
    student = rounded(teacher)
    plain, mixed = (recover(teacher, student, samples("text_gru", 8), replace(FEW, steps=3, mix=mix), blockwise=False)
                    for mix in (0.0, 1.0))  # fmt: skip
    assert plain.model.serialized() == mixed.model.serialized()
    assert "samples were not mixed: no input holds quantities alone" in mixed.notes
    assert not any("mixed" in note for note in plain.notes)


def test_distill_mixes_unless_it_is_told_not_to(tmp_path: Path) -> None:
    student, data = tmp_path / "student.onnx", MODELS / "data" / "sklearn_mlp_calib.npz"
    rounded(Model.load(MODELS / "sklearn_mlp.onnx")).save(student)
    words = ["distill", str(MODELS / "sklearn_mlp.onnx"), str(student)]
    written = []
    for number, more in enumerate(([], ["--mix", "50%"], ["--mix", "0%"])):
        out = tmp_path / f"{number}.onnx"
        assert main([*words, str(out), "--data", str(data), "--steps", "20", "--quiet", *more]) == 0
        written.append(out.read_bytes())
    assert written[0] == written[1] != written[2]
