"""Hyperparameter sweeps for CTC sequence models. `Client` asks a server; `connect` a database as well; `load` reads one
sweep into data frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sweeps.client import Client
    from sweeps.connect import connect
    from sweeps.frames import load

__all__ = ["Client", "connect", "load"]


def __getattr__(name: str) -> object:
    """Imported when asked for: a worker needs no HTTP."""
    if name == "Client":
        from sweeps.client import Client

        return Client
    if name == "connect":
        from sweeps.connect import connect

        return connect
    if name == "load":
        from sweeps.frames import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
