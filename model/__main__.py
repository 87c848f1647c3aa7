"""`python -m model`: train one run, check a corpus, find out why a run failed. No database, no MLflow."""

from __future__ import annotations

import argparse
import os
import sys

from pydantic import ValidationError

from model.commands import check, decode, diagnose, export, from_landmarks, generate, overfit, pack, range_test, train
from model.commands.options import OneLineParser

COMMANDS = (check, train, diagnose, decode, export, overfit, range_test, pack, generate, from_landmarks)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = OneLineParser(prog="python -m model", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains as it flushes at exit
        return 141  # as a shell says of a command that SIGPIPE has ended
    except ValidationError as error:
        first = error.errors()[0]
        option = f"--{first['loc'][0]} {first['input']}: " if first["loc"] else ""
        fault = first["msg"].removeprefix("Value error, ").removeprefix(f"{first['input']}: ")
        print(f"error: {option}{fault}", file=sys.stderr)
    except (ValueError, OSError) as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
    except KeyboardInterrupt:
        goes_on = getattr(arguments, "goes_on", False)
        print("stopped" + ("; the same command goes on where it was" if goes_on else ""), file=sys.stderr)
        return 130
    return 2


if __name__ == "__main__":
    sys.exit(main())
