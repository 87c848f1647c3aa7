"""Every fault strikes a real sweep, on SQLite and on PostgreSQL, with a real MLflow server; then all must hold."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.faults.ground import Ground, Row
from tests.faults.scenarios import SCENARIOS, Scenario

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


def cases(database: str) -> pytest.MarkDecorator:
    mine = [scenario for scenario in SCENARIOS if database in scenario.databases]
    return pytest.mark.parametrize("scenario", mine, ids=lambda scenario: scenario.name)


class TestSqlite:
    """A class a database: `--dist loadscope` gives each to one process, which measures its uninterrupted sweeps."""

    @cases("sqlite")
    def test_nothing_is_lost(self, scenario: Scenario, ground: Ground, note: Callable[[Row], None]) -> None:
        row = ground.strike(scenario, "sqlite")
        note(row)
        assert not row.violations, "\n".join([*row.violations, row.words])


class TestPostgresql:
    @pytest.fixture(autouse=True)
    def _server(self, ground: Ground) -> None:
        """Where none can start the test is skipped, but in CI it fails."""
        try:
            ground.postgres()
        except Exception as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(f"no PostgreSQL can start here: {error}")

    @cases("postgresql")
    def test_nothing_is_lost(self, scenario: Scenario, ground: Ground, note: Callable[[Row], None]) -> None:
        row = ground.strike(scenario, "postgresql")
        note(row)
        assert not row.violations, "\n".join([*row.violations, row.words])
