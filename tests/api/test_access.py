"""Nobody gets in who should not be there, nobody names what is not theirs to name, and every refusal says why."""

from __future__ import annotations

import gc
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import Route

from sweeps import errors
from sweeps.api.gate import LONGEST_PATH, MOST_BYTES
from sweeps.api.pages.routes import PageRoute
from sweeps.api.problems import HEADERS, status_of
from sweeps.api.routes import router
from sweeps.client import Client
from sweeps.errors import DatabaseUnavailable, NotAllowed, SweepError
from sweeps.service import SweepService
from sweeps.spec import SpecError
from sweeps.store import Store
from sweeps.tokens import new_token, sha256_of
from tests.api.conftest import Site, TestClient, asking, refusal
from tests.serving import begun, corpus, serving, spec, trained

OPEN = ("/healthz", "/readyz")
BODIES = {
    ("POST", "/v1/sweeps"): spec("new", "small"),
    ("POST", "/v1/sweeps/mine/trials"): {"values": {"hidden": 32}},
}


def routes(app: FastAPI) -> list[tuple[str, str]]:
    """Method and path of every route there is but the pages (test_pages.py), about the sweep `mine`."""
    these = [route for route in _flat(app.routes) if not isinstance(route, PageRoute)]
    found = [(m, r.path) for r in these for m in sorted((r.methods or set()) - {"HEAD"})]
    assert {path for _, path in found} >= {route.path for route in router.routes if isinstance(route, APIRoute)}
    return [(method, path.replace("{name}", "mine").replace("{trial}", "0")) for method, path in found]


def _flat(these: Any) -> Iterator[Route]:
    for route in these:
        if isinstance(route, Route):
            yield route
        else:  # a router that was included
            yield from (each.original_route for each in route.effective_candidates())


def ask(client: TestClient, method: str, path: str) -> httpx.Response:
    body = BODIES.get((method, path))
    if path == "/v1/sweeps" and body is not None:
        body = {"spec": body}
    return client.request(method, path, json=body)


@pytest.fixture
def mine(site: Site) -> Site:
    """With a sweep `mine` that is over, so that its live stream ends."""
    sweep = site.service.create(spec("mine", "small"), trials=1).sweep.sweep
    trained(site.store, sweep.id)
    site.service.pause("mine")
    return site


def written(site: Site) -> Any:
    """What a request might have changed."""
    return (site.service.sweeps(), site.service.events("mine"), site.service.actions(), site.service.trials("mine"))


# Tokens


def test_routes_are_found(site: Site) -> None:
    assert {("GET", "/v1/sweeps/mine/live"), ("DELETE", "/v1/sweeps/mine"), ("GET", "/metrics")} < set(
        routes(site.app())
    )
    assert len(routes(site.app())) == len(set(routes(site.app())))


@pytest.mark.parametrize("token", [None, "wrong", "swp_none", "expired", "revoked", "x" * 5_000])
def test_nothing_answers_without_a_good_token(mine: Site, token: str | None) -> None:
    before, client = written(mine), mine.client(token)
    for method, path in routes(mine.app()):
        answer = ask(client, method, path)
        if path in OPEN:
            assert answer.status_code == 200
            continue
        assert answer.status_code == 401, path
        assert answer.headers["www-authenticate"] == "Bearer"
        assert refusal(answer).type == "/problems/not-authenticated"
        assert token is None or mine.tokens.get(token, token) not in answer.text.replace("swp_ ", "")
    assert written(mine) == before


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic dTpw", "bearer\tx", "Bearer a b", "Bearer \xff"])
def test_what_is_no_bearer_token_is_none(mine: Site, header: str) -> None:
    answer = mine.client(None).get("/v1/sweeps", headers={"Authorization": header.encode("latin-1")})
    assert answer.status_code == 401
    refusal(answer)


def test_a_token_in_the_address_is_none(mine: Site) -> None:
    answer = mine.client(None).get("/v1/sweeps", params={"token": mine.tokens["operate"], "access_token": "x"})
    assert answer.status_code == 401


def test_open_routes_say_nothing(mine: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    client = mine.client(None)
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}

    def away(store: Store) -> None:
        raise DatabaseUnavailable("postgresql://somebody@secret.place/name", "no route to secret.place")

    monkeypatch.setattr(Store, "check_writable", away)
    client = mine.client(None)
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert refusal(answer).type == "/problems/database-unavailable"
    assert not re.search("secret|somebody|postgres", answer.text)
    assert client.get("/healthz").status_code == 200


