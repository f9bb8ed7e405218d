"""The command line. In: arguments. Out: pages on stdout, progress on stderr, an exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence

from onnxc.command_line.arguments import parser
from onnxc.command_line.ending import BAD_INPUT, BUG, INTERRUPTED, NO_MEMORY, complain
from onnxc.errors import OnnxcError
from onnxc.streams import open_streams


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    debug = False
    open_streams()
    pressed = _note_interrupts()
    try:
        parsed = parser().parse_args(arguments)
        debug = getattr(parsed, "debug", False)
        code: int = parsed.run(parsed)
        sys.stdout.flush()
        return code
    except SystemExit as leaving:  # argparse
        return int(leaving.code or 0)
    except KeyboardInterrupt:
        return complain("interrupted; nothing was written", INTERRUPTED, debug)
    except BrokenPipeError:  # the reader of our output has gone, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OnnxcError as error:
        return complain(str(error), error.exit_code, debug)
    except MemoryError:
        return complain("out of memory: the model or its inputs need more than there is", NO_MEMORY, debug)
    except OSError as error:  # what we know how to name is an OnnxcError; this is a temporary folder or the like
        where = f" ({error.filename})" if error.filename else ""
        return complain(f"the system refuses: {error.strerror or error}{where}; nothing was written", BAD_INPUT, debug)
    except Exception as error:  # noqa: BLE001  # whatever is not an error of ours is our bug
        if pressed:  # an extension that is being imported turns Ctrl-C into an error of its own
            return complain("interrupted; nothing was written", INTERRUPTED, debug)
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        hint = "" if debug else " with what --debug prints"
        return complain(f"this is a bug in onnxc, please report it{hint}: {text}", BUG, debug)


def _note_interrupts() -> list[int]:
    """A list that is not empty once Ctrl-C was pressed; it raises KeyboardInterrupt as always."""
    pressed: list[int] = []

    def note(number: int, frame: object) -> None:
        pressed.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGINT, note)
    return pressed
