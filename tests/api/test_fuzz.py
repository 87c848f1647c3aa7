"""The OpenAPI document against the app: whatever it allows and forbids is asked, and no answer may surprise.

Seeded, so that a failure comes again; a fault that is found gets a test of its own in test_hostile.py.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from sweeps.states import TrialState
from tests.api.conftest import Site
from tests.serving import begun, spec, trained

# Not `negative_data_rejection`: a parameter in the address that nobody knows is ignored here as anywhere.
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 40
"""Of each route, mode, and whether the sweep that is named is there."""
NAMES = {"name": "mine", "trial": "0"}
SEED = 6


def filled(site: Site) -> None:
    """Sweeps of which there is something to tell."""
    for name in ("mine", "other", "third"):
        sweep = site.service.create(spec(name, "small")).sweep.sweep
        trained(site.store, sweep.id)
        trained(site.store, sweep.id, state=TrialState.PRUNED)
        begun(site.store, sweep.id)
    site.service.stop("third")


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
def test_no_answer_surprises(any_site: Site, mode: GenerationMode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.api.live.LOOK_SECONDS", 0.001)
    filled(any_site)
    headers = {"Host": "localhost", **any_site.bearer("operate")}
    document = schemathesis.openapi.from_asgi("/v1/openapi.json", any_site.app(), headers=headers)
    asked = there = 0
    operations = sorted(
        (found.ok() for found in document.get_all_operations()), key=lambda each: each.method == "delete"
    )
    for operation, known in itertools.product(operations, (False, True)):
        if known and operation.path.endswith("/live"):  # of a sweep that runs it has no end: see test_sweeps.py
            continue
        names = {key: value for key, value in NAMES.items() if known and f"{{{key}}}" in operation.path}

        @seed(SEED)
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode, path_parameters=names or None))
        def check(case: Any) -> None:
            nonlocal asked, there
            asked += 1
            there += case.call_and_validate(headers=headers, checks=CHECKS).status_code < 300

        check()
    assert asked > 600
    assert there > 100, "nothing was asked for that is there"
    assert any_site.client("read").get("/v1/sweeps").status_code == 200
