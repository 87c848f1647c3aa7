"""`python -m model range-test`: which learning rates are worth trying on this corpus?"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from model.commands.options import add_corpus_options, corpus_config
from model.commands.progress import progress_lines
from model.commands.train import add_training_options
from model.range_test import FEWEST_STEPS, HIGH, LOW, STEPS, RangeTest, range_test
from model.types import TrainingConfig

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

NO_OPTIONS = {"learning_rate", "patience", "patience_starts", "plateau_factor", "plateau_patience", "probe_interval"}
"""Fields of `TrainingConfig` that a ramp has no use for."""

FIELDS = tuple(name for name in TrainingConfig.model_fields if name not in NO_OPTIONS)


def add(commands: Commands) -> None:
    test = commands.add_parser(
        "range-test",
        help="which learning rates are worth trying?",
        description="Train one fresh network while the learning rate rises with every step, and read two edges off it: "
        "above the one the loss leaves for good; below the other a run of --epochs has no time to learn. A fall of the "
        "loss alone counts for nothing, as CTC's falls to that of the best constant output without any input: what "
        "counts is when the output depends on the input there. Takes as long as 320 steps of training at most, with "
        "looks at dev. --epochs, the warm-up and the schedule only say how much training a run will have: the ramp "
        "itself has neither.",
    )
    add_corpus_options(test)
    test.add_argument("--low", type=float, default=LOW, help="learning rate of the first step")
    test.add_argument("--high", type=float, default=HIGH, help="learning rate of the last step")
    test.add_argument("--steps", type=int, default=STEPS, help=f"steps of the whole ramp, at least {FEWEST_STEPS}")
    test.add_argument("--output", type=Path, metavar="FILE", help="also draw the picture, as PNG")
    test.add_argument("--json", action="store_true", help="print one JSON object; all else goes to stderr")
    add_training_options(test, FIELDS)
    test.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from model.corpus.data import load_corpus

    config = TrainingConfig.model_validate({name: getattr(arguments, name) for name in FIELDS})
    corpus = load_corpus(corpus_config(arguments), progress=progress_lines())
    test = range_test(
        config,
        corpus,
        low=arguments.low,
        high=arguments.high,
        steps=arguments.steps,
        progress=partial(progress_lines(), "range test"),
    )
    if arguments.output is not None:
        from model.range_plot import write_picture

        write_picture(test, arguments.output)
    say = partial(print, file=sys.stderr if arguments.json else sys.stdout)
    for line in report_lines(test):
        say(line)
    if arguments.output is not None:
        say(f"picture: {arguments.output}")
    if arguments.json:
        print(json.dumps(test.as_json(), allow_nan=False))
    return 0


def report_lines(test: RangeTest) -> list[str]:
    """What it showed and what it proposes, for a person."""
    low, high = ("open" if rate is None else f"{rate:.1e}" for rate in (test.low, test.high))
    begin = "" if test.suggested is None else f"; begin at {test.suggested:.1e}"
    return [*test.sentences, f"learning rates to search: {low} to {high}{begin}"]
