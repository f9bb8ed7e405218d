"""Students learn, are written back exactly, and are never handed out worse than they came."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from onnxc.cli import main
from onnxc.codes.formats import Format
from onnxc.data import Calibration
from onnxc.errors import DataError, Interrupted, ModelError
from onnxc.model import Model
from onnxc.quality import Quality, floor_met
from onnxc.recipe import Budget
from onnxc.reference import ReferenceOutputs
from onnxc.session import Options, Session
from onnxc.training.blocks import blocks, shapes_of
from onnxc.training.distill import made as made_student
from onnxc.training.interpreter import Program
from onnxc.training.latents import tensors_of, values_of, write
from onnxc.training.leaning import lean
from onnxc.training.lesson import Lesson
from onnxc.training.losses import Classes, Loss, Output, matched
from onnxc.training.recover import lowered, recover
from onnxc.training.trainer import Trainer
from onnxc.training.tuning import Settings
from onnxc.training.weights import latents
from tests.training.students import MODELS, pruned, rounded, samples, stored
from tests.unpriced import pretend_everything_pays

FEW = Settings(minutes=30, steps=20, batch=8, threads=1)


@pytest.fixture(scope="module")
def teacher() -> Model:
    return Model.load(MODELS / "sklearn_mlp.onnx")


def trainer(teacher: Model, student: Model, count: int = 24) -> Trainer:
    loss = Loss(matched(teacher, student))
    names = [each.teacher for each in loss.outputs]
    lesson = Lesson.given(Session(teacher), Session(student), samples("sklearn_mlp", count), names, 0)
    return Trainer(teacher, student, lesson, loss, FEW, Options())


def test_a_compressed_model_wins_back_what_it_lost(teacher: Model) -> None:
    student = rounded(teacher)
    made = recover(teacher, student, samples("sklearn_mlp"), FEW)
    assert made.improved
    assert made.after < 0.5 * made.before
    codes = {t.name: np.asarray(t.values) for t in made.model.graph.weights if t.name.endswith("_q")}
    assert len(codes) > 2
    assert all(each.dtype == np.int8 and np.abs(each).max() == 3 for each in codes.values())
    before = {t.name: np.asarray(t.values) for t in student.graph.weights}
    assert any((codes[name] != before[name]).any() for name in codes), "rounding is learned"
    assert made.model.proto().graph.node == student.proto().graph.node, "nothing but weights changes"


def test_the_same_seed_gives_the_same_bytes(teacher: Model) -> None:
    student = rounded(teacher)
    first, second = (recover(teacher, student, samples("sklearn_mlp"), FEW).model.serialized() for _ in range(2))
    assert first == second


def press(monkeypatch: pytest.MonkeyPatch, at: int) -> list[int]:
    """Ctrl-C in the middle of step ``at`` of all optimizers together; the list grows by one with every step."""
    steps: list[int] = []
    step = torch.optim.Adam.step

    def counted(self: Any, *given: Any) -> Any:
        steps.append(1)
        if len(steps) == at:
            signal.raise_signal(signal.SIGINT)
        return step(self, *given)

    monkeypatch.setattr(torch.optim.Adam, "step", counted)
    return steps


@pytest.mark.parametrize(
    ("blockwise", "at", "mix"), [(True, 4, 0.0), (False, 7, 0.0), (False, 7, 1.0), (False, 4, 0.5)]
)
def test_an_interrupted_training_goes_on_and_ends_the_same(
    teacher: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blockwise: bool, at: int, mix: float
) -> None:
    """Pressed in the first block, long before a state would be saved by the clock, or in the training of the whole."""
    monkeypatch.setattr("onnxc.training.trainer.BLOCK_STEPS", 10)
    student = rounded(teacher)
    settings = Settings(minutes=30, steps=20, batch=8, mix=mix, threads=1, work=tmp_path)
    steps = press(monkeypatch, 0)
    whole = recover(teacher, student, samples("sklearn_mlp"), settings, blockwise=blockwise).model.serialized()
    assert not list(tmp_path.iterdir()), "the state of a complete training is removed"
    all_steps = len(steps)
    assert all_steps >= (40 if blockwise else 20), "two blocks at least, then the whole"

    steps = press(monkeypatch, at)
    with pytest.raises(Interrupted):
        recover(teacher, student, samples("sklearn_mlp"), settings, blockwise=blockwise)
    (kept,) = tmp_path.glob("training-*.pt")
    assert kept.stat().st_size > 0
    later = replace(settings, minutes=29.5)
    again = recover(teacher, student, samples("sklearn_mlp"), later, blockwise=blockwise).model.serialized()
    assert again == whole
    assert len(steps) == all_steps, "those before and those after"


def test_ctrl_c_says_whether_the_same_command_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_everything_pays(monkeypatch)
    work, passes = tmp_path / "work", "store-low-bit:levels=4:rounding=nearest"
    words = ["optimize", str(MODELS / "sklearn_mlp.onnx"), str(tmp_path / "out.onnx"), "--passes", passes]
    words += ["--calib", str(MODELS / "data" / "sklearn_mlp_calib.npz"), "--recover", "3", "--work", str(work)]
    press(monkeypatch, 5)
    assert main(words) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    (kept,) = work.glob("training-*.pt")
    kept.unlink()
    monkeypatch.setattr("onnxc.training.lesson.Lesson.given", lambda *given, **named: signal.raise_signal(2))
    assert main(words) == 130
    assert capsys.readouterr().err.endswith("interrupted; nothing was written\n")
    assert not list(work.iterdir())


def test_a_folder_for_a_state_needs_a_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["optimize", str(MODELS / "sklearn_mlp.onnx"), str(tmp_path / "out.onnx"), "--work", str(tmp_path / "work")]
    assert main(words) == 2
    assert capsys.readouterr().err == (
        "onnxc: error: --work keeps the state of a training: give --recover MINUTES too\n"
    )
    assert main([*words, "--passes", "recover:minutes=1"]) == 2, "now data are missing"
    assert "give them with --calib" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["width=0", "width=1", "width=1.5", "width=x", "width", "thin"])
def test_a_wrong_student_is_told_what_may_be_given(
    word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = MODELS / "data" / "sklearn_mlp_calib.npz"
    words = ["distill", str(MODELS / "sklearn_mlp.onnx"), str(tmp_path / "out.onnx"), "--data", str(data)]
    assert main([*words, "--student", word]) == 2
    error = capsys.readouterr().err
    assert f"'{word}' makes no student: --student takes compact, or width=0.5, a part between 0 and 1" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out.onnx").exists()


def test_what_is_written_back_unlearned_is_what_was_there(teacher: Model) -> None:
    for student in (rounded(teacher), teacher.copy()):
        before = student.serialized()
        found = latents(student)
        assert found
        write(found)
        assert student.serialized() == before


@pytest.mark.parametrize(
    ("name", "native"),
    [(name, False) for name in ("40", "16", "9", "6", "4", "3", "16b32", "6b32", "d4", "p16", "t16", "t8")]
    + [("16", True), ("16b32", True)],  # only 16 levels have a type of their own
)
def test_packed_codes_are_learned_and_written_back(teacher: Model, name: str, native: bool) -> None:
    """Digits behind tables, blocks, codebooks: unlearned they are written as they were, learned in as many bytes."""
    books = {"d4": Format(dimension=4), "p16": Format(dimension=1, entries=16)}
    chosen = books.get(name) or Format(*map(int, name.strip("t").split("b")), trellis=name[0] == "t")
    if native:
        teacher = teacher.copy()
        teacher.set_opset(21)
    student = stored(teacher, chosen, native=native)
    before = student.serialized()
    found = latents(student)
    kinds = {each.kind for each in found}
    table = native or name[0] in "dpt"
    assert kinds >= ({"scale"} if name[0] == "p" else {"codes"} if table else {"words"})  # of palettes scales alone
    program = Program(student, trainable=tensors_of(found), outputs=["probabilities"])
    assert name[0] in "dpt" or lean(program, found, teacher) > 10_000
    write(found)
    assert student.serialized() == before
    made = recover(teacher, student, samples("sklearn_mlp"), Settings(minutes=30, steps=20, batch=8), blockwise=False)
    assert made.improved or made.before < 2e-4
    assert len(made.model.serialized()) == len(before)
    if chosen.levels == 4:
        old, new = ({t.name: np.asarray(t.values) for t in m.graph.weights} for m in (student, made.model))
        assert any((old[key] != new[key]).any() for key in old if key.endswith("_packed")), "digits are learned"


def test_pruned_weights_stay_zero(teacher: Model) -> None:
    student = pruned(teacher)
    made = recover(teacher, student, samples("sklearn_mlp"), FEW)
    assert made.improved
    for old, new in zip(student.graph.weights, made.model.graph.weights, strict=True):
        if len(old.shape) == 2:
            zero = np.asarray(old.values) == 0
            assert zero.mean() > 0.7
            assert not np.asarray(new.values)[zero].any()


def test_nothing_is_learned_from_what_is_held_back(teacher: Model) -> None:
    names = [each.name for each in teacher.graph.outputs][1:]
    lesson = Lesson.given(Session(teacher), Session(teacher), samples("sklearn_mlp"), names, 0, held={3, 7, 11})
    assert lesson.held == [3, 7, 11]
    assert sorted(lesson.learning + lesson.held) == list(range(24))


def test_nothing_worse_is_handed_out(teacher: Model) -> None:
    made = recover(teacher, teacher.copy(), samples("sklearn_mlp"), FEW)
    assert not made.improved
    assert made.before == made.after == 0
    assert any("no better" in note for note in made.notes)


def test_a_quantized_model_learns_scales_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Static int8: the int32 bias stays the product of the learned scales, and the kernels stay the same."""
    import onnxc
    from onnxc.session import kernels

    name = "residual_cnn"
    pretend_everything_pays(monkeypatch)
    report = onnxc.optimize(
        MODELS / f"{name}.onnx", tmp_path / "q.onnx", calib=samples(name, 12), passes="quantize-static,store-int8"
    )
    assert report.changed
    student = Model.load(tmp_path / "q.onnx")
    kinds = {each.kind for each in latents(student.copy())}
    assert kinds >= {"bias", "scale", "codes"}
    settings = Settings(minutes=1, steps=4, batch=2, threads=1)
    made = recover(Model.load(MODELS / f"{name}.onnx"), student, samples(name, 12), settings, blockwise=False)
    assert made.parity > 20
    assert kernels(made.model) == kernels(student)
    every_block_depends_on_what_it_learns(Model.load(MODELS / f"{name}.onnx"), student, name)


