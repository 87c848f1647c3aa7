from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

import model.ctc
from model.checkpoint import load_checkpoint, save_checkpoint
from model.corpus.annotations import CorpusError
from model.corpus.data import Batch, Corpus, CorpusConfig, Split, epoch_order, load_corpus, make_batch
from model.ctc import CTCTrainer, ctc_loss_sum, pick_device
from model.diagnosis import is_diverged
from model.evaluate import dev_metrics
from model.floors import floors
from model.jagged import BatchNorm, Windows
from model.types import METRICS, NOT_EVERY_EPOCH, EpochReport, Stopped, Trainer, TrainingConfig, Value
from tests.corpora import write_corpus, write_csv, write_sequence

TINY = TrainingConfig(
    batch_size=4, eval_batch_size=4, hidden=16, channels=16, learning_rate=3e-3, device="cpu", dropout=0.3
)
ACTIVE: dict[str, dict[str, Value]] = {
    "cosine_restarts": {"restart_epochs": 2, "warmup_start_factor": 0.1, "warmup_epochs": 1.5},
    "plateau": {"plateau_patience": 0},
    "step": {"step_epochs": 1, "warmup_start_factor": 0.5, "warmup_epochs": 1},
    "constant": {"accumulate": 2, "length_buckets": 3},
}
"""Settings with which each schedule acts within four epochs, and length buckets as well."""

GLOSSES = "ABCD"


def write_learnable(folder: Path, train: int = 24, dev: int = 12) -> Path:
    """Sentences of one to three glosses of ragged lengths; a gloss is a direction held for a while, then comes rest."""
    rng = np.random.default_rng(0)
    directions = rng.normal(0, 1, (len(GLOSSES), 6))
    for split, size in (("train", train), ("dev", dev)):
        rows = []
        for i in range(size):
            glosses = rng.integers(0, len(GLOSSES), rng.integers(1, 4))
            parts = []
            for gloss in glosses:
                parts += [np.zeros((rng.integers(3, 9), 6)), np.tile(directions[gloss], (int(rng.integers(8, 15)), 1))]
            x = np.concatenate(parts)
            write_sequence(
                folder / "features" / split / f"{split}-{i}.npz",
                (x + rng.normal(0, 0.2, x.shape)).astype(np.float32),
            )
            rows.append((f"{split}-{i}", "-", "Signer0", " ".join(GLOSSES[g] for g in glosses)))
        write_csv(folder / "annotations" / f"{split}.corpus.csv", rows)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_learnable(tmp_path_factory.mktemp("learnable"))


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Corpus:
    return load_corpus(CorpusConfig(path=folder))


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def never() -> bool:
    return False


def stop_at(call: int) -> Callable[[], bool]:
    """Says stop when it is asked for the `call`-th time."""
    asked = iter(range(1, 10_000))
    return lambda: next(asked) >= call


def measured(report: EpochReport) -> dict[str, Any]:
    """All that a run of the same config must repeat bit for bit: all but the time it took."""
    return {**vars(report), "seconds": None}


def epochs(trainer: CTCTrainer, n: int) -> list[dict[str, Any]]:
    return [measured(trainer.train_epoch(never)) for _ in range(n)]


def evaluated(trainer: CTCTrainer, split: Split) -> dict[str, float]:
    return dev_metrics(trainer.evaluate(split), split.references, trainer.corpus.vocabulary)


def losses_in_this_process(folder: Path, config: TrainingConfig) -> list[dict[str, Any]]:
    return epochs(CTCTrainer(config, load_corpus(CorpusConfig(path=folder))), 2)


# The same run again


def test_it_is_a_trainer(corpus: Corpus) -> None:
    assert isinstance(CTCTrainer(TINY, corpus), Trainer)


@pytest.mark.parametrize("schedule", ACTIVE)
def test_going_on_from_a_file_equals_never_stopping(tmp_path: Path, corpus: Corpus, schedule: str) -> None:
    config = TINY.with_values({"schedule": schedule, **ACTIVE[schedule]})
    whole = CTCTrainer(config, corpus)
    expected = epochs(whole, 4)
    first = CTCTrainer(config, corpus)
    assert epochs(first, 2) == expected[:2]
    save_checkpoint(tmp_path / "last.pt", first.state_dict())
    with pytest.raises(Stopped):  # what is dropped in the middle of an epoch leaves no trace
        first.train_epoch(stop_at(3))
    second = CTCTrainer(config, corpus)
    second.load_state_dict(load_checkpoint(tmp_path / "last.pt"))
    assert second.epoch == 2
    assert epochs(second, 2) == expected[2:]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value), name
    rates = {report["metrics"]["optim/lr"] for report in expected}
    assert len(rates) == (4 if schedule in ("cosine_restarts", "step") else 1)


