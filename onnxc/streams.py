"""The standard streams of a command, however it was started. In: nothing. Out: streams that can be written to."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def open_streams() -> None:
    """Where the caller closed stdin, stdout or stderr, put the null device there.

    Otherwise Python has no stream to write to, and the next file opened, a model perhaps, would get its number.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # stays open: it is the stream
        os.set_inheritable(number, True)
    os.close(number)
    if sys.stdin is None:
        sys.stdin = open(0)  # noqa: SIM115 - as long as the process lives
    if sys.stdout is None:
        sys.stdout = open(1, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w")  # noqa: SIM115


def console() -> Console:
    """Where results go. A reader that has gone, as of ``| head``, is a BrokenPipeError, not the end of the process."""
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return Plain(file=sys.stdout, highlight=False)
