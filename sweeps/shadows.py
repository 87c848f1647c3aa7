"""Whether `model` and `tracking` are the packages beside this one: a file `model.py` of one's own is soon made.

Needs nothing of them, so that it can say what is wrong where they cannot be imported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The folder that our packages lie in."""
OURS = ("model", "sweeps", "tracking")


def shadows(path: Sequence[str] | None = None) -> dict[str, Path]:
    """The names of ours under which Python imports something else, and what.

    Args:
        path: where to look instead of everywhere.
    """
    found = {}
    for name in OURS:
        spec = find_spec(name) if path is None else PathFinder.find_spec(name, path)
        place = _place(spec)
        if place is not None and place.parent != ROOT / name:
            found[name] = place
    return found


def _place(spec: ModuleSpec | None) -> Path | None:
    """None for a folder without `__init__.py` as well: a package of that name comes before it."""
    return Path(spec.origin).resolve() if spec is not None and spec.origin is not None else None


def sentence(name: str, place: Path) -> str:
    return f"Python imports {place} as {name!r}, which is a package of ctc-sweeps"


WAY_OUT = "rename it, or take its folder out of PYTHONPATH"


@contextmanager
def explained() -> Iterator[None]:
    """An import that fails inside because something stands before a package of ours ends the process: a line on
    stderr and exit code 2.
    """
    try:
        yield
    except ImportError:
        found = shadows()
        if not found:
            raise
        for name, place in found.items():
            print(f"error: {sentence(name, place)}: {WAY_OUT}", file=sys.stderr)
        sys.exit(2)
