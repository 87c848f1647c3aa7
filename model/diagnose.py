"""What these weights do on this corpus, and why: a checkpoint loaded, asked and judged.

A diagnosis is of one file's weights. It says which, and holds what they do now against what their run logged: log-probs
of an untrained network beside the loss of a trained one are a contradiction that arithmetic finds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from math import isfinite, log, nan
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from model import weights
from model.checkpoint import Checkpoint, read
from model.corpus.data import Corpus, Split
from model.corpus.features import Modality, Normalisation
from model.corpus.vocabulary import Vocabulary
from model.ctc import pick_device
from model.diagnosis import judge
from model.early_stopping import why_ended
from model.encoder import make_model
from model.evaluate import Evaluation, dev_metrics, evaluate, forward_of, sequence_losses
from model.findings import Finding, worst_first
from model.floors import split_floors
from model.probes import Gap, permuted_gap, swap_gap
from model.symptoms import OF_TRAINING
from model.types import BUILT_IN, EpochReport

EXAMPLES = 6
"""Sentences shown, evenly spread over the split."""


@dataclass(frozen=True)
class Diagnosis:
    """What is known of some weights."""

    answer: str
    """One paragraph: which weights, what they do, what that means, what would change it."""
    findings: tuple[Finding, ...]
    """Worst first."""
    facts: dict[str, Any]
    """The numbers behind it, as JSON types, but for floats that are not finite."""
    epochs: tuple[EpochReport, ...]
    """Of the run, where it is judged: the last one with what was measured now."""


def find_checkpoint(path: Path) -> tuple[Path, str]:
    """The file to diagnose, and why this one.

    Of a folder it is `last.pt`, the weights that the run's last epoch reports; a folder without it must hold one
    checkpoint only.

    Raises:
        ValueError: there is none, or several could be meant.
    """
    if path.is_file():
        return path, "the file that was named"
    if not path.is_dir():
        raise ValueError(f"{path}: there is no such file or folder; name a checkpoint, or the folder of a run")
    last, best = path / "last.pt", path / "best.pt"
    if last.is_file():
        beside = f"; name {best} for those of its best epoch" if best.is_file() else ""
        return last, f"the weights that the run's last epoch reports{beside}"
    found = sorted(path.glob("*.pt"))
    if not found:
        raise ValueError(f"{path}: holds no checkpoint (*.pt); name the file, or the folder of a run (--output_dir)")
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:5]) + (" ..." if len(found) > 5 else "")
        raise ValueError(f"{path}: holds {len(found)} checkpoints ({names}) and no last.pt; name the one that is meant")
    return found[0], "the only checkpoint in that folder"


def read_for_diagnosis(path: Path) -> Checkpoint:
    """
    Raises:
        OSError: it cannot be read.
        ValueError: not a whole checkpoint of this trainer.
    """
    try:
        return read(path)
    except ValueError as error:
        raise ValueError(
            f"{error}: so neither its model nor the classes and the normalisation it was trained with are known; name "
            "a whole checkpoint of this trainer, as weights of another script (a plain state_dict) cannot be diagnosed"
        ) from error


def fitting(corpus: Corpus, checkpoint: Checkpoint) -> tuple[Corpus, Finding | None]:
    """The corpus with the features normalised as in training; a finding where it is not the corpus of the training.

    Raises:
        ValueError: its classes or its features are not those that the checkpoint knows.
    """
    width, glosses = sum(checkpoint.modalities.values()), corpus.vocabulary.glosses
    if corpus.width != width:
        raise ValueError(
            f"{corpus.folder}: is another corpus than these weights were trained on: its features have {corpus.width} "
            f"dimensions, theirs {width}; name the corpus of the training"
        )
    if glosses != checkpoint.glosses:
        raise ValueError(
            f"{corpus.folder}: has other classes than these weights were trained on, "
            f"{_difference(glosses, checkpoint.glosses)}; name the corpus of the training, or, where it is that one, "
            "its vocabulary (--vocabulary, such as vocabulary.txt in the run's folder) and --filter"
        )
    corpus = replace(corpus, modalities=tuple(Modality(name, width) for name, width in checkpoint.modalities.items()))
    known = corpus.train.normalisation
    mean, scale = checkpoint.mean.numpy(), checkpoint.scale.numpy()
    same = np.array_equal(known.mean, mean) and np.array_equal(known.scale, scale)
    if not same:
        stored = not mean.any() and (scale == 1).all()
        if not stored and not known.parts:  # then it is not known what is missing in which frames
            raise ValueError(
                f"{corpus.folder}: is read as stored, and these weights were trained on normalised features; leave out "
                "--no_normalise"
            )
        normalisation = Normalisation.none(corpus.width) if stored else replace(known, mean=mean, scale=scale)

        def renormalised(split: Split) -> Split:
            return replace(split, normalisation=normalisation, resident=None if split.resident is None else {})

        test = corpus.test and renormalised(corpus.test)
        corpus = replace(corpus, train=renormalised(corpus.train), dev=renormalised(corpus.dev), test=test)
    if corpus.hash == checkpoint.corpus_hash:
        return corpus, None
    return corpus, Finding(
        "other_corpus",
        "warning",
        None,
        None,
        f"This corpus ({corpus.hash[:12]}) is not the one of the training ({checkpoint.corpus_hash[:12]})"
        + ("." if same else "; its features are normalised as in training, not with its own statistics."),
        "Name the corpus of the training to have the run itself judged; what stands here is about this one.",
        "The same hash: that of features and annotations.",
    )


def _difference(here: Sequence[str], there: Sequence[str]) -> str:
    """How two lists of classes differ, in words."""
    examples = [
        f"{gloss!r} only {where}"
        for where, some, others in (("here", here, there), ("there", there, here))
        for gloss in [each for each in some if each not in set(others)][:1]
    ]
    if not examples:
        return f"the same {len(here)} in another order"
    return f"{len(here)} here and {len(there)} there ({', '.join(examples)})"


def diagnose(
    checkpoint: Checkpoint,
    corpus: Corpus,
    split_name: str = "dev",
    *,
    logged_loss: float | None = None,
    device: str = "auto",
) -> Diagnosis:
    """Load the weights, evaluate them in eval mode, and judge what they do.

    Args:
        logged_loss: a train loss from the user's own log (nats per gloss), instead of the last one of the run.

    Raises:
        ValueError: the checkpoint does not fit the corpus, is of another trainer, or there is no such split.
    """
    corpus, other = fitting(corpus, checkpoint)
    split = {"train": corpus.train, "dev": corpus.dev, "test": corpus.test}.get(split_name)
    if split is None:
        raise ValueError(f"{corpus.folder}: has no split {split_name!r}; choose another --split")
    config, stride = checkpoint.config, checkpoint.config.output_stride
    model = _load(checkpoint, corpus)
    where = pick_device(device)
    forward = forward_of(model.to(where), where, config.precision)
    size = config.eval_batch_size
    found = evaluate(model, forward, split, stride, size, thorough=True)

    def losses(rows: NDArray[np.int64], features: Callable[[int], NDArray[np.float32]]) -> NDArray[np.float64]:
        return sequence_losses(model, forward, split, rows, stride, size, features)

    swap, permuted = (
        probe(split, stride, found.losses, losses) if found.finite else Gap(nan, nan, 0)
        for probe in (swap_gap, permuted_gap)
    )
    metrics = dev_metrics(found, split.references, corpus.vocabulary) | {
        "probe/sequences": float(swap.sequences),
        "probe/swap_gap": swap.gap,
        "probe/swap_t": swap.t,
        "probe/permuted_gap": permuted.gap,
        "probe/permuted_t": permuted.t,
    }
    floors = split_floors(corpus.train, split, len(corpus.vocabulary), stride)
    leak = weights.padding_leak(model, split, stride, where)

    reports = checkpoint.reports
    own_loss = _last(reports, "train/loss")
    logged = logged_loss if logged_loss is not None else own_loss
    untrained = weights.untrained(found, floors, _updates(checkpoint), logged, len(corpus.vocabulary), split_name)
    other_loss = weights.other_loss(logged, reports) if logged_loss is not None and not untrained else None
    now = _now(checkpoint, metrics, own_loss if other_loss else logged)
    # The run is judged where it was measured; elsewhere the weights are, as they are now.
    same_dev = bool(reports) and split_name == "dev" and other is None
    epochs = [*reports[:-1], now] if same_dev else [now] if now.step else []
    ended = same_dev and why_ended(epochs, config, floors.constant_wer) is not None
    judgement = judge(epochs, config, floors, ended=ended, dev_sequences=len(split))
    own = [
        weights.not_finite(found),
        untrained,
        weights.changed(found.loss, reports[-1]) if same_dev else None,
        weights.missing_log_softmax(found),
        weights.evaluator_failed(found, split, corpus.vocabulary),
        weights.leaks(leak),
        other,
        other_loss,
    ]
    findings = [finding for finding in own if finding is not None]
    codes = {finding.code for finding in findings}
    codes |= frozenset() if same_dev else OF_TRAINING
    findings = worst_first([*findings, *(f for f in judgement.findings if f.code not in codes)])

    facts = {
        "run": checkpoint.run,
        "epoch": now.epoch if now.step else 0,
        "step": now.step,
        "split": split_name,
        "mode": "eval",
        "corpus": str(corpus.folder),
        "corpus_hash": corpus.hash,
        "config": config.changed(),
        "classes": len(corpus.vocabulary),
        "sequences": len(split),
        "fitting": int(split.fits(stride).sum()),
        "logged_loss": logged,
        "logged_dev_loss": _last(reports, "dev/loss"),
        "logged_dev_wer": _last(reports, "dev/wer"),
        "uniform_log_prob": -log(len(corpus.vocabulary)),
        "largest_logsumexp": found.largest_logsumexp,
        "predicted_classes": list(found.best_classes),
        "predicted_glosses": list(corpus.vocabulary.decode(found.best_classes)),
        "padding_leak": leak,
        "floors": asdict(floors),
        "metrics": metrics,
        "permuted_sequences": permuted.sequences,
        "phase": judgement.phase if same_dev else None,
        "verdict": judgement.verdict,
        "takeoff_epoch": judgement.takeoff_epoch if same_dev else None,
        "words": dict(Counter(word for h in found.hypotheses for word in corpus.vocabulary.decode(h)).most_common(10)),
        "examples": _examples(found, split, corpus.vocabulary),
        "wers": [report.metrics.get("dev/wer", nan) for report in reports],
        "epochs_planned": len(reports) if ended else config.epochs,
    }
    answer = _answer(facts, judgement.sentence if same_dev else "", findings)
    return Diagnosis(answer, tuple(findings), facts, tuple(epochs) if same_dev else ())


def file_hash(path: Path) -> str:
    """SHA-256 of a file (hex)."""
    digest = sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _load(checkpoint: Checkpoint, corpus: Corpus) -> nn.Module:
    state, trainer = checkpoint.trainer.get("model"), checkpoint.identity.get("trainer", BUILT_IN)
    if not isinstance(state, dict) or trainer != BUILT_IN:
        who = "it keeps no 'model'" if trainer == BUILT_IN else f"it is {trainer}"
        raise ValueError(
            f"checkpoint of {checkpoint.run}: its trainer is not the one of this package ({who}), so its weights "
            "cannot be loaded here"
        )
    model = make_model(checkpoint.config, [m.width for m in corpus.modalities], len(corpus.vocabulary))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"checkpoint of {checkpoint.run}: its weights do not fit its own config ({reason})") from error
    return model


def _now(checkpoint: Checkpoint, metrics: dict[str, Any], logged: float) -> EpochReport:
    """The checkpoint's epoch, with what was measured now."""
    if checkpoint.reports:
        last = checkpoint.reports[-1]
        return replace(last, metrics={**last.metrics, **metrics, "train/loss": logged})
    epoch, lr_time = int(checkpoint.trainer.get("epoch", 0)), float(checkpoint.trainer.get("lr_time", 0.0))
    return EpochReport(max(1, epoch), _updates(checkpoint), {**metrics, "train/loss": logged}, lr_time=lr_time)