def test_a_database_that_is_away_is_not_named_to_whoever_asks(mine: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(store: Store, sha256: str | None = None) -> None:
        raise DatabaseUnavailable("postgresql://somebody@secret.place/name", "no route to secret.place")

    monkeypatch.setattr(Store, "good_token", away)
    answer = mine.client("wrong").get("/v1/sweeps")
    assert answer.status_code == 503
    assert "secret" not in answer.text


def test_who_may_read_may_change_nothing(mine: Site) -> None:
    before, client = written(mine), mine.client("read")
    for method, path in routes(mine.app()):
        answer = ask(client, method, path)
        if method == "GET" and path != "/v1/actions":
            assert answer.status_code == 200, path
            continue
        assert answer.status_code == 403, path
        problem = refusal(answer)
        assert problem.type == "/problems/read-only"
        assert "operate" in problem.detail
    assert written(mine) == before


def test_who_may_operate_may_ask_for_everything(mine: Site) -> None:
    client = mine.client("operate")
    for method, path in sorted(routes(mine.app()), key=lambda route: route[0] == "DELETE"):
        assert ask(client, method, path).status_code in (200, 201, 204, 409), path
    assert {action.actor for action in mine.service.actions()[2:]} == {"token operate"}


def test_a_token_is_good_no_more_once_it_is_revoked(mine: Site) -> None:
    client = mine.client("operate")
    assert client.get("/v1/sweeps").status_code == 200
    mine.store.revoke_token("operate")
    assert client.get("/v1/sweeps").status_code == 401


def test_a_live_stream_ends_when_its_token_is_revoked(mine: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.api.live.LOOK_SECONDS", 0.01)
    mine.service.create(spec("runs", "small"))
    assert mine.service.policy is not None
    with (
        serving(mine.store, mine.service.home, mine.service.policy, required=True) as address,
        Client(address, mine.tokens["read"]) as client,
    ):
        changes = client.live("runs")
        assert next(changes).kind == "status"
        mine.store.revoke_token("read")
        with pytest.raises(NotAllowed):
            next(changes)


def test_on_loopback_nobody_needs_a_token_but_a_wrong_one_is_refused(mine: Site) -> None:
    app = mine.app(required=False)
    assert asking(app).get("/v1/sweeps").status_code == 200
    assert asking(app, mine.bearer("read")).get("/v1/sweeps").status_code == 200
    assert asking(app, mine.bearer("read")).post("/v1/sweeps/mine/pause").status_code == 403
    assert asking(app, mine.bearer("wrong")).get("/v1/sweeps").status_code == 401


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded"])
def test_what_comes_through_a_proxy_is_not_from_loopback(mine: Site, header: str) -> None:
    app = mine.app(required=False)
    assert asking(app, {header: "203.0.113.9"}).get("/v1/sweeps").status_code == 401
    assert asking(app, {header: "203.0.113.9", **mine.bearer("read")}).get("/v1/sweeps").status_code == 200


# Floods


def test_a_flood_of_wrong_tokens_is_held_back_and_hurts_nobody_else(mine: Site) -> None:
    app = mine.app(wrong="5/minute")
    codes = [asking(app, mine.bearer(new_token())).get("/v1/sweeps").status_code for _ in range(8)]
    assert codes == [401] * 5 + [429] * 3
    last = asking(app, mine.bearer("wrong")).get("/v1/sweeps")
    assert refusal(last).type == "/problems/too-many-requests"
    assert int(last.headers["retry-after"]) > 0
    assert asking(app, mine.bearer("read")).get("/v1/sweeps").status_code == 200  # from the same address, a proxy's say


def test_each_client_may_ask_so_often(mine: Site) -> None:
    app = mine.app(rate="3/minute")
    one, other = asking(app, mine.bearer("read")), asking(app, mine.bearer("operate"))
    assert [one.get("/v1/sweeps").status_code for _ in range(4)] == [200, 200, 200, 429]
    assert other.get("/v1/sweeps").status_code == 200
    nobody = asking(mine.app(required=False, rate="3/minute"))
    assert [nobody.get("/v1/sweeps").status_code for _ in range(4)] == [200, 200, 200, 429]


def test_who_has_no_token_cannot_keep_the_database_busy_with_readyz(
    mine: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Store] = []
    monkeypatch.setattr(Store, "check_writable", lambda store: looks.append(store))
    monkeypatch.setattr("sweeps.api.ready.SECONDS", 60.0)
    client = mine.client(None)
    assert {client.get("/readyz").status_code for _ in range(30)} == {200}
    assert len(looks) == 1


def test_methods_that_nobody_knows_make_no_new_metrics(mine: Site) -> None:
    client = mine.client("read")
    for number in range(20):
        assert client.request(f"X{number}", "/v1/sweeps").status_code == 405
    told = client.get("/metrics").text
    assert 'method="other"' in told
    assert "X1" not in told


# Where it comes from, and how large it is


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "", "127.0.0.2", "[::1", "localhost@evil", "a b"]
)
def test_who_asks_by_another_name_is_refused(mine: Site, host: str) -> None:
    for path in ("/v1/sweeps", "/healthz"):
        answer = mine.client("operate").get(path, headers={"Host": host})
        assert answer.status_code == 421
        assert refusal(answer).type == "/problems/wrong-host"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8765", "127.0.0.1:1"])