def test_a_plateau_cuts_the_rate_after_going_on(corpus: Corpus) -> None:
    config = TINY.with_values({"schedule": "plateau", "plateau_patience": 1})
    trainer, again = CTCTrainer(config, corpus), CTCTrainer(config, corpus)
    trainer.train_epoch(never)
    trainer.dev_losses = [1.0, 2.0, 2.0]  # two worse epochs: more than patience
    again.load_state_dict(trainer.state_dict())
    assert again.train_epoch(never).metrics["optim/lr"] == TINY.learning_rate / 2


def test_two_trainers_of_one_state_do_not_disturb_each_other(corpus: Corpus) -> None:
    first, second = CTCTrainer(TINY, corpus), CTCTrainer(TINY, corpus)
    first.train_epoch(never)
    second.load_state_dict(first.state_dict())
    assert epochs(second, 2) == epochs(first, 2)


def test_the_same_seed_gives_the_same_losses_in_a_fresh_process(folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        theirs = pool.submit(losses_in_this_process, folder, TINY)
        ours = losses_in_this_process(folder, TINY)
        assert theirs.result(timeout=120) == ours
    other = losses_in_this_process(folder, TINY.with_values({"seed": 1}))
    assert [r["metrics"]["train/loss"] for r in other] != [r["metrics"]["train/loss"] for r in ours]


def batches_seen(monkeypatch: pytest.MonkeyPatch, corpus: Corpus, config: TrainingConfig, n: int) -> list[list[int]]:
    """Which training sequences each batch of n epochs held."""
    seen: list[list[int]] = []

    def watched(split: Split, indices: Any) -> Batch:
        if split is corpus.train:
            seen.append([int(i) for i in indices])
        return make_batch(split, indices)

    monkeypatch.setattr(model.ctc, "make_batch", watched)
    epochs(CTCTrainer(config, corpus), n)
    return seen


def test_all_trials_of_a_data_seed_see_the_same_batches(monkeypatch: pytest.MonkeyPatch, corpus: Corpus) -> None:
    first = batches_seen(monkeypatch, corpus, TINY, 2)
    trial = TINY.with_values({"seed": 9, "learning_rate": 1e-4, "dropout": 0.0, "schedule": "step", "accumulate": 3})
    assert batches_seen(monkeypatch, corpus, trial, 2) == first
    assert batches_seen(monkeypatch, corpus, TINY.with_values({"data_seed": 1}), 2) != first
    assert first[:6] != first[6:]  # another order every epoch
    for epoch in (first[:6], first[6:]):
        assert sorted(i for batch in epoch for i in batch) == list(range(24))


def test_the_last_batch_may_be_smaller(monkeypatch: pytest.MonkeyPatch, corpus: Corpus) -> None:
    for size, sizes in ((7, [7, 7, 7, 3]), (24, [24]), (100, [24])):
        seen = batches_seen(monkeypatch, corpus, TINY.with_values({"batch_size": size}), 1)
        assert [len(batch) for batch in seen] == sizes


def test_length_buckets_are_the_same_for_all_trials_too_and_save_padding(
    monkeypatch: pytest.MonkeyPatch, corpus: Corpus
) -> None:
    config = TINY.with_values({"length_buckets": 3})
    first, without = batches_seen(monkeypatch, corpus, config, 2), batches_seen(monkeypatch, corpus, TINY, 2)
    trial = config.with_values({"seed": 9, "learning_rate": 1e-4, "schedule": "step", "accumulate": 3})
    assert batches_seen(monkeypatch, corpus, trial, 2) == first
    for epoch in (first[:6], first[6:]):
        assert sorted(i for batch in epoch for i in batch) == list(range(24))
    frames = [sum(corpus.train.lengths[batch].max() for batch in batches) for batches in (first, without)]
    assert frames[0] < 0.9 * frames[1]
    assert CTCTrainer(config, corpus).measure_epoch_seconds() > 0


def test_length_buckets_of_one_batch_are_none(corpus: Corpus) -> None:
    one, none = (CTCTrainer(TINY.with_values({"length_buckets": n}), corpus) for n in (1, 0))
    assert epochs(one, 2) == epochs(none, 2)


# Steps


def one_update(corpus: Corpus, **values: Any) -> tuple[CTCTrainer, EpochReport]:
    """One epoch of a single update, its gradient unclipped."""
    trainer = CTCTrainer(TINY.with_values({"dropout": 0.0, "clip_norm": 1e9, **values}), corpus)
    return trainer, trainer.train_epoch(never)


def test_accumulated_gradients_are_those_of_one_large_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Batches have statistics of their own, which sums of gradients cannot undo: they stand still here.
    monkeypatch.setattr(BatchNorm, "train", lambda self, mode: torch.nn.Module.train(self, False))
    sentences = {"train": ["A", "B C A B", "C A", "B A C"], "dev": ["A B"]}
    corpus = load_corpus(CorpusConfig(path=write_corpus(tmp_path, sentences)))
    large, one = one_update(corpus, batch_size=4)
    small, two = one_update(corpus, batch_size=2, accumulate=2)
    assert (one.step, two.step) == (1, 1)
    assert (one.steps_in_epoch, two.steps_in_epoch) == (1, 2)
    assert two.metrics["train/loss"] == pytest.approx(one.metrics["train/loss"], rel=1e-5)
    assert two.metrics["optim/grad_norm"] == pytest.approx(one.metrics["optim/grad_norm"], rel=1e-4)
    for a, b in zip(large.model.parameters(), small.model.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        torch.testing.assert_close(b.grad, a.grad, atol=1e-5, rtol=1e-4)


def test_the_losses_are_nats_per_gloss(corpus: Corpus) -> None:
    trainer = CTCTrainer(TINY.with_values({"batch_size": 24, "dropout": 0.0}), corpus)
    before = CTCTrainer(TINY.with_values({"dropout": 0.0}), corpus).model.train()
    report = trainer.train_epoch(never)  # one step: the loss is that of the initial weights
    batch = make_batch(corpus.train, range(24))
    with torch.no_grad():
        log_probs, lengths = before(torch.from_numpy(batch.features), torch.from_numpy(batch.lengths))
    one_by_one = [
        ctc_loss_sum(row[None, :frames], frames[None], torch.from_numpy(target), torch.tensor([len(target)]))
        for row, frames, target in zip(log_probs, lengths, corpus.train.targets, strict=True)
    ]
    expected = sum(map(float, one_by_one)) / sum(map(len, corpus.train.targets))
    assert report.metrics["train/loss"] == pytest.approx(expected, rel=1e-4)


def test_the_rate_of_the_schedule_is_the_rate_of_the_optimizer(corpus: Corpus) -> None:
    config = TINY.with_values({"schedule": "constant", "warmup_start_factor": 0.5, "warmup_epochs": 1})
    trainer = CTCTrainer(config, corpus)
    report = trainer.train_epoch(never)
    rates = [TINY.learning_rate * (0.5 + 0.5 * step / 6) for step in range(6)]
    assert report.lr_time == pytest.approx(sum(rates))
    assert report.metrics["optim/lr"] == pytest.approx(rates[-1])
    assert trainer.optimizer.param_groups[0]["lr"] == report.metrics["optim/lr"]


def not_finite(monkeypatch: pytest.MonkeyPatch, trainer: CTCTrainer, at: set[int], kind: str) -> None:
    """Make the training batches numbered so (from 0) give a loss or a gradient that is not finite."""
    loss_of, count = trainer._loss, iter(range(10_000))

    def poisoned(batch: Batch) -> Tensor:
        loss = loss_of(batch)
        if next(count) not in at:
            return loss
        if kind == "gradient":
            loss.register_hook(lambda gradient: gradient * float("inf"))  # type: ignore[no-untyped-call]
            return loss
        return loss * float(kind)

    monkeypatch.setattr(trainer, "_loss", poisoned)


@pytest.mark.parametrize("kind", ["nan", "inf", "gradient"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_that_is_not_finite_is_skipped_and_counted(
    monkeypatch: pytest.MonkeyPatch, corpus: Corpus, kind: str, accumulate: int
) -> None:
    trainer = CTCTrainer(TINY.with_values({"accumulate": accumulate}), corpus)
    not_finite(monkeypatch, trainer, {2}, kind)
    report = trainer.train_epoch(never)
    assert (report.steps_in_epoch, report.skipped_steps) == (6, accumulate)
    assert is_diverged(report.steps_in_epoch, report.skipped_steps)
    assert METRICS.keys() - report.finite().keys() <= NOT_EVERY_EPOCH
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())
    taken = trainer.optimizer.state[next(trainer.model.parameters())]["step"]
    assert taken == report.step - 1


def test_a_batch_that_overflows_leaves_no_trace(monkeypatch: pytest.MonkeyPatch, corpus: Corpus) -> None:
    """Not in the weights, and not in the batch statistics either, which have no gradient to be skipped."""
    trainer, real, calls = CTCTrainer(TINY, corpus), model.ctc.make_batch, iter(range(1000))

    def overflowing(split: Split, indices: Any) -> Batch:
        batch = real(split, indices)
        if next(calls) == 1:
            batch.features[0, 0, 0] = np.inf
        return batch

    monkeypatch.setattr(model.ctc, "make_batch", overflowing)
    report = trainer.train_epoch(never)
    assert report.skipped_steps == 1
    assert all(tensor.isfinite().all() for tensor in trainer.model.state_dict().values())
    assert set(METRICS) - set(report.finite()) <= NOT_EVERY_EPOCH


def test_outputs_that_are_not_finite_have_no_wer(corpus: Corpus) -> None:
    """All of them decode to blank, which would read like a plateau."""
    trainer = CTCTrainer(TINY, corpus)
    with torch.no_grad():
        trainer.model.head.bias.fill_(math.nan)
    metrics = evaluated(trainer, corpus.dev)
    assert all(math.isnan(metrics[key]) for key in ("dev/wer", "dev/sub", "dev/del", "dev/ins", "dev/loss"))


def test_an_epoch_without_a_finite_step_changes_no_weight(monkeypatch: pytest.MonkeyPatch, corpus: Corpus) -> None:
    trainer, fresh = CTCTrainer(TINY, corpus), CTCTrainer(TINY, corpus)
    not_finite(monkeypatch, trainer, set(range(6)), "nan")
    report = trainer.train_epoch(never)
    assert report.skipped_steps == report.steps_in_epoch == 6
    assert report.lr_time == 0
    assert math.isnan(report.metrics["train/loss"])
    assert math.isnan(report.metrics["optim/grad_norm"])
    for a, b in zip(trainer.model.parameters(), fresh.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_should_stop_is_read_before_every_batch(corpus: Corpus) -> None:
    """Those of training, of dev and of the probes; the epoch that is dropped leaves nothing in the history."""
    whole = CTCTrainer(TINY, corpus)
    whole.train_epoch(never)
    assert whole.step >= 6 + 3 + 3 + 2  # training, dev, swapped, and half as many permuted sequences
    for call in range(1, whole.step + 1):
        trainer = CTCTrainer(TINY, corpus)
        with pytest.raises(Stopped):
            trainer.train_epoch(stop_at(call))
        assert (trainer.epoch, trainer.step, trainer.dev_losses, trainer.dev_wers) == (0, call - 1, [], [])
    trainer = CTCTrainer(TINY, corpus)
    trainer.train_epoch(stop_at(whole.step + 1))
    assert (trainer.epoch, trainer.step) == (1, whole.step)


# Sequences without an alignment


def test_sequences_without_an_alignment_keep_their_place_and_are_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """At every stride the same order is drawn; what does not fit is taken out of its batch and counted."""
    sentences = {"train": [*["A B C"] * 199, "A B C A B C"], "dev": ["A B"]}
    corpus = load_corpus(CorpusConfig(path=write_corpus(tmp_path, sentences, frames=20)))
    config = TINY.with_values({"batch_size": 5, "probe_interval": 0})
    all_fit = batches_seen(monkeypatch, corpus, config.with_values({"output_stride": 2}), 1)
    monkeypatch.undo()
    one_out = batches_seen(monkeypatch, corpus, config, 1)
    assert [[i for i in batch if i != 199] for batch in all_fit] == one_out
    assert CTCTrainer(config, corpus).train_epoch(never).metrics["train/infeasible"] == 1


def test_a_stride_at_which_no_target_fits_is_refused(tmp_path: Path) -> None:
    corpus = load_corpus(CorpusConfig(path=write_corpus(tmp_path, frames=12)))
    with pytest.raises(CorpusError, match=r"no sentence of train has an alignment at output stride 16; lower it"):
        CTCTrainer(TINY.with_values({"output_stride": 16}), corpus)


# Probes


def test_probes_come_in_every_epoch_of_the_plateau_and_in_some_after_takeoff(
    monkeypatch: pytest.MonkeyPatch, corpus: Corpus
) -> None:
    monkeypatch.setattr(model.ctc, "takeoff_epoch", lambda wers, floor: 3 if len(wers) >= 3 else None)
    trainer = CTCTrainer(TINY.with_values({"probe_interval": 3}), corpus)
    reports = [trainer.train_epoch(never) for _ in range(7)]
    assert ["probe/swap_gap" in r.metrics for r in reports] == [True, True, True, False, False, True, False]
    assert ["train/wer" in r.metrics for r in reports] == [False, False, True, False, False, True, False]


def test_probes_can_be_switched_off_and_change_nothing(corpus: Corpus) -> None:
    with_probes, without = CTCTrainer(TINY, corpus), CTCTrainer(TINY.with_values({"probe_interval": 0}), corpus)
    for _ in range(3):
        one, two = with_probes.train_epoch(never), without.train_epoch(never)
        assert not two.metrics.keys() & NOT_EVERY_EPOCH
        assert {k: v for k, v in one.metrics.items() if k not in NOT_EVERY_EPOCH} == two.metrics


def test_a_small_step_is_seen_in_the_step_ratio(corpus: Corpus) -> None:
    ratios = [
        CTCTrainer(TINY.with_values({"adam_eps": eps}), corpus).train_epoch(never).metrics["optim/step_ratio"]
        for eps in (1e-8, 1e-1)
    ]
    assert 0.1 < ratios[0] < 1.5
    assert ratios[1] < ratios[0] / 5


def test_the_share_of_clipped_updates(corpus: Corpus) -> None:
    for norm, share in ((1e-6, 1.0), (1e9, 0.0)):
        report = CTCTrainer(TINY.with_values({"clip_norm": norm}), corpus).train_epoch(never)
        assert report.metrics["optim/clipped"] == share


def test_the_module_that_was_not_finite_first_is_named(monkeypatch: pytest.MonkeyPatch, corpus: Corpus) -> None:
    trainer = CTCTrainer(TINY, corpus)
    plain, calls = trainer.model.encoders[0].stem.forward, iter(range(1000))
    seen: list[int] = []

    def overflowing(x: Tensor, windows: Windows) -> Tensor:
        seen.append(next(calls))
        return plain(x, windows) * (
            float("inf") if len(seen) in (3, 4) else 1.0
        )  # in the batch, and when it is looked into

    monkeypatch.setattr(trainer.model.encoders[0].stem, "forward", overflowing)
    report = trainer.train_epoch(never)
    assert report.skipped_steps == report.metrics["optim/skipped"] == 1
    assert report.not_finite.startswith("epoch 1, update 3: not finite first in encoders.0.stem (batch train-")


def test_of_accumulated_batches_the_one_that_was_not_finite_is_named(
    monkeypatch: pytest.MonkeyPatch, corpus: Corpus
) -> None:
    trainer = CTCTrainer(TINY.with_values({"accumulate": 3}), corpus)
    not_finite(monkeypatch, trainer, {1}, "nan")
    order = epoch_order(len(corpus.train), TINY.data_seed, 1)
    ids = ", ".join(corpus.train.ids[i] for i in order[TINY.batch_size : 2 * TINY.batch_size])
    assert f"(batch {ids})" in trainer.train_epoch(never).not_finite


def test_the_head_can_begin_at_the_best_constant_posterior(corpus: Corpus) -> None:
    floor = floors(corpus, 4)
    metrics = [
        evaluated(CTCTrainer(TINY.with_values({"output_bias": bias}), corpus), corpus.dev)
        for bias in ("random", "floor")
    ]
    assert metrics[0]["dev/loss"] > 1.5 * floor.dev_constant_loss
    assert metrics[1]["dev/loss"] == pytest.approx(floor.dev_constant_loss, rel=0.1)


def test_half_precision(corpus: Corpus) -> None:
    """bf16 learns what float32 does, nearly; the log-probabilities stay in float32. fp16 is refused with its reason."""
    one, two = (CTCTrainer(TINY.with_values({"precision": p, "dropout": 0.0}), corpus) for p in ("float32", "bf16"))
    losses = [[t.train_epoch(never).metrics["dev/loss"] for _ in range(2)] for t in (one, two)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    log_probs, _ = two.forward(make_batch(corpus.dev, [0, 1]))
    assert log_probs.dtype == torch.float32
    with pytest.raises(ValidationError, match="fp16"):
        TINY.with_values({"precision": "fp16"})


# Evaluation


def test_every_metric_is_reported_and_no_other(corpus: Corpus) -> None:
    report = CTCTrainer(TINY, corpus).train_epoch(never)
    # A paired t needs a hundred sequences.
    assert {"probe/swap_t", "probe/permuted_t"} <= METRICS.keys() - report.metrics.keys() <= NOT_EVERY_EPOCH
    assert report.metrics.keys() <= METRICS.keys()
    m = report.finite()
    assert m.keys() == report.metrics.keys()
    assert m["dev/sub"] + m["dev/del"] + m["dev/ins"] == pytest.approx(m["dev/wer"])
    assert m["spread/range"] == m["spread/max"] - m["spread/min"] > 0
    assert m["spread/max"] <= 0
    assert 0 <= m["decode/blank"] <= 1
    assert report.seconds > 0


def test_the_dev_numbers_do_not_depend_on_the_batch(corpus: Corpus) -> None:
    trainer = CTCTrainer(TINY, corpus)
    epochs(trainer, 3)
    trainer.config = TINY.with_values({"eval_batch_size": 12})
    expected = evaluated(trainer, corpus.dev)
    for size in (1, 5, 100):
        trainer.config = TINY.with_values({"eval_batch_size": size})
        assert evaluated(trainer, corpus.dev) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_evaluation_changes_nothing(corpus: Corpus) -> None:
    trainer, undisturbed = CTCTrainer(TINY, corpus), CTCTrainer(TINY, corpus)
    trainer.evaluate(corpus.dev)
    assert epochs(trainer, 2) == epochs(undisturbed, 2)


@pytest.mark.parametrize("size", [1, 32])
def test_what_no_alignment_fits_counts_for_wer_and_not_for_the_loss(tmp_path: Path, size: int) -> None:
    train = ["A B", "B C", "C A B", "A"]
    short = ["A B", "C"]
    long = [*short, "A A A A A A", "UNKNOWN"]  # 10 output frames: needs 11; and no known gloss at all
    losses, errors = [], []
    for name, dev in (("short", short), ("long", long)):
        corpus = load_corpus(CorpusConfig(path=write_corpus(tmp_path / name, {"train": train, "dev": dev})))
        assert corpus.dev.fits(4).tolist() == [True, True, False, False][: len(dev)]
        trainer = CTCTrainer(TINY.with_values({"eval_batch_size": size}), corpus)
        losses.append(evaluated(trainer, corpus.dev)["dev/loss"])
        with torch.no_grad():
            trainer.model.head.bias[1] += 1e3  # answers "A" to everything
        errors.append(evaluated(trainer, corpus.dev)["dev/wer"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert errors == pytest.approx([2 / 3, (2 + 5 + 1) / 10])


def test_a_tiny_corpus_is_learned(corpus: Corpus) -> None:
    config = TINY.with_values({"learning_rate": 1e-2, "dropout": 0.0})
    trainer = CTCTrainer(config, corpus)
    reports = [trainer.train_epoch(never) for _ in range(8)]
    assert reports[0].wer > 0.9
    assert min(report.wer for report in reports) < 0.2
    assert reports[-1].metrics["train/loss"] < 0.2 * reports[0].metrics["train/loss"]


def test_ctc_loss_is_the_sum_over_all_alignments() -> None:
    log_probs = torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    p = log_probs[0].exp()
    paths = [(1, 2, 2), (1, 1, 2), (0, 1, 2), (1, 0, 2), (1, 2, 0)]  # all that read "1 2"
    expected = -math.log(sum(float(p[0, a] * p[1, b] * p[2, c]) for a, b, c in paths))
    loss = ctc_loss_sum(log_probs, torch.tensor([3]), torch.tensor([1, 2]), torch.tensor([2]))
    assert float(loss) == pytest.approx(expected, rel=1e-5)


# Devices


def test_cuda_without_cuda_is_refused(monkeypatch: pytest.MonkeyPatch, corpus: Corpus) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^device: cuda, but .* use device: auto or cpu$"):
        CTCTrainer(TINY.with_values({"device": "cuda"}), corpus)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")


def test_auto_takes_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda")
    assert pick_device("cpu") == torch.device("cpu")
