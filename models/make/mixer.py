"""mixer: a small MLP-Mixer on MNIST; JAX and Flax, through jax2onnx.

python models/make/mixer.py    # jax==0.10.2 flax==0.12.8 optax==0.2.8 jax2onnx==0.17.1 onnx==1.23.2
                               # scikit-learn==1.9.1, 7 minutes on one core
"""

from __future__ import annotations

import sys

import data
import jax
import numpy as np
import onnx
import optax
from flax import nnx
from jax import numpy as jnp
from jax2onnx import to_onnx

sys.path.insert(0, str(data.MAKE.parent))
from evaluate import channels_last

EPOCHS, BATCH = 16, 64


class Perceptron(nnx.Module):
    """Two linear layers over the last axis."""

    def __init__(self, width: int, hidden: int, rngs: nnx.Rngs) -> None:
        self.wide = nnx.Linear(width, hidden, rngs=rngs)
        self.narrow = nnx.Linear(hidden, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., width] to the same."""
        return self.narrow(nnx.gelu(self.wide(x)))


class Block(nnx.Module):
    """Mixes patches, then channels, both normalized first."""

    def __init__(self, patches: int, width: int, rngs: nnx.Rngs) -> None:
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.patches = Perceptron(patches, 2 * width, rngs)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.channels = Perceptron(width, 3 * width, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[n, patches, width] to the same."""
        x = x + self.patches(self.norm1(x).transpose(0, 2, 1)).transpose(0, 2, 1)
        return x + self.channels(self.norm2(x))


class Mixer(nnx.Module):
    """[n, 28, 28, 1] to [n, 10] over 49 patches of 4x4 pixels."""

    def __init__(self, width: int, depth: int, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(1, width, (4, 4), (4, 4), padding="VALID", rngs=rngs)
        self.blocks = nnx.List([Block(49, width, rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Class scores."""
        x = self.stem(x)
        x = x.reshape(-1, 49, x.shape[-1])
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def loss(model: Mixer, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy with softened labels."""
    target = optax.smooth_labels(jax.nn.one_hot(labels, 10), 0.05)
    return optax.softmax_cross_entropy(model(images), target).mean()


@nnx.jit
def step(model: Mixer, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array) -> jax.Array:
    """One step of training."""
    value, gradients = nnx.value_and_grad(loss)(model, images, labels)
    optimizer.update(model, gradients)
    return value


def shifted(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Every picture moved by up to three pixels."""
    padded = np.pad(images, ((0, 0), (3, 3), (3, 3), (0, 0)), mode="edge")
    moves = random.integers(0, 7, (len(images), 2))
    return np.stack([p[y : y + 28, x : x + 28] for p, (y, x) in zip(padded, moves, strict=True)])


if __name__ == "__main__":
    parts = data.load("mnist")
    images, random = channels_last(parts.train.x), np.random.default_rng(0)
    model = Mixer(80, 4, nnx.Rngs(0))
    steps = EPOCHS * (len(images) // BATCH)
    rate = optax.warmup_cosine_decay_schedule(0.0, 2e-3, steps // 10, steps)
    optimizer = nnx.Optimizer(model, optax.adamw(rate, weight_decay=0.05), wrt=nnx.Param)
    for epoch in range(EPOCHS):
        for numbers in random.permutation(len(images))[: len(images) // BATCH * BATCH].reshape(-1, BATCH):
            value = step(model, optimizer, jnp.asarray(shifted(images[numbers], random)), parts.train.y[numbers])
        found = np.asarray(model(jnp.asarray(channels_last(parts.calib.x)))).argmax(1)
        print(f"epoch {epoch}: loss {value:.3f}, {(found == parts.calib.y).mean():.4f}", flush=True)
    exported = to_onnx(model, inputs=[("B", 28, 28, 1)], model_name="mixer", opset=21)
    onnx.save(exported, str(data.MAKE.parent / "mixer.onnx"))
