"""What the PyTorch scripts share: a seeded training loop on MNIST with small shifts, turns and zooms.

In: a module that takes what `prepare` makes of the images. Out: the trained module, in eval mode, and one
printed line per epoch with its accuracy on calibration items. One thread and fixed seeds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import data
import numpy as np
import onnx
import torch
from torch import nn
from torch.nn import functional

torch.set_num_threads(1)
torch.manual_seed(0)


def normalized(images: np.ndarray) -> torch.Tensor:
    """Float32 [n, 1, 28, 28] of uint8 [n, 28, 28], with MNIST's usual mean and deviation."""
    return torch.from_numpy((images[:, None].astype(np.float32) / np.float32(255) - 0.1307) / 0.3081).float()


def jittered(images: torch.Tensor) -> torch.Tensor:
    """The batch with every picture turned, zoomed and moved a little."""
    count = len(images)
    angle = (torch.rand(count) - 0.5) * math.radians(24)
    zoom = 1 + (torch.rand(count) - 0.5) * 0.24
    shift = (torch.rand(count, 2) - 0.5) * 0.28
    matrix = torch.stack(
        [
            torch.stack([zoom * angle.cos(), -zoom * angle.sin(), shift[:, 0]], 1),
            torch.stack([zoom * angle.sin(), zoom * angle.cos(), shift[:, 1]], 1),
        ],
        1,
    )
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def train(
    module: nn.Module,
    *,
    epochs: int,
    rate: float = 3e-3,
    batch: int = 64,
    prepare: Callable[[torch.Tensor], torch.Tensor] = lambda images: images,
) -> nn.Module:
    """Train `module` on MNIST with AdamW; `prepare` maps [n, 1, 28, 28] to its input."""
    parts = data.load("mnist")
    images, labels = normalized(parts.train.x), torch.from_numpy(parts.train.y).long()
    held_out, answers = prepare(normalized(parts.calib.x)), torch.from_numpy(parts.calib.y).long()
    steps = len(images) // batch
    optimizer = torch.optim.AdamW(module.parameters(), rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * steps, pct_start=0.2)
    start = time.process_time()
    for epoch in range(epochs):
        module.train()
        order = torch.randperm(len(images))
        for step in range(steps):
            items = order[step * batch : (step + 1) * batch]
            scores = module(prepare(jittered(images[items])))
            loss = functional.cross_entropy(scores, labels[items], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        module.eval()
        with torch.no_grad():
            accuracy = (module(held_out).argmax(1) == answers).float().mean()
        print(f"epoch {epoch}: {accuracy:.4f}, {time.process_time() - start:.0f} s", flush=True)
    return module.eval()


def save(model: onnx.ModelProto, name: str) -> None:
    """Write `models/NAME.onnx` without the stack traces of the exporter: they name files of this machine."""
    for node in model.graph.node:
        kept = [entry for entry in node.metadata_props if entry.key != "pkg.torch.onnx.stack_trace"]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.save(model, data.MAKE.parent / f"{name}.onnx")
