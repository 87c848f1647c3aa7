"""PHOENIX 2014 SI5 in the folders it is released in: the shipped spec, and the train command people have for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model.__main__ import main
from model.corpus.stand_in import generate_like
from model.corpus.synthetic import GeneratedConfig
from model.encoder import make_model
from sweeps.spec import load_spec
from tests.corpora import SHARED

Tried = Callable[..., tuple[int, str, str]]
SI5 = SHARED / "phoenix2014-si5" / "annotations"
SPEC = Path(__file__).parents[2] / "examples" / "phoenix-si5.yaml"
WIDE = GeneratedConfig(width=6516)

needs_si5 = pytest.mark.skipif(not SI5.is_dir(), reason=f"needs the annotations in {SI5}")


def test_the_student_has_the_size_of_the_original() -> None:
    with torch.device("meta"):
        student = make_model(load_spec(SPEC).trainer, [99, 126, 1404, 4887], classes=973)
    assert sum(p.numel() for p in student.parameters()) == pytest.approx(14.4e6, rel=0.01)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds data/ with the first sentences of each split."""
    folder = tmp_path_factory.mktemp("project")
    generate_like(SI5, folder, WIDE, filter_name="phoenix-si5", layout="phoenix", limit=6)
    return folder


@needs_si5
def test_the_shipped_spec_passes_a_dry_run(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried: Tried
) -> None:
    monkeypatch.chdir(project)
    code, out, err = tried("run", SPEC, "--dry-run", "--json", "--home", tmp_path / "home")
    assert code == 0, err
    plan = json.loads(out.splitlines()[-1])
    assert plan["corpus"]["sentences"] == {"train": 6, "dev": 6}
    assert plan["corpus"]["modalities"] == {"pose": 99, "hands": 126, "face": 1404, "temporal": 4887}
    assert set(plan["first_trials"]) == {"original", "fixed"}


@needs_si5
def test_his_train_command_finds_the_annotations_by_itself(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    output = tmp_path / "checkpoints" / "student" / "mobilenet_v3_fixed"
    words = (
        "train --data_dir data/teacher_features/mediapipe_full --epochs 1 --batch_size 4 --learning_rate 0.0005 "
        "--dropout 0.1 --early_stopping_patience 30 --output_dir"
    )
    assert main([*words.split(), str(output)]) == 0, capsys.readouterr().err
    assert json.loads((output / "result.json").read_text(encoding="utf-8"))["epochs"] == 1


@needs_si5
@pytest.mark.slow
def test_all_of_dev_at_its_real_lengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried: Tried) -> None:
    project = tmp_path / "project"
    generate_like(SI5, project, WIDE, filter_name="phoenix-si5", layout="phoenix", limit=111)
    monkeypatch.chdir(project)
    code, out, err = tried("run", SPEC, "--dry-run", "--json", "--home", tmp_path / "home")
    assert code == 0, err
    corpus = json.loads(out.splitlines()[-1])["corpus"]
    assert corpus["sentences"] == {"train": 111, "dev": 111}
