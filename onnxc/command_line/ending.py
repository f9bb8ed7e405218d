"""How a command ends. In: a message. Out: one line on stderr, an exit code."""

from __future__ import annotations

import sys
import traceback

EXIT_CODES = (
    "exit codes: 0 done; 1 a limit was not met, OUT was not written; 2 usage; 3 bad input; 130 Ctrl-C; "
    "70 a bug in onnxc"
)
BAD_INPUT = 3
INTERRUPTED = 130
BUG = 70
NO_MEMORY = 3


def complain(message: str, code: int, debug: bool) -> int:
    """One line on stderr (with --debug the traceback before it); returns ``code``."""
    if debug:
        traceback.print_exc()
    print(f"onnxc: error: {' '.join(message.split())}", file=sys.stderr)
    return code
