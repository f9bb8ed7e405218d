"""``python -m onnxc``: the command line without the script. In: the arguments. Out: the exit code."""

from onnxc.cli import main

raise SystemExit(main())
