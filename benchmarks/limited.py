"""A command with a time limit. In: seconds, two files, a command. Out: what it took as JSON, what it printed.

    python limited.py 900 TOOK.json LOG.txt COMMAND ...

Seconds are those of all its processors together, which other work on the machine hardly changes; the limit is one of
the clock.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path


def main() -> None:
    """Run it; exit with 0 whatever comes of it, the file says what."""
    limit, took, log, *command = sys.argv[1:]
    with Path(log).open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        code: int | None
        try:
            code = process.wait(float(limit))
        except subprocess.TimeoutExpired:
            code = None
        with contextlib.suppress(ProcessLookupError):  # its children too
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    found = {"code": code, **used()}
    Path(took).write_text(json.dumps(found), encoding="utf-8")


def used() -> dict[str, float | None]:
    """Seconds of the command and its children, peak memory of any of them; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return {"seconds": None, "megabytes": None}
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"seconds": found.ru_utime + found.ru_stime, "megabytes": found.ru_maxrss / 1024}


if __name__ == "__main__":
    main()
