"""``python -m onnxc``: the command line without the script. In: the arguments. Out: the exit code."""

try:
    from onnxc.cli import main

    code = main()
except KeyboardInterrupt:  # before the command line was there to handle it
    code = 130
raise SystemExit(code)