def every_block_depends_on_what_it_learns(teacher: Model, student: Model, name: str) -> None:
    """Codes that cross a cut would leave a block whose end does not tell what it learns."""
    loss = Loss(matched(teacher, student))
    names = [each.teacher for each in loss.outputs]
    lesson = Lesson.given(Session(teacher), Session(student), samples(name, 4), names, 0)
    trainer = Trainer(teacher, student, lesson, loss, FEW, Options())
    first = lesson.rows[0]
    found = blocks(trainer.program, trainer.latents, first, shapes_of(teacher, names, first))
    assert len(found) > 4
    for latent in trainer.latents:
        latent.parameter.requires_grad_(True)
    for block in found:
        scope = trainer.program.start(first, values_of(trainer.latents))
        trainer.program.run_nodes(trainer.program.nodes, scope)
        ends = torch.stack([scope[each].square().sum() for each in block.targets]).sum()
        slopes = torch.autograd.grad(ends, [each.parameter for each in block.latents], allow_unused=True)
        assert all(each is not None for each in slopes), [each.name for each in block.made]


def test_parity_is_checked_before_training(teacher: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxc.training.operators import OPERATORS

    monkeypatch.setitem(OPERATORS, ("", "Relu"), lambda call, x: -x)
    with pytest.raises(ModelError, match="from ONNX Runtime's: this model cannot be trained"):
        trainer(teacher, rounded(teacher))


def test_trees_are_refused_by_name() -> None:
    trees = Model.load(MODELS / "lightgbm_trees.onnx")
    with pytest.raises(ModelError, match="TreeEnsembleClassifier cannot be trained through"):
        recover(trees, trees.copy(), samples("lightgbm_trees", 4), FEW)


def test_one_sample_is_not_enough(teacher: Model) -> None:
    with pytest.raises(DataError, match="two samples at least"):
        recover(teacher, rounded(teacher), samples("sklearn_mlp", 1), FEW)


@pytest.mark.parametrize("name", ["vision_transformer", "lstm", "text_gru", "mixer", "depthwise_cnn"])
def test_every_kind_of_model_learns(name: str) -> None:
    """One step of gradient descent on random noise in all weights makes the loss smaller."""
    teacher = Model.load(MODELS / f"{name}.onnx")
    student = teacher.copy()
    random = np.random.default_rng(0)
    for graph in student.graphs():
        for tensor in graph.weights:
            if tensor.dtype == np.float32 and len(tensor.shape) >= 2:
                values = np.asarray(tensor.values)
                tensor.values = (values * (1 + 0.1 * random.standard_normal(values.shape))).astype(np.float32)
    settings = Settings(minutes=30, steps=4, batch=4, threads=1)
    loss = Loss(matched(teacher, student))
    names = [each.teacher for each in loss.outputs]
    lesson = Lesson.given(Session(teacher), Session(student), samples(name, 8), names, 0)
    made = Trainer(teacher, student, lesson, loss, settings, Options())
    assert made.parity > 60
    for latent in made.latents:
        latent.parameter.requires_grad_(True)
    first = made.batch_loss(lesson.learning[:1])
    first.backward()
    moved = [each for each in made.latents if each.parameter.grad is not None and bool(each.parameter.grad.any())]
    assert len(moved) > 0.8 * len(made.latents)
    with torch.no_grad():
        for latent in moved:
            latent.parameter -= 1e-4 * latent.rate * torch.sign(latent.parameter.grad)
        assert float(made.batch_loss(lesson.learning[:1])) < float(first)


@pytest.mark.parametrize(
    ("name", "student", "least"),
    [("residual_cnn", "width=0.5", 10.0), ("residual_cnn", "compact", 5.0), ("vision_transformer", "compact", 10.0)],
)
def test_students_are_made_out_of_the_teacher(name: str, student: str, least: float) -> None:
    """A third of the weights or so, and least squares alone keeps most of the signal."""
    teacher = Model.load(MODELS / f"{name}.onnx")
    session = Session(teacher)
    calib = Calibration.open(samples(name, 16), session.inputs)
    small, notes = made_student(student, teacher, calib, Options(), 0)
    assert notes
    assert len(small.serialized()) < 0.4 * teacher.source_bytes
    reference = ReferenceOutputs(session, calib, {})
    assert reference.judge(Session(small)).sqnr_db > least


def test_a_student_cannot_be_made_of_everything() -> None:
    trees = Model.load(MODELS / "lightgbm_trees.onnx")
    calib = Calibration.open(samples("lightgbm_trees", 4), Session(trees).inputs)
    with pytest.raises(ModelError, match="no dense convolution or matrix"):
        made_student("compact", trees, calib, Options(), 0)


def test_losses() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5]])
    other = torch.tensor([[2.0, 1.0, 0.5]])
    output = Output("y", "y", "logits", -1)
    p, q = torch.softmax(other, -1), torch.softmax(logits, -1)
    divergence = float((p * (p / q).log()).sum())
    assert float(Loss([output], "kl")({"y": logits}, {"y": other})) == pytest.approx(divergence, rel=1e-5)
    squares = 2 / 5.25
    assert float(Loss([output])({"y": logits}, {"y": other})) == pytest.approx(divergence + squares, rel=1e-5)
    hard = Loss([output], "kl", labels=1.0)({"y": logits}, {"y": other}, Classes.certain([1]))
    assert float(hard) == pytest.approx(-float(torch.log(q[0, 1])), rel=1e-5)
    cosine = float(Loss([Output("y", "y")], "cosine")({"y": logits}, {"y": other}))
    assert cosine == pytest.approx(1 - 4.25 / 5.25, rel=1e-5)
    with pytest.raises(DataError, match="shape"):
        Loss([output])({"y": logits}, {"y": other[:, :2]})