def test_who_asks_by_its_own_name_is_heard(mine: Site, host: str) -> None:
    assert mine.client("operate").get("/v1/sweeps", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost.evil.example", "http://localhost:1", ""]
)
def test_a_page_of_another_site_changes_nothing(mine: Site, origin: str) -> None:
    before, client = written(mine), mine.client(None, required=False)
    for method, path in routes(mine.app()):
        if method != "GET":
            answer = client.request(method, path, headers={"Origin": origin})
            assert answer.status_code == 403, path
            assert refusal(answer).type == "/problems/other-site"
    assert written(mine) == before
    assert client.get("/v1/sweeps", headers={"Origin": "http://localhost"}).status_code == 200
    assert client.post("/v1/sweeps/none/pause", headers={"Origin": "http://localhost"}).status_code == 404


def test_a_body_that_is_too_large_is_refused(mine: Site) -> None:
    client = mine.client("operate")
    within = client.post("/v1/sweeps", content=b" " * MOST_BYTES)
    assert (within.status_code, refusal(within).type) == (422, "/problems/invalid-request")
    for path in ("/v1/sweeps", "/v1/sweeps/mine/pause", "/nowhere"):
        over = client.post(path, content=b" " * (MOST_BYTES + 1))
        assert (over.status_code, refusal(over).type) == (413, "/problems/too-large")
        chunked = client.post(path, content=iter([b" " * MOST_BYTES, b" "]))
        assert chunked.status_code == 413
    for length in ("9" * 30, "-1", "x", "1e9"):
        assert client.post("/v1/sweeps", content=b"{}", headers={"Content-Length": length}).status_code == 413


def test_a_path_that_is_too_long_is_refused(mine: Site) -> None:
    client = mine.client("operate")
    for path in (f"/v1/sweeps/{'a' * LONGEST_PATH}", f"/v1/sweeps?x={'a' * LONGEST_PATH}", f"/{'%41' * LONGEST_PATH}"):
        answer = client.get(path)
        assert (answer.status_code, refusal(answer).type) == (414, "/problems/path-too-long")


# Refusals


def test_every_answer_has_the_headers_that_browsers_heed(mine: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SweepService, "trials", lambda *_, **__: 1 / 0)
    client = mine.client("operate")
    paths = ("/v1/sweeps", "/healthz", "/nowhere", "/v1/sweeps/none", "/v1/sweeps/mine/trials", f"/{'a' * 9999}")
    answers = [client.get(path) for path in paths]
    assert [answer.status_code for answer in answers] == [200, 200, 404, 404, 500, 414]
    for answer in answers:
        assert HEADERS.items() <= {key.title(): value for key, value in answer.headers.items()}.items(), answer.url


def test_every_error_has_a_status_and_comes_back_as_itself() -> None:
    kinds = [SweepError]
    for kind in kinds:
        kinds += kind.__subclasses__()
        error = kind.__new__(kind)
        assert 400 <= status_of(error) <= 503
        back = errors.revived(errors.code_of(kind), "words", {"paths": ("a",)})
        assert (type(back), str(back)) == (kind, "words")
    assert {SpecError, DatabaseUnavailable} < set(kinds)
    codes = [errors.code_of(kind) for kind in kinds]
    assert len(codes) == len(set(codes))


