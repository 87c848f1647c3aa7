"""What is to be told is written to the database first and sent from there, by a thread beside the training.

A crash loses nothing, and who takes a sweep over doubles nothing: each message has one row a channel, and whoever
sends takes the row first. Only a crash just between the sending and the note of it may send one twice; its `id` is
the same.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

from sweeps.channels import Channel, send
from sweeps.errors import CannotTell, DatabaseUnavailable
from sweeps.notifying import OLD_SECONDS, notices
from sweeps.records import NotificationRow, SweepRow, TrialRow
from sweeps.store import Store

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
FIRST_WAIT_SECONDS = 5.0
"""After a try that failed; doubled after each, to LONGEST_WAIT_SECONDS."""
LONGEST_WAIT_SECONDS = 3600.0
END_SECONDS = 10.0
"""What messages get at the end of a command to go out; the rest waits in the database."""


class Outbox:
    """The messages of the sweeps that one process keeps."""

    def __init__(self, store: Store, channels: Mapping[str, Channel]) -> None:
        self._store, self._channels = store, channels
        self._stop, self._until = threading.Event(), 0.0
        self._thread = threading.Thread(target=self._keep_sending, name="outbox", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def note(self, sweep: SweepRow, trials: Sequence[TrialRow], breaker: bool) -> None:
        """Write down what there is to tell of a sweep; what was written before stays as it is.

        Raises:
            DatabaseUnavailable
        """
        if not self._channels:
            return
        told = self._store.notifications(sweep.id)
        for notice in notices(sweep, trials, told, self._store.now(), breaker=breaker):
            hearing = [name for name, channel in self._channels.items() if channel.hears(notice.kinds, sweep.name)]
            self._store.add_notification(sweep.id, hearing, notice.key, notice.kinds[0], notice.text, notice.data)

    def finish(self, seconds: float = END_SECONDS) -> list[NotificationRow]:
        """Send what is due, within about so many seconds; returns what waits after that."""
        self._until = time.monotonic() + seconds
        self._stop.set()
        self._thread.join(seconds)
        return self._store.waiting_notifications(list(self._channels))

    def _keep_sending(self) -> None:
        while True:
            stopping = self._stop.is_set()
            try:
                sent = send_due(self._store, self._channels, self._until if stopping else math.inf)
            except DatabaseUnavailable as error:  # rows wait there
                log.warning("%s", error)
                sent = 0
            if stopping:
                return
            if not sent:
                self._stop.wait(LOOK_SECONDS)


def send_due(store: Store, channels: Mapping[str, Channel], until: float = math.inf) -> int:
    """Send what is due to these channels; returns how many went out.

    Args:
        until: no other is begun after that (monotonic seconds).

    Raises:
        DatabaseUnavailable
    """
    sent = 0
    # Longer than any try takes: nobody else sends it meanwhile, and after a crash it is sent all the same.
    hold = 2 * max((channel.timeout_seconds for channel in channels.values()), default=0.0) + 30.0
    while time.monotonic() < until:
        row = store.take_notification(list(channels), hold)
        if row is None:
            break
        try:
            send(channels[row.channel], message(row))
        except CannotTell as error:
            wait = min(FIRST_WAIT_SECONDS * 2.0 ** min(row.tries - 1, 20), LONGEST_WAIT_SECONDS)
            if store.notification_failed(row, str(error), wait, OLD_SECONDS):
                log.warning("%s was not told of %s of %s, and is not any more: %s", *_names(row), error)
            elif row.tries == 1:
                log.warning("%s was not told of %s of %s, and will be: %s", *_names(row), error)
        else:
            store.notification_sent(row)
            sent += 1
    return sent


def _names(row: NotificationRow) -> tuple[str, str, str]:
    return f"channel {row.channel}", row.kind, row.sweep


def message(row: NotificationRow) -> dict[str, Any]:
    """What a channel gets."""
    unique = f"{row.sweep}/{row.sweep_created_at:.3f}/{row.key}"
    return {
        "id": sha256(unique.encode()).hexdigest()[:32],
        "event": row.kind,
        "sweep": row.sweep,
        "text": row.text,
        "at": row.created_at,
        "data": row.data,
    }


@contextmanager
def sending(store: Store, channels: Mapping[str, Channel]) -> Iterator[Outbox]:
    """An outbox that sends while the context is open, and a little longer."""
    outbox = Outbox(store, channels)
    if not channels:
        yield outbox
        return
    outbox.start()
    try:
        yield outbox
    finally:
        try:
            for row in outbox.finish():
                log.warning("%s was not told of %s of %s (%s): `sweeps notify` sends it", *_names(row), row.trouble)
        except DatabaseUnavailable as error:
            log.warning("%s", error)
