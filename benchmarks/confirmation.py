"""How often `sweeps confirm` is wrong: confirmations resampled from a bank of real runs.

    python benchmarks/confirmation.py record [--seeds 30] [--only NAME ...]
    python benchmarks/confirmation.py [--draws 1000] [--json]

`record` trains four configurations of the generated corpus with 30 seeds each, one run after another, and keeps the
errors of each sentence of dev and test: a file a configuration below `benchmarks/confirmation/`. What is there already
is not trained again, so an interrupted call goes on where it was.

Without a command confirmations are drawn from them: seeds without replacement, the sentences of test as they are or
with replacement, and each is judged by the function that the product calls. Where a gap is named, the differences of a
configuration were moved: a constant share of the words is added to its errors so that the bank's mean difference is
that gap, and what they scatter by stays what it was. Gap 0 is how often a difference of nothing is called one.

Intervals are over the bank: by the jackknife over its seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from curves import commit_of_trainer
from lanes import HOME
from numpy.typing import NDArray
from scipy.stats import binomtest

from model.corpus.data import Corpus, CorpusConfig, Split, load_corpus
from model.corpus.synthetic import GeneratedConfig, generate
from model.ctc import CTCTrainer
from model.metrics import sentence_errors
from model.types import TrainingConfig, mixed_seed
from sweeps.confirmation import Table, compared

FOLDER = Path(__file__).parent / "confirmation"
SEEDS = 30

# As many sentences of dev and test as PHOENIX 2014 SI5 has; eight signers in train, another in each of the others.
CORPUS = GeneratedConfig(train=240, dev=111, test=180, glosses=30, signers=8, noise=0.01, seed=1)

COMMON: Mapping[str, Any] = {
    "epochs": 15,
    "batch_size": 8,
    "hidden": 64,
    "channels": 64,
    "schedule": "step",
    "step_epochs": 5,
    "step_factor": 0.3,
    "patience": 15,
    "probe_interval": 0,
}
BASELINE = "baseline"
CONFIGURATIONS: Mapping[str, Mapping[str, Any]] = {
    BASELINE: {"learning_rate": 1.5e-3},
    # Another configuration, and no better: over 450 updates weight decay takes next to nothing.
    "equal": {"learning_rate": 1.5e-3, "weight_decay": 0.02},
    "better": {"learning_rate": 2.5e-3},
    "slightly-better": {"learning_rate": 1.9e-3},
}


@dataclass(frozen=True)
class Run:
    """One unit of work: trained whole or not at all."""

    name: str
    seed: int
    config: TrainingConfig


def run_of(name: str, seed: int) -> Run:
    """Seed `seed` (from 0) has the same initialisation and the same batches in every configuration."""
    seeds = {"seed": mixed_seed("confirmation", seed), "data_seed": mixed_seed("confirmation", "data", seed)}
    return Run(name, seed, TrainingConfig.model_validate({**COMMON, **CONFIGURATIONS[name], **seeds}))


def file_of(name: str) -> Path:
    return FOLDER / f"{name}.jsonl"


def recorded(name: str) -> list[dict[str, Any]]:
    """The runs of a configuration, by seed."""
    file = file_of(name)
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return sorted(map(json.loads, lines), key=lambda run: run["seed"])


def written(file: Path, text: str) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".part")
    aside.write_text(text, encoding="utf-8", newline="\n")
    aside.replace(file)


def train(run: Run, corpus: Corpus) -> dict[str, Any]:
    """A run to its last epoch; its errors at the epoch of the best dev WER, as a sweep would take it."""
    assert corpus.test is not None
    trainer, best, epoch, state, began = CTCTrainer(run.config, corpus), float("inf"), 0, {}, time.monotonic()
    for number in range(1, run.config.epochs + 1):
        wer = trainer.train_epoch(lambda: False).wer
        if wer < best:
            best, epoch, state = wer, number, deepcopy(trainer.model.state_dict())
    trainer.model.load_state_dict(state)
    scored = {split.name: errors_of(trainer, split) for split in (corpus.dev, corpus.test)}
    about = {"trainer": version("ctc-sweeps"), "commit": commit_of_trainer()}
    return {"seed": run.seed, "epoch": epoch, **about, "seconds": round(time.monotonic() - began, 1), **scored}


def errors_of(trainer: CTCTrainer, split: Split) -> list[int]:
    found, vocabulary = trainer.evaluate(split), trainer.corpus.vocabulary
    return sentence_errors(split.references, [" ".join(vocabulary.decode(each)) for each in found.hypotheses])


def record(names: list[str], seeds: int) -> None:
    """Train what is not there yet, seed by seed: stopped at any point, all configurations are equally far."""
    corpus = load_corpus(CorpusConfig(path=generate(CORPUS, HOME)))
    assert corpus.test is not None
    words = {s.name: [len(r.split()) for r in s.references] for s in (corpus.dev, corpus.test)}
    about = {"generated": CORPUS.model_dump(), "corpus_hash": corpus.hash, "common": COMMON}
    written(
        FOLDER / "bank.json", json.dumps({**about, "configurations": CONFIGURATIONS, "words": words}, indent=1) + "\n"
    )
    for seed in range(seeds):
        for name in names:
            there = recorded(name)
            if any(run["seed"] == seed for run in there):
                continue
            found = train(run_of(name, seed), corpus)
            lines = [json.dumps(run, separators=(",", ":")) for run in (*there, found)]
            written(file_of(name), "".join(f"{line}\n" for line in lines))
            wers = ", ".join(f"{split} {sum(found[split]) / sum(words[split]):.1%}" for split in words)
            print(f"{name} seed {seed}: {wers}, {found['seconds']:.0f} s", flush=True)


# Confirmations


@dataclass(frozen=True)
class Bank:
    """Wrong words on test, and what they are of."""

    errors: Mapping[str, Table]
    """(seeds, sentences) by configuration."""
    words: Table

    def gap(self, name: str) -> float:
        """Mean WER of a configuration less that of the baseline."""
        return float((self.errors[name] - self.errors[BASELINE]).sum(axis=1).mean() / self.words.sum())

    def moved(self, name: str, gap: float | None) -> Table:
        """Errors of a configuration whose mean difference from the baseline is that gap; None: as they are."""
        errors = self.errors[name]
        return errors if gap is None else errors + (gap - self.gap(name)) * self.words


def read_bank() -> Bank:
    """The runs of the seeds that every configuration has."""
    runs = {name: {run["seed"]: run["test"] for run in recorded(name)} for name in CONFIGURATIONS}
    seeds = sorted(set.intersection(*(set(each) for each in runs.values())))
    if len(seeds) < 2 * max(DRAWN):
        raise SystemExit(f"{FOLDER}: {len(seeds)} seeds are recorded; `record` trains the rest")
    words = json.loads((FOLDER / "bank.json").read_text(encoding="utf-8"))["words"]["test"]
    errors = {name: np.array([each[seed] for seed in seeds], dtype=np.float64) for name, each in runs.items()}
    return Bank(errors, np.array(words, dtype=np.float64))


DRAWN = (3, 5, 8)
"""Seeds of a confirmation."""

AGAINST_ITSELF = "baseline, other seeds"
ANY = "any of three"
BESIDE: Mapping[str, tuple[str, ...]] = {
    "better, beside one of no difference": ("equal",),
    "better, beside two of no difference": ("equal", "slightly-better"),
}
"""What is called better among several, which takes more."""

COMPARISONS: tuple[tuple[str, str, float | None], ...] = (
    (AGAINST_ITSELF, BASELINE, 0.0),
    ("equal", "equal", None),
    ("equal", "equal", 0.0),
    ("slightly-better", "slightly-better", None),
    ("slightly-better", "slightly-better", -0.05),
    ("slightly-better", "slightly-better", -0.08),
    ("better", "better", None),
    ("better", "better", -0.05),
    ("better", "better", -0.08),
)
"""What it is called, the configuration, and the gap it is moved to."""


def confirmations(bank: Bank, seeds: int, draws: int, *, drawn_sentences: bool) -> list[dict[str, Any]]:
    """A row a comparison: how often it was called better, not shown better, worse."""
    rng = np.random.default_rng([seeds, drawn_sentences])
    total, sentences = bank.errors[BASELINE].shape
    chosen = [rng.permutation(total)[: 2 * seeds] for _ in range(draws)]
    columns = [rng.integers(sentences, size=sentences) if drawn_sentences else np.arange(sentences) for _ in chosen]
    tables = {(name, gap): bank.moved(name, gap) for _, name, gap in COMPARISONS}
    nothing = {name: bank.moved(name, 0.0) for name in CONFIGURATIONS if name != BASELINE}
    verdicts: dict[tuple[str, float | None], list[str]] = {(label, gap): [] for label, _, gap in COMPARISONS}
    verdicts |= {(ANY, 0.0): [], **{(label, gap): [] for label in BESIDE for gap in (-0.05, -0.08)}}
    for ids, columns_of in zip(chosen, columns, strict=True):
        words, own, other = bank.words[columns_of], ids[:seeds], ids[seeds:]
        base = bank.errors[BASELINE][own][:, columns_of]
        for label, name, gap in COMPARISONS:
            rows = other if label == AGAINST_ITSELF else own
            (pair,) = compared({BASELINE: base, label: tables[name, gap][rows][:, columns_of]}, words, BASELINE)
            verdicts[label, gap].append(pair.verdict)
        three = {name: table[own][:, columns_of] for name, table in nothing.items()}
        said = {pair.verdict for pair in compared({BASELINE: base, **three}, words, BASELINE)}
        verdicts[ANY, 0.0].append("better" if "better" in said else "worse" if "worse" in said else "not shown better")
        for label, others in BESIDE.items():
            for gap in (-0.05, -0.08):
                several = {name: three[name] for name in others} | {"better": tables["better", gap][own][:, columns_of]}
                pairs = compared({BASELINE: base, **several}, words, BASELINE)
                verdicts[label, gap].append(pairs[-1].verdict)
    rows = []
    for (label, gap), of in verdicts.items():
        used = [ids if label == AGAINST_ITSELF else ids[:seeds] for ids in chosen]
        better = np.array([verdict == "better" for verdict in of])
        low, high = over_the_bank(better, used, total)
        name = next((n for known, n, _ in COMPARISONS if known == label), None)
        rows.append(
            {
                "comparison": label,
                "gap": gap,
                "natural_gap": None if name in (None, BASELINE) else bank.gap(str(name)),
                "seeds": seeds,
                "sentences": "drawn" if drawn_sentences else "the bank's",
                "confirmations": draws,
                "better": float(better.mean()),
                "better_low": low,
                "better_high": high,
                "not_shown_better": of.count("not shown better") / draws,
                "worse": of.count("worse") / draws,
            }
        )
    return rows


def over_the_bank(happened: NDArray[np.bool_], used: Sequence[NDArray[np.int64]], seeds: int) -> tuple[float, float]:
    """The 95 % interval of a rate over other banks of as many seeds, by the jackknife: the rate of the draws that do
    without a seed, for each seed; and at least what so many draws leave open.
    """
    rate, draws = float(happened.mean()), len(happened)
    without = [happened[[seed not in ids for ids in used]].mean() for seed in range(seeds)]
    error = math.sqrt((seeds - 1) ** 2 / seeds * float(np.var(without)))
    wilson = binomtest(int(happened.sum()), draws).proportion_ci(method="wilson")
    return max(0.0, min(wilson.low, rate - 1.96 * error)), min(1.0, max(wilson.high, rate + 1.96 * error))


def table_of(rows: Sequence[Mapping[str, Any]], bank: Bank) -> str:
    """As the pages have it."""
    lines = []
    for name, errors in bank.errors.items():
        wers = errors.sum(axis=1) / bank.words.sum()
        lines.append(f"{name}: test WER {wers.mean():.1%}, deviation between seeds {100 * wers.std(ddof=1):.1f} points")
    lines += ["", "| against the baseline | gap | seeds | sentences | better | not shown better | worse |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in rows:
        gap = row["natural_gap"] if row["gap"] is None else row["gap"]
        shown = f"{100 * gap:+.1f}{'' if row['gap'] is not None else ' (as it is)'}"
        interval = f"{row['better']:.1%} ({100 * row['better_low']:.0f} to {100 * row['better_high']:.0f})"
        rest = f"{row['not_shown_better']:.1%} | {row['worse']:.1%}"
        lines.append(f"| {row['comparison']} | {shown} | {row['seeds']} | {row['sentences']} | {interval} | {rest} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=("record",))
    parser.add_argument("--seeds", type=int, default=SEEDS, help="record: so many of each configuration")
    parser.add_argument("--only", nargs="*", choices=list(CONFIGURATIONS), default=list(CONFIGURATIONS))
    parser.add_argument("--draws", type=int, default=1_000, help="confirmations for each row of the table")
    parser.add_argument("--json", action="store_true", help="print a list of rows")
    arguments = parser.parse_args()
    if arguments.command == "record":
        record(arguments.only, arguments.seeds)
        return 0
    bank = read_bank()
    rows = [
        row
        for seeds in DRAWN
        for drawn in (False, True)
        for row in confirmations(bank, seeds, arguments.draws, drawn_sentences=drawn)
    ]
    print(json.dumps(rows) if arguments.json else table_of(rows, bank))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
