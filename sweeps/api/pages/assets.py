"""Style, scripts and picture of the pages, read once. Their address changes with them: browsers keep them for good."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.resources import files

TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
NAMES = ("page.css", "page.js", "charts.js", "live.js", "icon.svg", "uplot.css", "uplot.js")

CONTENT: Mapping[str, bytes] = {name: (files("sweeps.api.pages") / "static" / name).read_bytes() for name in NAMES}
VERSION = hashlib.sha256(b"".join(CONTENT.values())).hexdigest()[:16]


def type_of(name: str) -> str:
    return TYPES[name[name.rindex(".") :]]
