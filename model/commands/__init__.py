"""The commands of `python -m model`, one a module: `add` declares its options, `run` returns the exit code."""
