"""The pages without a browser: who sees what, what a cookie is good for, and that nothing in them can become markup."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sweeps.api import sessions
from sweeps.api.pages import assets
from sweeps.api.pages.routes import HEADERS, router
from sweeps.records import EventRow
from sweeps.states import TrialState
from tests.api.conftest import Site, TestClient, asking, refusal
from tests.serving import begun, spec, trained

PAGES = ("/", "/sweeps/mine", "/sweeps/mine/changes", "/sweeps/mine/learned", "/sweeps/mine/decisions")
OURS = {"Origin": "http://localhost"}


@pytest.fixture
def mine(site: Site) -> Site:
    """With a sweep `mine` that runs: a trial that learned, one that was stopped, one under way."""
    sweep = site.service.create(spec("mine", "small")).sweep.sweep
    trained(site.store, sweep.id)
    trained(site.store, sweep.id, state=TrialState.PRUNED)
    begun(site.store, sweep.id)
    return site


def logged_in(site: Site, name: str = "operate", **rules: Any) -> TestClient:
    client = site.client(None, **rules)
    answer = client.post("/login", data={"token": site.tokens[name], "to": "/sweeps/mine"}, headers=OURS)
    assert (answer.status_code, answer.headers["location"]) == (303, "/sweeps/mine")
    return client


# Without a token


def test_every_page_is_asked_for_here() -> None:
    paths = {route.path.replace("{name}", "mine") for route in router.routes}  # type: ignore[attr-defined]
    others = {"/sweeps/mine/{verb}", "/login", "/logout", "/assets/{version}/mine"}
    assert paths == {*PAGES, *others}


@pytest.mark.parametrize("token", [None, "wrong", "expired", "revoked"])
def test_who_shows_no_good_token_sees_a_form_and_nothing_else(mine: Site, token: str | None) -> None:
    for path in PAGES:
        answer = mine.client(token).get(path)
        assert answer.status_code == 401
        assert 'name="token"' in answer.text
        assert not re.search("mime|learned|trial", answer.text)
    for verb in ("pause", "stop", "cancel", "resume"):
        assert mine.client(token).post(f"/sweeps/mine/{verb}", headers=OURS).status_code == 401
    assert mine.service.sweep("mine").sweep.state == "RUNNING"


@pytest.mark.parametrize("token", ["swp_none", "", "x" * 5_000, "expired", "revoked", "é\x00<b>"])
def test_a_token_that_is_not_good_is_refused_with_a_sentence(mine: Site, token: str) -> None:
    client = mine.client(None)
    answer = client.post("/login", data={"token": mine.tokens.get(token, token)}, headers=OURS)
    assert answer.status_code == 401
    assert "Not logged in: this token is not known here, was revoked, or has expired." in answer.text
    assert "set-cookie" not in answer.headers
    assert not token or mine.tokens.get(token, token) not in answer.text
    assert client.get("/").status_code == 401


def test_guesses_are_held_back(mine: Site) -> None:
    client = mine.client(None, wrong="3/minute")
    codes = [client.post("/login", data={"token": "x"}, headers=OURS).status_code for _ in range(5)]
    assert codes == [401] * 3 + [429] * 2


@pytest.mark.parametrize(
    "to", ["//evil.example", "/\\evil.example", "https://evil.example", "/sweeps/a?b", "/login", ""]
)
def test_a_login_leads_nowhere_else(mine: Site, to: str) -> None:
    answer = mine.client(None).post("/login", data={"token": mine.tokens["read"], "to": to}, headers=OURS)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")


@pytest.mark.parametrize("body", [b"\xff\xfe", b"&".join(b"a%d=1" % i for i in range(50))])
def test_a_form_that_cannot_be_read_is_refused(mine: Site, body: bytes) -> None:
    assert mine.client(None).post("/login", content=body, headers=OURS).status_code in (401, 422)


# With one


def test_a_session_opens_the_pages_and_what_their_script_asks_for(mine: Site) -> None:
    client = logged_in(mine)
    for path in (*PAGES, "/v1/sweeps", "/v1/sweeps/mine/curves?metric=dev/wer"):
        assert client.get(path).status_code == 200, path
    assert client.post("/sweeps/mine/pause", headers=OURS).headers["location"] == "/sweeps/mine"
    assert client.post("/v1/sweeps/mine/resume", headers=OURS).status_code == 200
    assert [action.actor for action in mine.service.actions()][-2:] == ["token operate"] * 2


def test_the_cookie_holds_no_token_and_no_script_reads_it(mine: Site) -> None:
    answer = mine.client(None).post("/login", data={"token": mine.tokens["read"]}, headers=OURS)
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("sweeps-session=")
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert "Secure" not in cookie
    assert mine.tokens["read"] not in cookie + answer.text


def test_behind_tls_the_cookie_stays_there(mine: Site) -> None:
    answer = mine.client(None).post(
        "/login", data={"token": mine.tokens["read"]}, headers={"Origin": "https://localhost"}
    )
    assert "Secure" in answer.headers["set-cookie"].split("; ")


def test_servers_on_two_ports_do_not_log_each_other_out(mine: Site) -> None:
    for port in (1, 2):
        host = f"localhost:{port}"
        answer = mine.client(None).post(
            "/login", data={"token": mine.tokens["read"]}, headers={"Host": host, "Origin": f"http://{host}"}
        )
        assert answer.headers["set-cookie"].startswith(f"sweeps-{port}=")


def test_logging_out_ends_the_session(mine: Site) -> None:
    client = logged_in(mine)
    kept = dict(client.cookies)
    assert client.post("/logout", headers=OURS).headers["location"] == "/login"
    assert client.get("/").status_code == 401
    assert asking(client.app, {"Cookie": "; ".join(f"{k}={v}" for k, v in kept.items())}).get("/").status_code == 401  # type: ignore[arg-type]


def test_a_session_ends_with_its_token(mine: Site) -> None:
    client = logged_in(mine)
    mine.store.revoke_token("operate")
    assert client.get("/sweeps/mine").status_code == 401
    assert client.get("/v1/sweeps").status_code == 401


def test_a_session_ends_after_a_day(mine: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "SECONDS", -1.0)
    assert logged_in(mine).get("/").status_code == 401


def test_sessions_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MOST", 3)
    kept = sessions.Sessions()
    begun = [kept.begin(str(number)) for number in range(5)]
    assert [kept.digest_of(session) for session in begun] == [None, None, "2", "3", "4"]


def test_who_may_only_look_sees_no_buttons_and_changes_nothing(mine: Site) -> None:
    reader, operator = logged_in(mine, "read"), logged_in(mine)
    assert "data-verb" in operator.get("/sweeps/mine").text
    assert "data-verb" not in reader.get("/sweeps/mine").text
    assert "may only look" in reader.get("/sweeps/mine").text
    answer = reader.post("/sweeps/mine/cancel", headers=OURS)
    assert answer.status_code == 403
    assert "may only read" in answer.text
    assert mine.service.sweep("mine").sweep.state == "RUNNING"


def test_on_loopback_nobody_logs_in(mine: Site) -> None:
    client = mine.client(None, required=False)
    assert client.get("/sweeps/mine").status_code == 200
    assert "Log out" not in client.get("/").text
    assert client.post("/sweeps/mine/pause").status_code == 303
    proxied = asking(mine.app(required=False), {"X-Forwarded-For": "203.0.113.9"})
    assert proxied.get("/").status_code == 401


# From where


ELSEWHERE = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://localhost:5000"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
]


@pytest.mark.parametrize("headers", ELSEWHERE, ids=str)
@pytest.mark.parametrize("required", [True, False])
def test_a_page_of_another_site_changes_nothing(mine: Site, required: bool, headers: dict[str, str]) -> None:
    client = logged_in(mine) if required else mine.client(None, required=False)
    for path in ("/sweeps/mine/cancel", "/v1/sweeps/mine/cancel", "/login", "/logout"):
        answer = client.post(path, headers=headers)
        assert (answer.status_code, refusal(answer).type) == (403, "/problems/other-site")
    assert client.delete("/v1/sweeps/mine", headers=headers).status_code == 403
    assert mine.service.sweep("mine").sweep.state == "RUNNING"
    assert client.get("/").status_code == 200


def test_a_cookie_alone_changes_nothing(mine: Site) -> None:
    client = logged_in(mine)
    for path in ("/sweeps/mine/pause", "/v1/sweeps/mine/pause"):
        assert client.post(path).status_code == 403
    assert client.post("/v1/sweeps/mine/pause", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200


def test_other_sites_may_link_here_and_load_nothing(mine: Site) -> None:
    client = mine.client(None, required=False)
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.get("/sweeps/mine", headers=link).status_code == 200
    for path in ("/v1/sweeps", "/v1/sweeps/mine/live", "/sweeps/mine", f"/assets/{assets.VERSION}/page.js"):
        answer = client.get(path, headers={**link, "Sec-Fetch-Mode": "no-cors"})
        assert answer.status_code == 403, path
    assert client.get("/healthz").headers["cross-origin-resource-policy"] == "same-origin"


# What is in them


def test_pages_have_the_headers_that_browsers_heed(mine: Site) -> None:
    client = mine.client("operate")
    for path in (*PAGES, "/login", "/sweeps/none"):
        answer = client.get(path)
        assert HEADERS.items() <= {name.title(): value for name, value in answer.headers.items()}.items(), path
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=|https?://(?!127)", answer.text), path


def test_what_is_fetched_besides_stays_for_good(mine: Site) -> None:
    client = mine.client(None)
    page = client.get("/login").text
    found = set(re.findall(r'"(/assets/[^"]+)"', mine.client("read").get("/sweeps/mine").text))
    assert {path.rpartition("/")[2] for path in found} == set(assets.NAMES)
    assert set(re.findall(r'"(/assets/[^"]+)"', page)) <= found
    for path in found:
        answer = client.get(path)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    for path in (
        f"/assets/{assets.VERSION}/page.cs",
        f"/assets/0/{assets.NAMES[0]}",
        f"/assets/{assets.VERSION}/..%2Fa",
    ):
        assert client.get(path).status_code == 404


def test_every_text_is_text(site: Site) -> None:
    nasty = "</script><img src=x onerror=alert(1)>'\"{{7*7}}"
    sweep = site.service.create(spec("mine", "small")).sweep.sweep
    trained(site.store, sweep.id)
    claim = begun(site.store, sweep.id)
    site.store.finish(claim, TrialState.FAILED, nasty, nasty, nasty, {})
    site.store.add_event(sweep.id, EventRow("noted", nasty))
    site.store.raise_alarm(sweep.id, {"sentence": nasty, "advice": nasty, "proposal": None}, nasty)
    site.store.update_facts(sweep.id, {"range_test": {"sentences": [nasty]}})
    client = site.client("operate")
    for path in PAGES:
        text = client.get(path).text
        assert "<img" not in text
        assert "49" not in re.sub(r"[0-9a-f]{16}|\d+[.:]\d+|\d{3,}", "", text)
    assert text.count("&lt;img") == 0
    assert client.get("/sweeps/mine").text.count("&lt;img") >= 5
    assert "&lt;img" in client.get("/sweeps/<img src=x>").text


@pytest.mark.parametrize(("name", "status"), [("mime", 404), ("a%00b", 422), ("x" * 300, 422)])
def test_what_is_not_there_is_a_page_that_says_so(mine: Site, name: str, status: int) -> None:
    answer = mine.client("read").get(f"/sweeps/{name}")
    assert answer.status_code == status
    assert '<p class="alert"' in answer.text
    assert status != 404 or "did you mean &#39;mine&#39;?" in answer.text


def test_a_verb_that_its_state_does_not_allow_is_a_page_that_says_so(mine: Site) -> None:
    client = mine.client("operate")
    client.post("/sweeps/mine/cancel", headers=OURS)
    answer = client.post("/sweeps/mine/pause", headers=OURS)
    assert answer.status_code == 409
    assert "cancelling" in answer.text.lower()


def test_buttons_follow_the_state(mine: Site) -> None:
    client = mine.client("operate")

    def verbs() -> list[str]:
        return re.findall(r'data-verb="(\w+)"', client.get("/sweeps/mine").text)

    assert verbs() == ["pause", "stop", "cancel"]
    mine.service.pause("mine")
    assert verbs() == ["resume", "stop", "cancel"]
    mine.service.cancel("mine")
    assert verbs() == []


def test_only_what_changed_is_sent(mine: Site) -> None:
    client = mine.client("read")
    last = mine.service.events("mine")[-1].id
    text = client.get("/sweeps/mine/changes", params={"trial": [1], "after": last}).text
    assert re.findall(r'id="trial-(\d+)"', text) == ["1"]
    assert re.findall(r'id="decision-(\d+)"', text) == ["1"]
    assert 'id="event-' not in text
    assert 'id="progress"' in text
    assert client.get("/sweeps/mine/changes", params={"trial": list(range(101))}).status_code == 422


def test_decisions_have_a_page_of_their_own_where_they_are_many(mine: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    client = mine.client("read")
    assert 'href="#decision-1"' in client.get("/sweeps/mine").text
    monkeypatch.setattr("sweeps.api.pages.shown.MOST_DECISIONS", 0)
    assert 'href="/sweeps/mine/decisions#decision-1"' in client.get("/sweeps/mine").text
    assert 'id="decision-1"' in client.get("/sweeps/mine/decisions").text


def test_more_than_a_page_of_trials(mine: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.api.pages.shown.PAGE", 2)
    client = mine.client("read")
    assert re.findall(r'<tr id="trial-(\d+)"', client.get("/sweeps/mine").text) == ["0", "1"]
    assert re.findall(r'<tr id="trial-(\d+)"', client.get("/sweeps/mine?after=1").text) == ["2"]


# MLflow


@pytest.fixture
def shipped(mine: Site) -> Site:
    """Runs of it are in MLflow."""
    sweep = mine.store.find_sweep("mine")
    assert sweep is not None
    place = ("http://mlflow.example:5000", "7")
    mine.store.forget_mirrored(sweep.id, *place)
    for trial in mine.store.trials(sweep.id)[:2]:
        mine.store.set_run_id(sweep.id, trial.id, f"run{trial.number}", instead_of=None, place=place)
    return mine


def test_trials_lead_to_their_runs(shipped: Site) -> None:
    text = shipped.client("read").get("/sweeps/mine").text
    assert 'href="http://mlflow.example:5000/#/experiments/7/runs/run1?workflowType=machine_learning"' in text
    assert 'href="http://mlflow.example:5000/#/experiments/7/runs?' in text
    assert "runs/run2" not in text
    app = shipped.app()
    app.state.tracking = "https://me:secret@mlflow.example"
    text = asking(app, shipped.bearer("read")).get("/sweeps/mine").text
    assert 'href="https://mlflow.example/#/experiments/7/runs/run1?workflowType=machine_learning"' in text
    assert "secret" not in text


def test_without_a_server_stands_the_command_that_starts_one(mine: Site, tmp_path: Path) -> None:
    text = mine.client("read").get("/sweeps/mine").text
    assert re.search(r'<code id="ui">\S*sweeps ui mine', text)
    assert "#/experiments" not in text
