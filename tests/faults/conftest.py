from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.faults.ground import Ground, Row, prepared

if sys.platform == "win32":
    collect_ignore_glob = ["test_*.py"]  # its processes know neither SIGKILL nor SIGSTOP


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with prepared(tmp_path_factory.mktemp("faults")) as shared:
        yield shared


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[[Row], None]:
    """Keeps a row of the table, in a file of its own: `python -m tests.faults.table` puts them together."""
    folder = request.config.cache.mkdir("faults")

    def keep(row: Row) -> None:
        file = folder / f"{row.scenario} {row.database}.json".replace(" ", "-")
        file.write_text(json.dumps(row.as_json()), encoding="utf-8")

    return keep