def test_errors_of_every_kind_are_problem_documents(mine: Site) -> None:
    sweep = mine.service.create(spec("busy", "small")).sweep.sweep
    begun(mine.store, sweep.id)
    mine.store.take_runner(sweep.id, _runner(), 60.0, lambda _: False)
    client = mine.client("operate")
    changed = {"spec": spec("mine", "small", seed=3)}
    seen = [
        (client.get("/nowhere"), 404, "not-found"),
        (client.get("/v1/sweeps/"), 404, "not-found"),
        (client.get("/docs"), 404, "not-found"),
        (client.put("/v1/sweeps"), 405, "method-not-allowed"),
        (client.head("/v1/sweeps"), 405, None),
        (client.get("/v1/sweeps/mime"), 404, "sweep-not-found"),
        (client.get("/v1/sweeps/mine/trials/99"), 404, "trial-not-found"),
        (client.get("/v1/sweeps/a%00b"), 422, "invalid-request"),
        (client.get("/v1/sweeps/mine/trials", params={"limit": 0}), 422, "invalid-request"),
        (client.get("/v1/sweeps/mine/trials", params={"state": "DEAD"}), 422, "invalid-request"),
        (client.post("/v1/sweeps/mine/resume"), 409, "nothing-to-do"),
        (client.post("/v1/sweeps/mine/stop"), 409, "wrong-state"),
        (client.post("/v1/sweeps/mine/trials", json={"values": {}}), 409, "trials-spent"),
        (client.post("/v1/sweeps", json=changed), 409, "spec-changed"),
        (client.delete("/v1/sweeps/busy"), 409, "sweep-busy"),
        (client.post("/v1/sweeps", json={"spec": {}}), 422, "spec-error"),
        (client.post("/v1/sweeps", content=b"{"), 422, "invalid-request"),
    ]
    for answer, status, code in seen:
        assert answer.status_code == status, (code, answer.text)
        if code is not None:
            assert refusal(answer).type == f"/problems/{code}"
    assert refusal(seen[13][0]).members["paths"] == ["seed (0 -> 3)"]


def _runner() -> Any:
    from sweeps.records import Runner

    return Runner("another-1-1.0", "another host", 1)


