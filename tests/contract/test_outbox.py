"""Messages are written once and sent once, whoever keeps the sweep: run on SQLite and on PostgreSQL."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from model.corpus.data import CorpusConfig
from sweeps import outbox
from sweeps.channels import Channel
from sweeps.keeper import Keeper
from sweeps.outbox import Outbox, send_due, sending
from sweeps.preparing import stored
from sweeps.records import PlannedTrial, SweepRow
from sweeps.spec import SweepSpec
from sweeps.states import SweepState, TrialState
from sweeps.store import Store
from sweeps.study import Study
from tests.rows import VALUES, epoch_row
from tests.telling import Hook, hooked

SPEC = SweepSpec.model_validate({"name": "s", "corpus": "x", "budget": {"trials": 1}})
FACTS = {"constant_wer": 0.9, "constant_sentence": "A"}
SECRET = "not-to-be-seen-anywhere"


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    store = Store(store_url)
    yield store
    store.close()


@pytest.fixture
def sweep(store: Store) -> SweepRow:
    """Its only trial has taken off and is over."""
    content = stored(SPEC, CorpusConfig(path=Path("x")))
    made = store.create_sweep("s", content, "", {"trials": 1}, FACTS, [PlannedTrial("fixed", VALUES, {}, False)])
    store.set_sweep_state(made.id, SweepState.RUNNING)
    claim = store.claim(made.id, "worker", 60)
    assert claim is not None
    store.record(claim, [epoch_row(1, 0.4)])
    store.finish(claim, TrialState.COMPLETE, "learned", "done", "epochs", {})
    return made


@pytest.fixture
def hook() -> Iterator[Hook]:
    with hooked() as hook:
        yield hook


def to(hook: Hook, **content: Any) -> dict[str, Channel]:
    return {"team": Channel.model_validate({"webhook": hook.url, "timeout_seconds": 2, **content})}


def one_pass(store: Store, sweep: SweepRow, channels: Mapping[str, Channel], folder: Path) -> None:
    with closing(Study(store.url, SPEC)) as study:
        Keeper(store, study, sweep, 60.0, folder, Outbox(store, channels).note).make_pass()


def test_a_keeper_writes_and_the_outbox_sends(store: Store, sweep: SweepRow, hook: Hook, tmp_path: Path) -> None:
    channels = to(hook)
    one_pass(store, sweep, channels, tmp_path)
    assert [row.sent_at for row in store.notifications(sweep.id)] == [None, None]
    assert send_due(store, channels) == 2
    assert sorted(each["event"] for each in hook.got) == ["end", "takeoff"]
    end = next(each for each in hook.got if each["event"] == "end")
    assert end["sweep"] == "s"
    assert end["text"].startswith(
        "s is COMPLETE (all trials of its budget are done). Best: trial 0 fixed, dev WER 40.0%"
    )
    assert end["data"]["best"] == {"number": 0, "name": "fixed", "wer": 0.4, "epoch": 1}
    assert len({each["id"] for each in hook.got}) == 2
    assert store.waiting_notifications(["team"]) == []


def test_a_killed_keeper_and_its_successor_tell_once(store: Store, sweep: SweepRow, hook: Hook, tmp_path: Path) -> None:
    channels = to(hook)
    one_pass(store, sweep, channels, tmp_path)  # killed: nothing was sent
    for _ in range(2):  # and another, that sees the same rows
        one_pass(store, sweep, channels, tmp_path)
        send_due(store, channels)
    assert sorted(each["event"] for each in hook.got) == ["end", "takeoff"]


def test_two_that_send_at_once_send_each_message_once(
    store: Store, sweep: SweepRow, hook: Hook, tmp_path: Path
) -> None:
    hook.seconds = 0.3
    one_pass(store, sweep, to(hook), tmp_path)
    with sending(store, to(hook)), sending(store, to(hook)):
        until = time.monotonic() + 20
        while store.waiting_notifications(["team"]) and time.monotonic() < until:
            time.sleep(0.05)
    assert sorted(each["event"] for each in hook.got) == ["end", "takeoff"]


def test_a_sender_that_died_in_the_middle_is_followed_by_another(
    store: Store, sweep: SweepRow, hook: Hook, tmp_path: Path
) -> None:
    one_pass(store, sweep, to(hook, on="end"), tmp_path)
    assert store.take_notification(["team"], hold_seconds=0.2) is not None  # and nothing more is heard of who took it
    assert send_due(store, to(hook)) == 0
    time.sleep(0.3)
    assert send_due(store, to(hook)) == 1


def test_a_dead_webhook_holds_nobody_up_and_is_told_when_it_is_back(
    store: Store, sweep: SweepRow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "FIRST_WAIT_SECONDS", 0.1)
    with hooked() as gone:
        channels, port = to(gone), gone.port
    with sending(store, channels):
        began = time.monotonic()
        one_pass(store, sweep, channels, tmp_path)
        assert time.monotonic() - began < 5
        until = time.monotonic() + 20
        while not all(row.trouble or row.tries > 1 for row in store.notifications(sweep.id)):
            assert time.monotonic() < until
            time.sleep(0.05)
        with hooked(port) as back:
            while store.waiting_notifications(["team"]) and time.monotonic() < until:
                time.sleep(0.05)
            assert sorted(each["event"] for each in back.got) == ["end", "takeoff"]
    rows = store.notifications(sweep.id)
    assert all(row.tries > 1 and row.sent_at is not None and row.trouble == "" for row in rows)


def test_the_wait_doubles_and_what_was_not_told_for_a_day_is_given_up(
    store: Store, sweep: SweepRow, hook: Hook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    hook.status, channels = 500, to(hook, on="end")
    one_pass(store, sweep, channels, tmp_path)
    waits = []
    for _ in range(3):
        store.hasten_notifications(["team"])
        send_due(store, channels)
        (row,) = store.notifications(sweep.id)
        assert row.try_at is not None
        waits.append(row.try_at - store.now())
    assert waits == pytest.approx([5, 10, 20], abs=2)
    assert row.trouble == "127.0.0.1 answers 500"
    monkeypatch.setattr(outbox, "OLD_SECONDS", 0.0)
    store.hasten_notifications(["team"])
    send_due(store, channels)
    assert store.waiting_notifications(["team"]) == []
    (event,) = [event for event in store.events(sweep.id) if event.kind == "not_told"]
    assert (event.text, event.data) == ("team: 127.0.0.1 answers 500", {"channel": "team", "kind": "end", "tries": 4})
    assert "channel team was not told of end of s, and is not any more" in caplog.text


def test_a_channel_hears_what_it_asked_for(store: Store, sweep: SweepRow, hook: Hook, tmp_path: Path) -> None:
    channels = {**to(hook, on="end"), "others": Channel.model_validate({"command": ["x"], "sweeps": ["not-*"]})}
    one_pass(store, sweep, channels, tmp_path)
    assert [(row.channel, row.kind) for row in store.notifications(sweep.id)] == [("team", "end")]


def test_a_channel_that_is_added_later_is_not_told_what_was_before(
    store: Store, sweep: SweepRow, hook: Hook, tmp_path: Path
) -> None:
    one_pass(store, sweep, to(hook), tmp_path)
    one_pass(store, sweep, {**to(hook), "new": to(hook)["team"]}, tmp_path)
    assert {row.channel for row in store.notifications(sweep.id)} == {"team"}


def test_no_secret_is_in_the_database_or_a_log(
    store: Store, sweep: SweepRow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    with hooked() as hook:
        channels = to(hook, webhook=f"{hook.url}/${{HOOK_SECRET}}", headers={"Authorization": "${HOOK_SECRET}"})
        hook.status = 403
        one_pass(store, sweep, channels, tmp_path)
        send_due(store, channels)
    store.hasten_notifications(["team"])
    send_due(store, channels)  # nobody there by now
    written = repr([store.notifications(sweep.id), store.events(sweep.id), store.sweeps(), store.actions()])
    assert "ConnectError" in written
    assert SECRET not in written
    assert SECRET not in caplog.text


def test_a_deleted_sweep_is_not_told_of(store: Store, sweep: SweepRow, hook: Hook, tmp_path: Path) -> None:
    one_pass(store, sweep, to(hook), tmp_path)
    store.delete_sweep(sweep.id)
    assert send_due(store, to(hook)) == 0


def test_what_waits_at_the_end_is_said(
    store: Store, sweep: SweepRow, hook: Hook, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hook.status = 500
    with sending(store, to(hook, on="end")):
        one_pass(store, sweep, to(hook, on="end"), tmp_path)
    assert "channel team was not told of end of s (127.0.0.1 answers 500): `sweeps notify` sends it" in caplog.text
