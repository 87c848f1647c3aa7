"""The ONNX file computes what the checkpoint does, keeps the users' limits, and can be used without this package."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import model.export
from model.__main__ import main
from model.checkpoint import Checkpoint, write
from model.corpus.data import Corpus, CorpusConfig, load_corpus
from model.corpus.features import MODALITIES
from model.corpus.vocabulary import BLANK
from model.decode import greedy_decode
from model.encoder import make_model
from model.export import Export, export, landmark_parts, largest_difference, onnx_gates, open_session, to_onnx
from model.trained import trained_model
from model.types import TrainingConfig
from tests.corpora import SHARED, write_corpus, write_sequence
from tests.unit.test_decoding import keys_in_reference

ROOT = Path(__file__).parents[2]
SMALL = TrainingConfig(hidden=16, channels=16, lstm_layers=2, device="cpu")
FULL = TrainingConfig(hidden=448, channels=512, lstm_layers=2)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def checkpoint_with(config: TrainingConfig, modalities: dict[str, int], classes: int) -> Checkpoint:
    """Random weights and running statistics, not those of initialisation; normalised features."""
    torch.manual_seed(0)
    network = make_model(config, list(modalities.values()), classes)
    for name, buffer in network.named_buffers():
        buffer.copy_(torch.rand_like(buffer) + 0.5 if name.endswith("var") else torch.randn_like(buffer))
    width = sum(modalities.values())
    return Checkpoint(
        run="random",
        identity={},
        config=config,
        corpus_hash="0" * 64,
        glosses=(BLANK, *(f"GLOSS-{i}" for i in range(1, classes))),
        modalities=modalities,
        mean=torch.randn(width, dtype=torch.float64),
        scale=torch.rand(width, dtype=torch.float64) + 0.1,
        reports=(),
        trainer={"model": network.state_dict()},
    )


def of_corpus(corpus: Corpus, config: TrainingConfig) -> Checkpoint:
    """Random weights for a corpus."""
    normalisation = corpus.train.normalisation
    return replace(
        checkpoint_with(config, {m.name: m.width for m in corpus.modalities}, len(corpus.vocabulary)),
        corpus_hash=corpus.hash,
        glosses=corpus.vocabulary.glosses,
        mean=torch.from_numpy(normalisation.mean),
        scale=torch.from_numpy(normalisation.scale),
    )


def about(file: Path) -> dict[str, Any]:
    """The metadata of an exported file."""
    held = open_session(file.read_bytes()).get_modelmeta().custom_metadata_map
    return {key: json.loads(value) for key, value in held.items()}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["student", "bilstm"])
@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16])
def test_the_file_computes_what_the_checkpoint_does(architecture: str, stride: int, tmp_path: Path) -> None:
    config = SMALL.with_values({"architecture": architecture, "output_stride": stride})
    checkpoint, out = checkpoint_with(config, {"a": 5, "b": 3}, 11), tmp_path / "model.onnx"
    result = export(checkpoint, out)
    assert result.largest_difference <= 1e-4
    assert result.megabytes == out.stat().st_size / 1e6
    session, network = open_session(out.read_bytes()), trained_model(checkpoint)
    held = about(out)
    least = held["minimum_frames"]
    assert (held["stride"], held["glosses"]) == (stride, list(checkpoint.glosses))
    rng = np.random.default_rng(1)
    for lengths in ([least], [301], [301, least, 90, 77, 16, 17, 18, 19], [64] * 3):
        recordings = [rng.standard_normal((n, 8), dtype=np.float32) for n in lengths]
        assert largest_difference(session, network, recordings) <= 1e-4, lengths
    if stride < least:  # shorter than a batch may be: padded with zeros, as the page says
        features, short = torch.zeros(1, least, 8), torch.tensor([stride])
        features[0, :stride] = torch.randn(stride, 8)
        got, frames = model.export.run_session(session, features, short)
        expected, expected_frames = network(features[:, :stride], short)
        assert frames.tolist() == expected_frames.tolist() == [1]
        torch.testing.assert_close(got[:, :1], expected[:, :1], atol=1e-4, rtol=0)


@pytest.mark.slow
def test_the_student_at_its_full_size_is_within_the_limits(tmp_path: Path) -> None:
    checkpoint, out = checkpoint_with(FULL, dict(MODALITIES[6516]), 973), tmp_path / "student.onnx"
    result = export(checkpoint, out)
    assert result.faults == []
    assert result.parameters == 14_528_077
    assert 4 * result.parameters < 1e6 * result.megabytes < 4 * result.parameters + 1e6
    assert result.frames_per_second > 30
    assert result.largest_difference <= 1e-4
    data = out.read_bytes()
    assert not re.search(rb"\.py|stack_trace|pkg\.torch", data), "it names files of the machine that made it"
    assert [path.name for path in tmp_path.iterdir()] == ["student.onnx"], "weights and metadata are in one file"
    held = about(out)
    assert held["mean"] == checkpoint.mean.tolist()
    assert held["scale"] == checkpoint.scale.tolist()
    assert held["modalities"] == dict(MODALITIES[6516])
    assert len(held["parts"]) == 16


@pytest.mark.slow
@pytest.mark.parametrize("width", [225, 6516])
def test_the_example_of_the_page_gives_the_glosses_of_the_checkpoint(width: int, tmp_path: Path) -> None:
    """Run as it stands there, by itself, on landmarks in which a hand comes and goes."""
    corpus_folder = write_corpus(tmp_path / "corpus", frames=30, width=width)
    for file in (corpus_folder / "features").rglob("*.npz"):
        with np.load(file) as stored:
            x = stored["features"].copy()
        x[5:9, 99:162] = x[20:, 162:225] = 0
        write_sequence(file, x)
    corpus = load_corpus(CorpusConfig(path=corpus_folder))
    checkpoint = of_corpus(corpus, SMALL)
    checkpoint.trainer["model"]["head.weight"].mul_(50)  # else blank may be the best of every frame
    path = tmp_path / "last.pt"
    write(path, checkpoint)
    assert main(["export", str(path), str(tmp_path / "student.onnx"), "--data", str(corpus_folder)]) == 0
    page = (ROOT / "docs" / "how-to" / "export.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert "model" not in re.findall(r"^import (\w+)", example, re.MULTILINE)
    said = []
    for row, name in enumerate(corpus.dev.ids):
        recording = corpus_folder / "features" / "dev" / f"{name}.npz"
        (tmp_path / "recording.npz").write_bytes(recording.read_bytes())
        done = subprocess.run(
            [sys.executable, "-c", f"{example}\nnp.save('x.npy', x)"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        np.testing.assert_allclose(np.load(tmp_path / "x.npy"), corpus.dev.features(row), atol=1e-6)
        features = torch.tensor(corpus.dev.features(row))[None]
        with torch.no_grad():
            (labels,), _ = greedy_decode(*trained_model(checkpoint)(features, torch.tensor([30])))
        assert done.stdout.split() == corpus.vocabulary.decode(labels)
        said += labels
    assert said, "nothing was recognised, so nothing was compared"


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the recorded corpora are not beside the project")
def test_parity_on_real_recordings(tmp_path: Path) -> None:
    corpus = load_corpus(CorpusConfig(path=SHARED / "an4"))
    result = export(of_corpus(corpus, TrainingConfig()), tmp_path / "an4.onnx", corpus)
    assert (result.compared_on, result.sequences) == ("recordings of dev", 8)
    assert result.largest_difference <= 1e-4


@pytest.mark.slow
def test_the_command_reports_and_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tmp_path / "last.pt", tmp_path / "out.onnx"
    write(path, checkpoint_with(SMALL.with_values({"architecture": "bilstm"}), {"a": 5, "b": 3}, 11))
    assert main(["export", str(path), str(out), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert list(facts) == keys_in_reference("An export")
    assert facts["faults"] == []
    assert facts["compared_on"] == "random features"
    monkeypatch.setattr("model.export.LARGEST_MEGABYTES", 0.001)
    assert main(["export", str(path), str(out)]) == 1
    text = capsys.readouterr().out
    assert "Too much for a device: 0.0 MB is more than 0.001 MB." in text
    assert "10,091 parameters" in text
    before = out.read_bytes()
    monkeypatch.setattr("model.export.onnx_gates", lambda weights: weights)  # an error that runs
    assert main(["export", str(path), str(out)]) == 2
    assert "was not written: its log-probabilities lie up to" in capsys.readouterr().err
    assert out.read_bytes() == before


@pytest.mark.slow
def test_other_weights_are_told_apart() -> None:
    """What the parity is measured with sees a difference, and a NaN."""
    checkpoint = checkpoint_with(SMALL.with_values({"architecture": "bilstm"}), {"a": 5, "b": 3}, 11)
    network = trained_model(checkpoint)
    session = open_session(to_onnx(network, 8, {}))
    recordings = [np.random.default_rng(0).standard_normal((n, 8), dtype=np.float32) for n in (9, 40)]
    assert largest_difference(session, network, recordings) <= 1e-4
    nn.init.normal_(network.head.bias)
    assert largest_difference(session, network, recordings) > 1e-2
    nn.init.constant_(network.head.bias, float("nan"))
    assert np.isnan(largest_difference(session, network, recordings))


def test_gates_are_in_the_order_of_onnx() -> None:
    assert onnx_gates(torch.tensor([1, 1, 2, 2, 3, 3, 4, 4])).tolist() == [1, 1, 4, 4, 2, 2, 3, 3]


def test_limits_are_named_where_they_are_not_kept() -> None:
    good = Export(58.4, 14_528_077, 5_000.0, 27.4, 1e-6, 5, "random features")
    assert good.faults == []
    assert replace(good, megabytes=100.1).faults == ["100.1 MB is more than 100 MB."]
    assert replace(good, frames_per_second=29.9).faults == ["29.9 frames a second is less than 30."]


def test_what_can_be_missing_is_known_of_landmarks_alone(tmp_path: Path) -> None:
    plain, columns = landmark_parts(checkpoint_with(SMALL, {"a": 5, "b": 3}, 4), None)
    assert (plain, columns) == ([], None)
    hands = checkpoint_with(SMALL, dict(MODALITIES[225]), 4)
    parts, _ = landmark_parts(hands, None)
    assert [(p["name"], p["columns"], p["made_of"], p["frames"]) for p in parts] == [
        ("pose", [0, 99], [0, 99], 1),
        ("left hand", [99, 162], [99, 162], 1),
        ("right hand", [162, 225], [162, 225], 1),
    ]
    full, _ = landmark_parts(checkpoint_with(SMALL, dict(MODALITIES[6516]), 4), None)
    velocity = next(p for p in full if p["name"] == "velocity left hand")
    assert (velocity["made_of"], velocity["frames"], velocity["columns"]) == ([99, 162], 2, [1629 + 99, 1629 + 162])
    as_stored = replace(hands, mean=torch.zeros(225), scale=torch.ones(225))
    assert landmark_parts(as_stored, None) == ([], None)


def test_dimensions_that_a_pack_has_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_corpus(tmp_path / "corpus", frames=20, width=225)
    for file in (folder / "features").rglob("*.npz"):
        with np.load(file) as stored:
            x = stored["features"].copy()
        x[:, [3, 100]] = 1.0
        write_sequence(file, x)
    assert main(["pack", str(folder), str(tmp_path / "packed"), "--drop_constant"]) == 0
    capsys.readouterr()
    corpus = load_corpus(CorpusConfig(path=tmp_path / "packed"))
    assert corpus.width == 223
    checkpoint = of_corpus(corpus, SMALL)
    with pytest.raises(ValueError, match="name it with --data"):
        landmark_parts(checkpoint, None)
    parts, columns = landmark_parts(checkpoint, corpus)
    assert columns == [i for i in range(225) if i not in (3, 100)]
    assert [(p["columns"], p["made_of"]) for p in parts] == [
        ([0, 98], [0, 99]),
        ([98, 160], [99, 162]),
        ([160, 223], [162, 225]),
    ]


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.export.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=re.escape("needs the package onnx; pip install 'ctc-sweeps[export]'")):
        export(checkpoint_with(SMALL, {"a": 5}, 4), tmp_path / "out.onnx")


def test_another_ending_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path), str(tmp_path / "student.pt2")]) == 2
    assert "give it the ending .onnx" in capsys.readouterr().err