def test_a_fault_of_ours_is_told_in_the_log_alone(
    mine: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(service: SweepService) -> None:
        raise RuntimeError("SECRET at /a/place")

    monkeypatch.setattr(SweepService, "sweeps", broken)
    answer = mine.client("read").get("/v1/sweeps")
    assert answer.status_code == 500
    assert refusal(answer).type == "/problems/internal-error"
    assert "SECRET" not in answer.text
    assert "RuntimeError" not in answer.text
    assert "SECRET" in caplog.text
    assert mine.tokens["read"] not in caplog.text


def test_corpora_are_read_two_at_a_time(mine: Site) -> None:
    app = mine.app()
    client = asking(app, mine.bearer("operate"))
    for _ in range(2):
        app.state.preparing.acquire()
    answer = client.post("/v1/sweeps", json={"spec": spec("new", "small")})
    assert (answer.status_code, refusal(answer).type) == (503, "/problems/busy")
    assert int(answer.headers["retry-after"]) > 0
    app.state.preparing.release()
    for _ in range(3):  # a failure frees its place as well
        assert client.post("/v1/sweeps", json={"spec": {}}).status_code == 422
    assert client.post("/v1/sweeps", json={"spec": spec("new", "small")}).status_code == 201


# What is kept of a token


def test_tokens_are_kept_nowhere(mine: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    good, wrong = mine.tokens["operate"], new_token()
    assert mine.service.policy is not None
    said = []
    with serving(mine.store, mine.service.home, mine.service.policy, required=True) as address:
        for token in (good, wrong):
            http = httpx.Client(base_url=address, headers={"Authorization": f"Bearer {token}"}, timeout=30)
            for method, path in routes(mine.app()):
                answer = http.request(method, path, json=BODIES.get((method, path)))
                said.append(f"{answer.headers} {answer.text}")
            http.close()
    said += [caplog.text, repr(mine.service.actions()), repr(mine.store.tokens())]
    database = Path(mine.store.url.removeprefix("sqlite:///"))
    kept = b"".join(file.read_bytes() for file in database.parent.glob(f"{database.name}*"))
    for token in (good, wrong):
        assert not any(token in text for text in said)
        assert token.encode() not in kept
        assert token.removeprefix("swp_").encode() not in kept
    assert sha256_of(good).encode() in kept
    assert not any(sha256_of(good) in text for text in said)


# Corpora and trainers


@pytest.fixture
def secrets(site: Site, tmp_path: Path) -> Path:
    """A corpus outside the roots, and ways there that begin inside."""
    secret = corpus(tmp_path / "secret")
    (site.root / "link").symlink_to(secret, target_is_directory=True)
    (site.root / "nowhere").symlink_to(tmp_path / "missing", target_is_directory=True)
    (site.root / "ring").symlink_to(site.root / "ring")
    (site.root / "far").symlink_to(tmp_path, target_is_directory=True)
    return secret


def test_corpora_outside_the_roots_are_refused_whether_they_are_there_or_not(site: Site, secrets: Path) -> None:
    client = site.client("operate")
    there_or_not = [
        ("../secret", "../missing"),
        ("small/../../secret", "small/../../missing"),
        (str(secrets), str(secrets.parent / "missing")),
        (f"{site.root}/../secret", f"{site.root}/../missing"),
        ("link", "nowhere"),
        ("far/secret", "far/missing"),
        ("/etc/passwd", "/etc/missing"),
        ("/", "/missing"),
        ("..", "ring"),
        ("~root", "~missing"),
        ("small/../../corpora-evil", "a" * 300),
        ("file:///etc", "\\\\server\\share"),
        ("http://169.254.169.254/", "s3://bucket/key"),
    ]
    for there, missing in there_or_not:
        for key in ("path", "annotations", "vocabulary"):
            said = []
            for place in (there, missing):
                given = {"path": "small", key: place}
                answer = client.post("/v1/sweeps", json={"spec": {"name": "x", "corpus": given}})
                assert answer.status_code == 422, (key, place)
                problem = refusal(answer)
                assert problem.type == "/problems/spec-error"
                said.append(problem.detail.replace(repr(str(Path(place))[:200]), "PLACE"))
                assert str(site.root) not in problem.detail.replace(str(Path(place)), "")
            assert said[0] == said[1]
    assert site.service.sweeps() == []


def test_corpora_below_a_root_are_taken_by_any_of_their_names(site: Site) -> None:
    (site.root / "same").symlink_to(site.root / "small", target_is_directory=True)
    client = site.client("operate")
    for number, place in enumerate(["small", "./small", "small/../small", "same", str(site.root / "small")]):
        answer = client.post("/v1/sweeps", json={"spec": spec(f"s{number}", place)})
        assert answer.status_code == 201, answer.text
        assert answer.json()["sweep"]["sweep"]["spec"]["corpus"]["path"] == str(site.root / "small")


def test_a_trainer_of_a_request_is_never_imported(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap_of_a_request.py").write_text(
        f"open({str(tmp_path / 'sprung')!r}, 'w').close()\ndef Trap(config, corpus): ...\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    client = site.client("operate")
    for trainer in (
        "trap_of_a_request:Trap",
        f"{tmp_path}/trap_of_a_request.py:Trap",
        "os:system",
        "",
        "built-in",
        "\ud800",
    ):
        for body in ({"spec": spec("x", "small"), "trainer": trainer}, {"spec": spec("x", "small", trainer=trainer)}):
            answer = client.post("/v1/sweeps", content=_json(body), headers={"Content-Type": "application/json"})
            assert answer.status_code == 422, trainer
            refusal(answer)
    assert not (tmp_path / "sprung").exists()
    assert "trap_of_a_request" not in sys.modules
    assert site.service.sweeps() == []


def _json(body: Any) -> bytes:
    import json

    return json.dumps(body).encode("ascii")


@pytest.mark.slow
def test_what_is_served_is_freed(mine: Site) -> None:
    """No request is held on to."""
    client = mine.client("read")
    for _ in range(3):
        client.get("/v1/sweeps/mine/trials")
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(50):
        client.get("/v1/sweeps/mine/trials")
    gc.collect()
    assert len(gc.get_objects()) - before < 2_000
