"""A trial's last checkpoint in the artifacts of its MLflow run, so that another machine can go on with it.

Two slots take turns, and a small file that is written last says which one holds and what its digest is: whoever reads
finds a whole checkpoint or none, however the one who writes ends. Files in, files out; torch is not needed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from tracking.writer import ExperimentWriter, TrackingRefused, TrackingUnavailable

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
_LATEST = "latest.json"
_SLOTS = ("0.pt", "1.pt")
_TROUBLE = (TrackingUnavailable, TrackingRefused, OSError)


@dataclass(frozen=True)
class Shared:
    """What `latest.json` says."""

    slot: str
    sha256: str
    epochs: int
    """How many epochs the checkpoint holds."""


def shared(experiment: ExperimentWriter, run_id: str) -> Shared | None:
    """What the run holds; None for nothing, or nothing that can be read.

    Raises:
        TrackingUnavailable, TrackingRefused: as every call of a tracker.
    """
    with tempfile.TemporaryDirectory(prefix="sweeps-") as folder:
        file = experiment.download_artifact(run_id, f"{FOLDER}/{_LATEST}", Path(folder))
        if file is None:
            return None
        try:
            found = Shared(**json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:  # it was read while it was written
            log.warning("run %s: %s/%s is no list of a checkpoint (%s)", run_id, FOLDER, _LATEST, error)
            return None
    return found if found.slot in _SLOTS else None


def upload(experiment: ExperimentWriter, run_id: str, file: Path, epochs: int) -> None:
    """Make `file`, a checkpoint of that many epochs, the one that the run holds.

    Raises:
        TrackingUnavailable, TrackingRefused: as every call of a tracker; the run holds what it held before.
        OSError: the file cannot be read.
    """
    run = experiment.existing(run_id)
    before = shared(experiment, run_id)
    slot = _SLOTS[1 if before is not None and before.slot == _SLOTS[0] else 0]
    with tempfile.TemporaryDirectory(prefix="sweeps-") as folder:
        still = Path(folder) / slot
        _keep_still(file, still)
        latest = Path(folder) / _LATEST
        latest.write_text(json.dumps(asdict(Shared(slot, _digest(still), epochs))), encoding="utf-8")
        run.log_artifact(still, FOLDER)
        run.log_artifact(latest, FOLDER)


def fetch(experiment: ExperimentWriter, run_id: str, to: Path, beyond: int = 0) -> int | None:
    """Write the run's checkpoint to the file `to` if it holds more than `beyond` epochs; returns how many, None if
    nothing was written. A copy that is not what was uploaded is not taken.

    Raises:
        TrackingUnavailable, TrackingRefused: as every call of a tracker.
        OSError: `to` cannot be written.
    """
    found = shared(experiment, run_id)
    if found is None or found.epochs <= beyond:
        return None
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.name}.") as folder:
        copy = experiment.download_artifact(run_id, f"{FOLDER}/{found.slot}", Path(folder))
        if copy is None or _digest(copy) != found.sha256:
            log.warning("run %s: its checkpoint of epoch %d is not whole and is not taken", run_id, found.epochs)
            return None
        copy.replace(to)
    return found.epochs


class Share:
    """Uploads in the background, one at a time; of several that wait the latest is taken. It never raises: a checkpoint
    that could not be shared is a warning, and the next one tries again.
    """

    def __init__(self, experiment: ExperimentWriter) -> None:
        self._experiment = experiment
        self._next: tuple[str, Path, int] | None = None
        self._busy = False
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._keep_uploading, name="checkpoint share", daemon=True)
        self.trouble = ""
        """Why the last upload failed; empty if it did not."""

    def offer(self, run_id: str, file: Path, epochs: int) -> None:
        """Upload `file` when the upload in hand is done. It may be replaced meanwhile (not written in place): the run
        then gets the newer one, under the older number.
        """
        with self._changed:
            self._next = (run_id, file, epochs)
            if self._thread.ident is None:
                self._thread.start()
            self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Wait until what was offered is there; False if it is not after `seconds`, or could not be uploaded."""
        with self._changed:
            done = self._changed.wait_for(lambda: self._next is None and not self._busy, seconds)
            return done and not self.trouble

    def close(self, seconds: float = 0.0) -> bool:
        """`flush`, and end the thread after the upload in hand."""
        done = self.flush(seconds)
        with self._changed:
            self._closed, self._next = True, None
            self._changed.notify_all()
        return done

    def _keep_uploading(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None or self._closed)
                if self._next is None:
                    return
                (run_id, file, epochs), self._next, self._busy = self._next, None, True
            trouble = ""
            try:
                upload(self._experiment, run_id, file, epochs)
            except _TROUBLE as error:
                trouble = str(error)
                log.warning("the checkpoint of epoch %d was not shared: %s", epochs, error)
            with self._changed:
                self._busy, self.trouble = False, trouble
                self._changed.notify_all()


def _keep_still(file: Path, copy: Path) -> None:
    """A second name for the file as it is now, else a copy: the first name may get another file meanwhile."""
    try:
        os.link(file, copy)
    except OSError:
        shutil.copyfile(file, copy)


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
