"""The app of the service with tokens of every kind, and what asks it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from sweeps.api.access import Access
from sweeps.api.app import make_app
from sweeps.api.problems import MEDIA_TYPE, Problem
from sweeps.service import SweepService
from sweeps.settings import Home
from sweeps.store import Store
from sweeps.tokens import new_token, sha256_of
from tests.contract.conftest import fresh_database, postgresql
from tests.serving import LOCAL, corpus, policy_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it would rather have httpx2; our client is made of httpx
    from starlette.testclient import TestClient

__all__ = ["postgresql"]

KINDS = ("read", "operate", "expired", "revoked")


@dataclass(frozen=True)
class Site:
    """A served database, and tokens by their names."""

    store: Store
    service: SweepService
    root: Path
    """Of the corpora; `small` lies there."""
    tokens: Mapping[str, str]

    def app(self, required: bool = True, rate: str = "100000/minute", wrong: str = "100000/minute") -> FastAPI:
        return make_app(self.service, Access(self.store, required=required, rate=rate, wrong=wrong), LOCAL)

    def client(self, token: str | None = "operate", **rules: Any) -> TestClient:
        return asking(self.app(**rules), self.bearer(token))

    def bearer(self, name: str | None) -> dict[str, str]:
        """The header for a token by its name, or for that very text."""
        return {} if name is None else {"Authorization": f"Bearer {self.tokens.get(name, name)}"}


def asking(app: FastAPI, headers: Mapping[str, str] | None = None) -> TestClient:
    client = TestClient(app, base_url="http://localhost", raise_server_exceptions=False, follow_redirects=False)
    client.headers.update(headers or {})
    return client


def refusal(answer: httpx.Response) -> Problem:
    """The problem document of an answer, as every error has one."""
    assert answer.headers["content-type"] == MEDIA_TYPE, answer.text[:300]
    found = Problem.model_validate_json(answer.content)
    assert set(answer.json()) == set(Problem.model_fields)
    assert found.status == answer.status_code
    assert found.type.startswith("/problems/")
    assert found.title
    assert found.detail
    return found


def site_of(url: str, folder: Path) -> Site:
    store = Store(url)
    corpus(folder / "corpora" / "small")
    service = SweepService(store, Home(folder / "home"), "", policy_of(folder / "corpora"))
    tokens = {kind: new_token() for kind in KINDS}
    for kind, token in tokens.items():
        seconds = -1.0 if kind == "expired" else None
        store.add_token(kind, sha256_of(token), "read" if kind == "read" else "operate", seconds)
    store.revoke_token("revoked")
    return Site(store, service, folder / "corpora", tokens)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """On SQLite."""
    site = site_of(f"sqlite:///{(tmp_path / 'sweeps.db').as_posix()}", tmp_path)
    yield site
    site.store.close()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield from fresh_database(request, tmp_path)


@pytest.fixture
def any_site(store_url: str, tmp_path: Path) -> Iterator[Site]:
    """On each database."""
    site = site_of(store_url, tmp_path)
    yield site
    site.store.close()
