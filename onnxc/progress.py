"""Progress on stderr. In: what is being done, in words. Out: a status line, or lines.

Nothing is shown in the first second, so that short work is silent.
"""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.status import Status

PATIENCE = 1.0  # seconds


class Progress:
    """Call it with what is being done; use it as a context manager so that the status line goes away."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.message = ""
        self._lock = threading.Lock()
        self._shown = False
        self._status: Status | None = None
        self._timer = threading.Timer(PATIENCE, self._wake)
        self._timer.daemon = True

    def __enter__(self) -> Progress:
        if not self.quiet:
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        with self._lock:
            self.quiet = True
            if self._status is not None:
                self._status.stop()

    def __call__(self, message: str) -> None:
        """Say that ``message`` is being done now."""
        with self._lock:
            self.message = message
            if self._shown:
                self._show()

    def _wake(self) -> None:
        with self._lock:
            self._shown = not self.quiet
            if self._shown and self.message:
                self._show()

    def _show(self) -> None:
        if self.quiet:
            return
        if not sys.stderr.isatty():
            print(f"onnxc: {self.message}", file=sys.stderr, flush=True)
        elif self._status is None:
            from rich.console import Console
            from rich.markup import escape

            self._status = Console(stderr=True).status(escape(self.message))
            self._status.start()
        else:
            from rich.markup import escape

            self._status.update(escape(self.message))
