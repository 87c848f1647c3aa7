"""`WriterContract`: what every tracker's writer must hold, for people who bring their own.

class TestMyWriter(WriterContract):
    @pytest.fixture
    def experiment(self): ...   # an empty experiment to write to
    @pytest.fixture
    def tracker(self): ...      # reads back what has arrived there
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import pytest

from tracking.writer import ENDED, Dataset, EpochPoint, ExperimentWriter, ModelFile, RunStatus, TrackingRefused

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c49444154789c6360606000000004000148afa4710000000049454e44ae426082"
)
"""One black point."""


@dataclass(frozen=True)
class StoredRun:
    """One run as a reader of the tracker finds it."""

    name: str
    status: str
    start_time_ms: int
    end_time_ms: int | None
    params: Mapping[str, str]
    tags: Mapping[str, str]
    curves: Mapping[str, list[tuple[int, int, float]]]
    """Metric name to its points (step, timestamp_ms, value), ordered by step."""
    artifacts: Mapping[str, bytes]
    """Without images and tables."""
    images: Mapping[tuple[str, int], bytes]
    """By key and step."""
    tables: Mapping[str, list[list[str | int | float]]]
    """By file; the columns' names first."""
    datasets: Mapping[str, str]
    """Name by digest."""


class Tracker(Protocol):
    """The reader's side of an experiment."""

    def runs(self) -> list[str]:
        """The ids of its runs."""

    def stored(self, run_id: str) -> StoredRun: ...

    def description(self) -> str: ...

    def models(self) -> Mapping[str, Mapping[str, str]]:
        """By id, the facts of each that can be loaded."""


