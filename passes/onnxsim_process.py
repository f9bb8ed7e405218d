"""onnxsim in a process of its own, kept for the next model. In: a ModelProto. Out: a simpler one, or why not.

onnxsim's C++ core may abort or run forever on a hostile graph; here that costs a process, started anew in 0.7
s.
"""

from __future__ import annotations

import atexit
import subprocess
import sys
import threading
from pathlib import Path

from onnx import ModelProto

CHILD = Path(__file__).with_name("simplify_child.py")


class SimplifierError(Exception):
    """onnxsim raised, crashed or took too long; the message says which."""


class Worker:
    """One child process that answers one request at a time.

    Args:
        script: what it runs (see simplify_child.py for how they speak).
    """

    def __init__(self, script: Path = CHILD) -> None:
        self._script = script
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def ask(self, request: bytes, seconds: float) -> bytes:
        """The answer to ``request``.

        Raises:
            SimplifierError: the child refused, ended, or did not answer within ``seconds``.
        """
        with self._lock:
            process = self._process
            if process is None or process.poll() is not None:
                process = self._process = subprocess.Popen(
                    [sys.executable, "-P", str(self._script)],  # -P: no module in our folder shadows another
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
            late = threading.Event()

            def stop() -> None:
                late.set()
                process.kill()

            timer = threading.Timer(seconds, stop)
            timer.start()
            try:
                answer = self._exchange(process, request)
            finally:
                timer.cancel()
                if late.is_set():
                    self.close()
        if late.is_set():
            raise SimplifierError(f"it took more than {seconds:g} s")
        if answer is None:
            self.close()
            raise SimplifierError("it crashed")
        if answer[:1] != b"=":
            raise SimplifierError(answer[1:].decode(errors="replace"))
        return answer[1:]

    @staticmethod
    def _exchange(process: subprocess.Popen[bytes], request: bytes) -> bytes | None:
        """Send and receive; None when the child ends before it has answered."""
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(len(request).to_bytes(8, "little") + request)
            process.stdin.flush()
            size = int.from_bytes(process.stdout.read(8), "little")
            answer = process.stdout.read(size)
        except (OSError, ValueError):
            return None
        return answer if size and len(answer) == size else None

    def close(self) -> None:
        """End the child."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # what was still to be sent
                    continue


_WORKER = Worker()


def onnxsim(proto: ModelProto, seconds: float = 60.0) -> ModelProto:
    """``proto`` after onnxsim.

    Raises:
        SimplifierError: there is no result, for whatever reason.
    """
    answer = _WORKER.ask(proto.SerializeToString(deterministic=True), seconds)
    simplified: ModelProto = ModelProto.FromString(answer)
    return simplified
