"""A training of a few steps. In: teacher, student, a name in models/. Out: a Trainer, what it learned."""

from __future__ import annotations

import numpy as np

from onnxc.model import Model
from onnxc.session import Options, Session
from onnxc.training.lesson import Lesson
from onnxc.training.losses import Loss, matched
from onnxc.training.trainer import Trainer
from onnxc.training.tuning import Settings
from tests.training.students import samples

FEW = Settings(minutes=30, steps=12, batch=8, threads=1)


def made(teacher: Model, student: Model, name: str, count: int, settings: Settings) -> Trainer:
    loss = Loss(matched(teacher, student))
    names = [each.teacher for each in loss.outputs]
    lesson = Lesson.given(Session(teacher), Session(student), samples(name, count), names, 0)
    return Trainer(teacher, student, lesson, loss, settings, Options())


def learned(found: Trainer) -> list[np.ndarray]:
    """What is in the file and behind it."""
    assert all(each.parameter.device == found.device for each in found.latents)
    return [
        *(np.asarray(each.values) for each in found.student.graph.weights),
        *(each.parameter.detach().cpu().numpy() for each in found.latents),
    ]