class WriterContract:
    """Give the fixtures `experiment` and `tracker`, both new for each test."""

    def test_a_new_run_is_scheduled(self, experiment: ExperimentWriter, tracker: Tracker) -> None:
        run = experiment.run("sweep/1", "first", 1_000, {"seed": "7"})
        stored = tracker.stored(run.run_id)
        assert (stored.name, stored.status, stored.start_time_ms) == ("first", "SCHEDULED", 1_000)
        assert stored.end_time_ms is None
        assert stored.tags["seed"] == "7"
        assert "mlflow.parentRunId" not in stored.tags

    def test_one_key_is_one_run(self, experiment: ExperimentWriter, tracker: Tracker) -> None:
        first = experiment.run("sweep/1", "first", 1_000)
        first.set_status("RUNNING")
        again = experiment.run("sweep/1", "other name", 2_000)
        other = experiment.run("sweep/10", "tenth", 1_000)
        assert again.run_id == first.run_id != other.run_id
        assert sorted(tracker.runs()) == sorted([first.run_id, other.run_id])
        stored = tracker.stored(first.run_id)
        assert (stored.name, stored.status, stored.start_time_ms) == ("first", "RUNNING", 1_000)

    @pytest.mark.parametrize(
        "key",
        [
            "it's",
            'say "hi"',
            "both ' and \"",
            "back\\slash\\",
            "%' OR '1'='1",
            "Straße/手語/1",
            "a b\tc",
            "100%27",
            "`x`",
        ],
    )
    def test_any_text_is_a_key(self, experiment: ExperimentWriter, tracker: Tracker, key: str) -> None:
        decoy = experiment.run("plain", "decoy", 1_000)
        run = experiment.run(key, "odd key", 1_000)
        assert experiment.run(key, "odd key", 1_000).run_id == run.run_id
        assert sorted(tracker.runs()) == sorted([decoy.run_id, run.run_id])

    def test_replaying_everything_changes_nothing(
        self, experiment: ExperimentWriter, tracker: Tracker, tmp_path: Path
    ) -> None:
        run = experiment.run("sweep/1", "first", 1_000)
        file = tmp_path / "config.json"
        file.write_text("{}", encoding="utf-8")
        points = [EpochPoint(epoch, 1_000 + epoch, {"dev/wer": 1 / epoch, "dev/loss": 2.0}) for epoch in range(1, 6)]

        def write() -> None:
            run.log_params({"learning_rate": "0.0005"})
            run.log_epochs(points)
            run.set_tags({"verdict": "learned"}, "renamed")
            run.log_artifact(file, "files")
            run.log_image("posteriorgram", 2, 2_000, PNG)
            run.log_table("sentences.json", ["epoch", "hypothesis"], [[1, ""], [2, "REGEN Ä"]])
            run.log_dataset(Dataset("si5", "0123abcd", "data/si5", {"train": 4_667}))
            run.set_status("FINISHED", 9_000)

        write()
        once = tracker.stored(run.run_id)
        write()
        run.log_epochs(points[2:])
        assert tracker.stored(run.run_id) == once
        assert once.curves["dev/wer"] == [(epoch, 1_000 + epoch, 1 / epoch) for epoch in range(1, 6)]
        assert once.artifacts == {"files/config.json": b"{}"}
        assert once.images == {("posteriorgram", 2): PNG}
        assert once.tables == {"sentences.json": [["epoch", "hypothesis"], [1, ""], [2, "REGEN Ä"]]}
        assert once.datasets == {"0123abcd": "si5"}
        assert once.name == "renamed"

    def test_artifacts_are_deleted_by_folder(
        self, experiment: ExperimentWriter, tracker: Tracker, tmp_path: Path
    ) -> None:
        run = experiment.run("sweep/1", "first", 1_000)
        file = tmp_path / "weights.pt"
        file.write_bytes(b"weights")
        for folder in ("files", "files/deep", "others"):
            run.log_artifact(file, folder)
        for _ in range(2):
            run.delete_artifacts("files")
        assert tracker.stored(run.run_id).artifacts == {"others/weights.pt": b"weights"}
        with pytest.raises(ValueError, match="relative"):
            run.delete_artifacts("../others")

    def test_more_points_than_fit_one_request(self, experiment: ExperimentWriter, tracker: Tracker) -> None:
        run = experiment.run("sweep/1", "first", 1_000)
        metrics = {f"metric/{number}": 0.25 for number in range(7)}
        run.log_epochs([EpochPoint(epoch, epoch, metrics) for epoch in range(1, 151)])
        run.log_epochs([])
        stored = tracker.stored(run.run_id)
        assert stored.curves == {name: [(epoch, epoch, 0.25) for epoch in range(1, 151)] for name in metrics}

    def test_more_params_and_tags_than_fit_one_request(self, experiment: ExperimentWriter, tracker: Tracker) -> None:
        run = experiment.run("sweep/1", "first", 1_000)
        many = {f"name{number}": str(number) for number in range(230)}
        run.log_params(many)
        run.set_tags(many)
        stored = tracker.stored(run.run_id)
        assert stored.params == many
        assert many.items() <= stored.tags.items()

    def test_a_parameter_is_written_once(self, experiment: ExperimentWriter, tracker: Tracker) -> None:
        run = experiment.run("sweep/1", "first", 1_000)
        run.log_params({"dropout": "0.1"})
        with pytest.raises(TrackingRefused, match="dropout"):
            run.log_params({"dropout": "0.2"})
        assert tracker.stored(run.run_id).params == {"dropout": "0.1"}

    def test_an_ended_run_accepts_metrics(self, experiment: ExperimentWriter, tracker: Tracker) -> None:
        run = experiment.run("sweep/1", "first", 1_000)
        run.set_status("KILLED", 5_000)
        run.log_epochs([EpochPoint(3, 3_000, {"dev/wer": 0.5})])
        run.set_tags({"late": "yes"})
        stored = tracker.stored(run.run_id)
        assert stored.curves == {"dev/wer": [(3, 3_000, 0.5)]}
        assert (stored.status, stored.end_time_ms, stored.tags["late"]) == ("KILLED", 5_000, "yes")

    @pytest.mark.parametrize("status", ["SCHEDULED", "RUNNING", "FINISHED", "FAILED", "KILLED"])
    def test_every_status_is_shown(self, experiment: ExperimentWriter, tracker: Tracker, status: RunStatus) -> None:
        run = experiment.run("sweep/1", "first", 1_000)
        run.set_status(status, 5_000 if status in ENDED else None)
        stored = tracker.stored(run.run_id)
        assert (stored.status, stored.end_time_ms) == (status, 5_000 if status in ENDED else None)

    @pytest.mark.parametrize("status", ["SCHEDULED", "RUNNING"])
    def test_a_resumed_run_has_no_end(self, experiment: ExperimentWriter, tracker: Tracker, status: RunStatus) -> None:
        run = experiment.run("sweep/1", "first", 1_000)
        run.set_status("FINISHED", 5_000)
        run.set_status(status)
        stored = tracker.stored(run.run_id)
        assert (stored.status, stored.end_time_ms) == (status, None)

    def test_an_end_without_a_time_is_now_and_stays(self, experiment: ExperimentWriter, tracker: Tracker) -> None:
        run = experiment.run("sweep/1", "first", 1_000)
        run.set_status("FAILED")
        end = tracker.stored(run.run_id).end_time_ms
        assert end is not None
        assert end > 1_000
        run.set_status("FAILED")
        assert tracker.stored(run.run_id).end_time_ms == end

    def test_long_text_is_cut(self, experiment: ExperimentWriter, tracker: Tracker) -> None:
        run = experiment.run("sweep/1", "n" * 300, 1_000, {"long": "ü" * 9_000})
        run.set_tags({"exact": "x" * 8_000, "over": "y" * 8_001})
        experiment.describe("z" * 9_000)
        stored = tracker.stored(run.run_id)
        assert stored.name == "n" * 249 + "…"
        assert stored.tags["long"] == "ü" * 7_999 + "…"
        assert stored.tags["exact"] == "x" * 8_000
        assert stored.tags["over"] == "y" * 7_999 + "…"
        assert tracker.description() == "z" * 7_999 + "…"

    def test_images_are_kept_by_key_and_step_and_a_table_is_replaced(
        self, experiment: ExperimentWriter, tracker: Tracker
    ) -> None:
        run = experiment.run("sweep/1", "first", 1_000)
        for key, step in (("log/probs", 1), ("log/probs", 2), ("other", 1)):
            run.log_image(key, step, 1_000 + step, PNG)
        run.log_table("a.json", ["n"], [[1]])
        run.log_table("a.json", ["n"], [[1], [2]])
        stored = tracker.stored(run.run_id)
        assert stored.images == {("log/probs", 1): PNG, ("log/probs", 2): PNG, ("other", 1): PNG}
        assert stored.tables == {"a.json": [["n"], [1], [2]]}
        assert stored.artifacts == {}

    def test_a_model_is_kept_once_under_its_key(
        self, experiment: ExperimentWriter, tracker: Tracker, tmp_path: Path
    ) -> None:
        run, file = experiment.run("sweep/1", "first", 1_000), tmp_path / "00003.best.pt"
        file.write_bytes(b"weights")
        facts = {"trial": '3 "fixed" Ä', "dev_wer": "0.2250"}
        model = ModelFile("sweep@1/best/3", "sweep-best", file, "tracking.testing", ["numpy"], 28, facts)
        first = experiment.log_model(run.run_id, 7, model)
        assert experiment.log_model(run.run_id, 7, model) == first
        other = experiment.log_model(run.run_id, 9, replace(model, key="sweep@1/best/4"))
        assert other != first
        assert tracker.models() == {first: facts, other: facts}

    def test_rename_and_describe(self, experiment: ExperimentWriter, tracker: Tracker) -> None:
        run = experiment.run("sweep/1", "first", 1_000)
        run.set_tags({}, "fixed")
        run.set_tags({"a": "b"}, "fixed (best)")
        experiment.describe("# so far")
        experiment.describe("# done")
        assert tracker.stored(run.run_id).name == "fixed (best)"
        assert tracker.stored(run.run_id).status == "SCHEDULED"
        assert tracker.description() == "# done"

    def test_a_run_is_opened_by_its_id(self, experiment: ExperimentWriter, tracker: Tracker) -> None:
        run = experiment.run("sweep/1", "first", 1_000)
        experiment.existing(run.run_id).set_tags({"from": "elsewhere"})
        assert tracker.stored(run.run_id).tags["from"] == "elsewhere"

    def test_an_experiment_says_what_it_is(self, experiment: ExperimentWriter) -> None:
        assert experiment.tracking
        assert experiment.experiment_id

    def test_a_run_that_is_settled_on_keeps_its_key(self, experiment: ExperimentWriter, tracker: Tracker) -> None:
        run, other = (experiment.run(key, "first", 1_000) for key in ("sweep/1", "sweep/10"))
        assert experiment.settle("sweep/1", run.run_id).run_id == run.run_id
        assert experiment.run("sweep/1", "first", 1_000).run_id == run.run_id
        assert sorted(tracker.runs()) == sorted([run.run_id, other.run_id])

    @pytest.mark.parametrize("key", ["sweep@1.5/1", "it's", "%27/手語", "a b\tc"])
    def test_runs_that_have_not_ended_are_known_by_their_keys(self, experiment: ExperimentWriter, key: str) -> None:
        waits, runs = experiment.run(key, "waits", 1_000), experiment.run("runs", "runs", 1_000)
        runs.set_status("RUNNING")
        for status in ENDED:
            experiment.run(f"over {status}", "over", 1_000).set_status(status, 5_000)
        assert experiment.unfinished() == {waits.run_id: key, runs.run_id: "runs"}
        runs.set_status("FINISHED", 5_000)
        assert experiment.unfinished() == {waits.run_id: key}

    def test_a_deleted_run_is_held_and_not_found(self, experiment: ExperimentWriter) -> None:
        run = experiment.run("sweep/1", "first", 1_000)
        assert experiment.holds(run.run_id)
        assert not experiment.holds("0" * 32)
        for _ in range(2):
            experiment.delete(run.run_id)
        experiment.delete("0" * 32)
        assert experiment.holds(run.run_id)
        assert experiment.unfinished() == {}
        assert experiment.run("sweep/1", "second", 1_000).run_id != run.run_id

    def test_an_artifact_comes_back(self, experiment: ExperimentWriter, tmp_path: Path) -> None:
        run = experiment.run("sweep/1", "first", 1_000)
        file, to = tmp_path / "a file ü.bin", tmp_path / "not yet" / "there"
        content = bytes(range(256)) * 5_000
        file.write_bytes(content)
        run.log_artifact(file, "some/folder")
        copy = experiment.download_artifact(run.run_id, f"some/folder/{file.name}", to)
        assert copy == to / file.name
        assert copy.read_bytes() == content
        file.write_bytes(b"newer")
        run.log_artifact(file, "some/folder")
        assert experiment.download_artifact(run.run_id, f"some/folder/{file.name}", to) == copy
        assert copy.read_bytes() == b"newer"
        assert [path.name for path in to.iterdir()] == [file.name], "nothing is left beside it"

    @pytest.mark.parametrize("path", ["other.bin", "some", "some/other.bin", "some/a.bin/b", "else/a.bin"])
    def test_an_artifact_that_is_not_there_is_none(
        self, experiment: ExperimentWriter, tmp_path: Path, path: str
    ) -> None:
        run = experiment.run("sweep/1", "first", 1_000)
        assert experiment.download_artifact(run.run_id, path, tmp_path / "to") is None
        (tmp_path / "a.bin").write_bytes(b"x")
        run.log_artifact(tmp_path / "a.bin", "some")
        assert experiment.download_artifact(run.run_id, path, tmp_path / "to") is None
        assert not list(tmp_path.glob("to/*"))

    @pytest.mark.parametrize("path", ["../a", "a/../../b", "/etc/passwd", "a//b", "", ".", "a\\..\\b", "C:/a", "a/."])
    def test_an_artifact_stays_in_its_folder(self, experiment: ExperimentWriter, tmp_path: Path, path: str) -> None:
        run = experiment.run("sweep/1", "first", 1_000)
        with pytest.raises(ValueError, match="must be relative"):
            experiment.download_artifact(run.run_id, path, tmp_path)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_what_is_not_finite_is_refused(self, experiment: ExperimentWriter, tracker: Tracker, value: float) -> None:
        run = experiment.run("sweep/1", "first", 1_000)
        with pytest.raises(ValueError, match=r"'dev/loss' is .* at step 4"):
            run.log_epochs([EpochPoint(4, 4_000, {"dev/wer": 0.5, "dev/loss": value})])
        assert tracker.stored(run.run_id).curves == {}