def _updates(checkpoint: Checkpoint) -> int:
    """Steps that these weights have had."""
    return checkpoint.reports[-1].step if checkpoint.reports else int(checkpoint.trainer.get("updates", 0))


def _last(reports: Sequence[EpochReport], key: str) -> float:
    return next((v for r in reversed(reports) if isfinite(v := r.metrics.get(key, nan))), nan)


def _examples(found: Evaluation, split: Split, vocabulary: Vocabulary) -> list[dict[str, str]]:
    rows = np.unique(np.linspace(0, len(split) - 1, min(EXAMPLES, len(split))).round().astype(int))
    return [
        {
            "id": split.ids[row],
            "reference": split.references[row],
            "hypothesis": " ".join(vocabulary.decode(found.hypotheses[row])),
        }
        for row in rows
    ]


def _answer(facts: dict[str, Any], run: str, findings: Sequence[Finding]) -> str:
    """
    Args:
        run: what its epochs say of the run, if they are of this split.
    """
    metrics = facts["metrics"]
    which = (
        f"These are the weights of {facts['run']} after epoch {facts['epoch']} ({facts['step']} steps); on "
        f"{facts['split']}, in eval mode, they score WER {metrics['dev/wer']:.1%} and a loss of "
        f"{metrics['dev/loss']:.2f} nats per gloss."
    )
    worst = findings[0] if findings and findings[0].severity != "info" else None
    if worst is None:
        return f"{which} {run or 'Nothing speaks against them.'}"
    what = worst.evidence
    if run and worst.severity == "warning":
        what = run if worst.evidence in run else f"{run} {worst.evidence}"
    return f"{which} {what} This would change it: {worst.would_change}"