def test_logits_learn_from_probabilities() -> None:
    """A student without the Softmax of its teacher is at rest where both say the same of the classes."""
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.1, -1.0, 3.0]])
    output = Output("y", "p", "logits", -1, "probabilities")
    assert float(Loss([output])({"y": logits + 7}, {"p": torch.softmax(logits, -1)})) == pytest.approx(0, abs=1e-6)
    assert float(Loss([output])({"y": -logits}, {"p": torch.softmax(logits, -1)})) > 0.1


def test_distill_from_the_command_line(teacher: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student, out = tmp_path / "student.onnx", tmp_path / "out.onnx"
    rounded(teacher).save(student)
    data = tmp_path / "data.npz"
    (name,) = samples("sklearn_mlp", 1)[0]
    inputs = np.concatenate([each[name] for each in samples("sklearn_mlp")])
    digits = Session(teacher).run({name: inputs})[teacher.graph.outputs[0].name]
    np.savez(data, **{name: inputs, "digit": np.asarray(digits)})
    words = ["distill", str(MODELS / "sklearn_mlp.onnx"), str(student), str(out), "--data", str(data)]
    settings = ["--minutes", "1", "--steps", "60", "--labels", "digit", "--label-weight", "1%", "--json"]
    assert main([*words, *settings]) == 0
    import json

    found = json.loads(capsys.readouterr().out)
    assert found["improved"]
    assert found["loss_after"] < found["loss_before"]
    assert Session(out).run(samples("sklearn_mlp", 1)[0])
    assert main([*words[:-2], "--data", str(data), "--labels", "digits"]) == 3
    assert "no array 'digits'" in capsys.readouterr().err
    assert main(["distill", str(student), str(out), "--data", str(data)]) == 2
    assert "TEACHER STUDENT OUT" in capsys.readouterr().err


def test_recover_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_everything_pays(monkeypatch)
    out = tmp_path / "out.onnx"
    model, data = MODELS / "sklearn_mlp.onnx", MODELS / "data" / "sklearn_mlp_calib.npz"
    words = [
        "optimize",
        str(model),
        str(out),
        "--passes",
        "store-low-bit:levels=4",
        "--recover",
        "0.1",
        "--min-sqnr",
        "3",
    ]
    assert main(words) == 2
    assert "--calib" in capsys.readouterr().err
    assert main([*words, "--calib", str(data), "--min-agreement", "50%"]) == 0
    assert "recovery:" in capsys.readouterr().out


def test_floors_hold_for_what_training_makes_of_what_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plainly rounded the model misses 31 dB, so that it stays float; trained it holds them."""
    pretend_everything_pays(monkeypatch)
    model, data = MODELS / "sklearn_mlp.onnx", MODELS / "data" / "sklearn_mlp_calib.npz"
    out, passes = tmp_path / "out.onnx", "store-low-bit:levels=9:block=0:rounding=nearest"
    words = ["optimize", str(model), str(out), "--calib", str(data), "--passes", passes, "--min-sqnr", "31"]
    assert main(words) == 0
    assert out.stat().st_size > 0.99 * model.stat().st_size
    capsys.readouterr()
    work = tmp_path / "work"
    assert main([*words, "--recover", "3", "--work", str(work)]) == 0
    assert "recovery: codes solved on what the compressed model feeds them, " in capsys.readouterr().out
    assert out.stat().st_size < 0.15 * model.stat().st_size
    assert work.is_dir()
    assert not list(work.iterdir()), "the state of a complete training is removed"


def test_what_was_told_is_trained_however_loud_its_noise_is() -> None:
    """An EfficientNet in 4 bits per channel has -2 dB before training."""
    judge: Any = SimpleNamespace(budget=Budget(min_sqnr=5.0), score=None, lowest_sqnr=5.0)
    before = Quality([], -12.0, 0.1, 58, 64)
    assert floor_met(before, lowered(judge, told=True), generated=False) is None
    assert floor_met(before, lowered(judge, told=False), generated=False) is not None


def test_values_have_the_shapes_of_the_file(teacher: Model) -> None:
    student = rounded(teacher)
    for tensor, value in values_of(latents(student)).items():
        assert tuple(value.shape) == tuple(tensor.shape)
