"""Where training computes. In: what torch finds. Out: a device and its name; torch in order on it; plain words of it.

CUDA where torch finds a device that works, else the processor. ``CUDA_VISIBLE_DEVICES=`` in the environment hides it.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from onnxc.errors import ModelError

LOOSE = re.compile(r"(\S+) does not have a deterministic implementation")
COPIED = "RNN module weights are not part of single contiguous chunk"  # they are other tensors at every step
WANTED = re.compile(r"[Tt]ried to allocate ([\d.]+ \w+)")


def device() -> torch.device:
    """CUDA where torch finds it and can compute on it, else the processor."""
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product; without it none is
        try:  # the same twice
            torch.ones(2, device="cuda").sum().item()
        except (RuntimeError, AssertionError):  # torch has no kernels for it, its memory is full, it is another's
            return torch.device("cpu")
        return torch.device("cuda")
    return torch.device("cpu")


def named(where: torch.device) -> str:
    """A device in words."""
    if where.type == "cpu":
        return "the processor"
    return f"{torch.cuda.get_device_name(where)} (CUDA)" if where.type == "cuda" else str(where)


@contextmanager
def orderly(seed: int, threads: int, where: torch.device) -> Iterator[set[str]]:
    """Torch with a seed, deterministic kernels, whole floats and so many threads; as before afterwards.

    Yields:
        A set that gets the names of the kernels that were used and have no deterministic form on ``where``.
    """
    before, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    lenient, short = torch.is_deterministic_algorithms_warn_only_enabled(), torch.backends.cudnn.allow_tf32
    loose: set[str] = set()
    shown = warnings.showwarning

    def show(message: Warning | str, *rest: Any, **more: Any) -> None:
        found = LOOSE.match(str(message))
        if found:
            loose.add(found[1])
        else:
            shown(message, *rest, **more)

    with torch.random.fork_rng([where] if where.type == "cuda" else []), warnings.catch_warnings():
        warnings.filterwarnings("default", LOOSE.pattern)
        warnings.filterwarnings("ignore", COPIED)
        warnings.showwarning = show
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.allow_tf32 = False  # ten bits of a product are too few to round by
        torch.manual_seed(seed)
        try:
            yield loose
        finally:
            torch.set_num_threads(before)
            torch.use_deterministic_algorithms(strict, warn_only=lenient)
            torch.backends.cudnn.allow_tf32 = short


@contextmanager
def within_memory(where: torch.device) -> Iterator[None]:
    """What torch says when there is no more memory, in one sentence.

    Raises:
        ModelError: the memory of ``where`` is full.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in text:
            raise
        wanted = WANTED.search(text)
        more = f", {wanted[1]} more are needed" if wanted else ""
        advice = "smaller batches need less"
        if where.type != "cpu":
            advice += ", and with CUDA_VISIBLE_DEVICES= in the environment the processor trains"
        raise ModelError(f"training: the memory of {named(where)} is full{more}; {advice}") from error
