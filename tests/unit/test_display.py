"""The sweep in a terminal and in a log."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console
from rich.live import Live

from sweeps.display import LiveTable, PlainLog, epoch_line, print_summary, view
from sweeps.learned import HOW
from sweeps.records import EpochRow, TrialRow
from sweeps.spec import SweepSpec
from sweeps.states import SweepState, TrialState
from sweeps.summary import conclusions
from tests.rows import decision_row, epoch_row, sweep_row, trial_row

SPEC = SweepSpec.model_validate({"name": "s", "corpus": "x"})
NOTHING = conclusions(sweep_row(), [], [], SPEC)


def nothing(_trial_id: int) -> list[EpochRow]:
    return []


def up_to(last: int) -> Callable[[int], list[EpochRow]]:
    return lambda _trial_id: [epoch_row(n) for n in range(1, last + 1)]


class Log:
    """A plain log and what it said since it was last asked."""

    def __init__(self) -> None:
        self.out = io.StringIO()
        self.rows: list[EpochRow] = []
        self.log = PlainLog(lambda _: list(self.rows), self.out)
        self._read = 0

    def update(self, *trials: TrialRow, note: str = "") -> list[str]:
        self.log.update(sweep_row(), list(trials), note)
        lines = self.out.getvalue().splitlines()
        new, self._read = lines[self._read :], len(lines)
        return new


def test_every_epoch_and_every_change_is_a_line_once() -> None:
    log = Log()
    assert log.update(trial_row(0, TrialState.WAITING)) == []
    assert log.update(trial_row(0, hyperparameters=None)) == []
    assert log.update(trial_row(0)) == ["trial 0: running  lr=0.001 start=1 dropout=0.1 patience=5"]
    log.rows = [epoch_row(1), epoch_row(2)]
    assert log.update(trial_row(0, epochs=2)) == [f"trial 0: {epoch_line(row)}" for row in log.rows]
    assert log.update(trial_row(0, epochs=2)) == []
    log.rows.append(epoch_row(3, wer=None))
    ended = trial_row(0, TrialState.PRUNED, epochs=3, reason="Too slow.")
    assert log.update(ended) == [
        "trial 0: epoch 3  WER not finite  spread 0.250  plateau  lr 1.00e-03  2.5 s",
        "trial 0: PRUNED  Too slow.",
    ]
    assert log.update(ended) == []


def test_an_epoch_recorded_between_two_looks_is_not_said_twice() -> None:
    log = Log()
    log.rows = [epoch_row(1), epoch_row(2)]
    assert len(log.update(trial_row(0, epochs=1))) == 3, "the rows were read later than the trial"
    assert log.update(trial_row(0, epochs=2)) == []
    log.rows.append(epoch_row(3))
    assert len(log.update(trial_row(0, epochs=3))) == 1


def test_a_trial_that_came_and_went_between_two_looks_is_told_whole() -> None:
    log = Log()
    assert log.update() == []
    log.rows = [epoch_row(1)]
    assert [line[:16] for line in log.update(trial_row(0, TrialState.COMPLETE, epochs=1))] == [
        "trial 0: epoch 1",
        "trial 0: COMPLET",
    ]


def test_what_was_over_before_we_looked_is_a_line() -> None:
    log = Log()
    log.rows = [epoch_row(1)]
    assert log.update(trial_row(0, TrialState.COMPLETE, epochs=1, reason="Learned.")) == ["trial 0: COMPLETE  Learned."]


def test_a_trial_handed_back_goes_on_where_it_was() -> None:
    log = Log()
    log.rows = [epoch_row(1)]
    log.update(trial_row(0, epochs=1))
    assert log.update(trial_row(0, TrialState.WAITING, epochs=1, reason="interrupted")) == [
        "trial 0: WAITING  interrupted"
    ]
    log.rows.append(epoch_row(2))
    assert [line[:16] for line in log.update(trial_row(0, epochs=2))] == ["trial 0: running", "trial 0: epoch 2"]


def test_a_run_that_goes_on_does_not_tell_the_old_epochs_again() -> None:
    log = Log()
    log.log = PlainLog(lambda _: list(log.rows), log.out, seen={100: 2})
    log.rows = [epoch_row(1), epoch_row(2)]
    (line,) = log.update(trial_row(0, epochs=2))
    assert line.startswith("trial 0: running on after epoch 2")
    log.rows.append(epoch_row(3))
    assert [line[:16] for line in log.update(trial_row(0, epochs=3))] == ["trial 0: epoch 3"]


def test_trouble_is_said_once_and_its_end_too() -> None:
    log = Log()
    assert log.update(note="MLflow is away") == ["MLflow is away"]
    assert log.update(note="MLflow is away") == []
    assert log.update() == ["MLflow is back, its rows are being shipped"]
    assert log.update() == []


# the live table


def terminal(width: int, height: int) -> Console:
    return Console(file=io.StringIO(), width=width, height=height, force_terminal=True, markup=False, emoji=False)


def shown(
    console: Console, trials: list[TrialRow], note: str = "", epochs: Any = nothing, forecast: str = ""
) -> list[str]:
    """The lines that the live table has for these trials."""
    live = Live(console=console, auto_refresh=False)
    LiveTable(epochs, live, lambda: forecast).update(sweep_row(budget={"trials": 100}), trials, note)
    return ["".join(part.text for part in line).rstrip() for line in console.render_lines(live.get_renderable())]


def hundred() -> list[TrialRow]:
    states = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAILED]
    trials = [
        trial_row(n, states[n % 3], name=f"named-{n}" * 5, best_wer=1 - n / 200, epochs=9, verdict="never_learned")
        for n in range(98)
    ]
    return [*trials, trial_row(98), trial_row(99)]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 30), (60, 20), (200, 60), (40, 13)])
def test_a_hundred_trials_fit_the_terminal(width: int, height: int) -> None:
    note = "MLflow is away, rows wait: " + "connection refused " * 30
    forecast = "8.3 device hours left, about 11 more trials; " * 10
    lines = shown(terminal(width, height), hundred(), note, up_to(9), forecast)
    assert len(lines) <= height
    assert all(len(line) <= width for line in lines)
    assert sum(line.startswith("│") for line in lines) == max(5, height - 8), "a line each"


def test_what_runs_and_what_is_best_stay_in_sight() -> None:
    lines = shown(terminal(160, 24), hundred())
    numbers = [int(line.split()[1]) for line in lines if line.startswith("│") and line.split()[1].isdigit()]
    assert numbers[-2:] == [98, 99]
    assert 97 in numbers
    assert 0 not in numbers
    assert numbers == sorted(numbers)
    assert any("98 of 100 trials done · best WER 51.5% (trial 97" in line for line in lines)
    assert any("84 trials not shown" in line for line in lines)


def test_the_forecast_is_asked_for_when_a_trial_ends_and_not_at_every_look() -> None:
    asked: list[str] = []

    def forecast() -> str:
        asked.append("8.3 device hours left")
        return asked[-1]

    live = Live(console=terminal(160, 24), auto_refresh=False)
    table = LiveTable(nothing, live, forecast)
    for _ in range(3):
        table.update(sweep_row(), [trial_row(0)], "")
    assert len(asked) == 1
    table.update(sweep_row(), [trial_row(0, TrialState.COMPLETE, best_wer=0.5), trial_row(1)], "")
    assert len(asked) == 2
    lines = ["".join(part.text for part in line) for line in live.console.render_lines(live.get_renderable())]
    assert any(line.startswith("8.3 device hours left") for line in lines)


def test_the_table_reads_a_trials_epochs_only_when_there_are_new_ones() -> None:
    asked: list[int] = []

    def epochs(trial_id: int) -> list[EpochRow]:
        asked.append(trial_id)
        return [epoch_row(1)]

    table = LiveTable(epochs, Live(console=terminal(120, 30), auto_refresh=False))
    for count in (0, 0, 1, 1, 1):
        table.update(sweep_row(), [trial_row(0, epochs=count)], "")
    assert asked == [100, 100]


# text that looks like markup


NASTY = "[red]bold[/red] [/] [link=x] :100: :smile:"


def test_nothing_in_a_reason_is_taken_for_markup() -> None:
    out = io.StringIO()
    trials = [
        trial_row(0, TrialState.PRUNED, reason=NASTY, overrides={"schedule": NASTY}),
        trial_row(1, TrialState.FAILED, name="a", reason=NASTY),
    ]
    sweep = sweep_row(reason=NASTY, state=SweepState.COMPLETE, facts={"constant_sentence": NASTY, "constant_wer": 0.9})
    print_summary(sweep, trials, {}, NASTY, NASTY, NOTHING, out)
    text = out.getvalue()
    # The table; two pruned or failed, one of them named; the sweep's, the sentence, the command, the dashboard.
    assert text.count(NASTY) == 8


def test_nor_in_the_live_table() -> None:
    trials = [trial_row(0, overrides={"schedule": NASTY})]
    lines = shown(terminal(250, 30), trials, NASTY)
    assert any(f"schedule={NASTY}" in line for line in lines)
    assert NASTY in lines


# which of the two, and the summary


def test_what_is_no_terminal_gets_the_log() -> None:
    with view(nothing, plain=False, out=io.StringIO()) as chosen:
        assert isinstance(chosen, PlainLog)


def test_a_terminal_gets_the_table_unless_plain_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes any output for a terminal
    with view(nothing, plain=False, out=io.StringIO()) as chosen:
        assert isinstance(chosen, LiveTable)
    with view(nothing, plain=True, out=io.StringIO()) as chosen:
        assert isinstance(chosen, PlainLog)


def test_the_summary_tells_the_best_the_pruned_the_named_and_the_way_on() -> None:
    out = io.StringIO()
    trials = [
        trial_row(0, TrialState.PRUNED, name="original", reason="Not learning: it is futile."),
        trial_row(1, TrialState.COMPLETE, name="fixed", best_wer=0.25, best_epoch=7, epochs=9, verdict="learned"),
        trial_row(2, TrialState.FAILED, reason="ValueError: a fault"),
    ]
    sweep = sweep_row(state=SweepState.COMPLETE, reason="all trials are done")
    print_summary(sweep, trials, {}, "python -m model train ...", "http://here", NOTHING, out)
    text = out.getvalue()
    for said in (
        "Sweep s: COMPLETE, all trials are done. 12 s in all.",
        "The best constant sentence ('A') scores 92.0%.",
        "Best: trial 1 fixed, dev WER 25.0% at epoch 7.",
        "Pruned:\n  s/original: Not learning: it is futile.\n",
        "Failed:\n  s/2: ValueError: a fault\n",
        "Named:\n  s/original: Not learning: it is futile.\n  s/fixed: complete after 9 epochs, best WER 25.0%\n",
        "Train the best configuration:\n  python -m model train ...\n",
        "Dashboard:\n  http://here\n",
    ):
        assert said in text
    assert "\x1b" not in text, "no colours in a file"


def test_a_long_command_is_not_broken() -> None:
    out = io.StringIO()
    command = "python -m model train " + "--option value " * 60
    print_summary(sweep_row(), [], {}, command, "d", NOTHING, out)
    assert command.strip() in out.getvalue()


class Terminal(io.StringIO):
    """Output that goes to a person."""

    def isatty(self) -> bool:
        return True


def found_out(out: io.StringIO) -> str:
    """The summary of a sweep that alarmed, had a range test, learned a little, and audited a trial."""
    alarm = {"sentence": "None of 8 trials took off.", "advice": "Try higher rates.", "proposal": None}
    test = {"sentences": ["The ramp used its input at 1.0e-03.", "It diverged at 3.0e-02."]}
    facts = {"constant_wer": 0.92, "constant_sentence": "A", "alarm": alarm, "range_test": test}
    kept = "A WER of 50.0% would have kept it."
    reason = f"Learns, but too slowly. {kept}"
    trials = [
        trial_row(0, TrialState.PRUNED, verdict="too_slow", best_wer=0.7, epochs=6, reason=reason),
        trial_row(1, TrialState.COMPLETE, verdict="learned", best_wer=0.2, best_epoch=9, epochs=24, reason="Learned."),
    ]
    sweep = sweep_row(state=SweepState.COMPLETE, facts=facts)
    epochs = {trial.id: [epoch_row(1, trial.best_wer)] for trial in trials}
    found = conclusions(sweep, trials, [decision_row(0), decision_row(1, action="audited")], SPEC, epochs)
    latest = {trial.number: epochs[trial.id][-1] for trial in trials}
    print_summary(sweep, trials, latest, "python -m model train " + "--option value " * 12, "d", found, out)
    return out.getvalue()


def test_the_summary_says_what_was_found_out() -> None:
    text = found_out(io.StringIO())
    kept = "Learns, but too slowly. A WER of 50.0% would have kept it."
    for said in (
        f"Pruned:\n  s/0: {kept}\n",
        f"Condemned, and run on as audits:\n  s/1: {kept} It ran on: Learned.\n",
        "Alarm:\n  None of 8 trials took off.\n  Try higher rates.\n  Since then 2 trials took off.\n",
        "Range test:\n  The ramp used its input at 1.0e-03.\n  It diverged at 3.0e-02.\n",
        f"What it learned ({HOW}):\n",
        "\n  learning_rate: 2 of 2 trials took off, with 1.0e-03. Too few trials (2) to say where WER is best.\n",
        "\n  warmup_start_factor, dropout: too few trials (2) to say.\n",
        "How often the rules were wrong:\n  The rules condemned 2 trials: 1 stopped",
    ):
        assert said in text
    assert "\x1b" not in text, "no colours in a file"


def test_in_a_terminal_it_breaks_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    lines = found_out(Terminal()).splitlines()
    command = next(line for line in lines if "--option" in line)
    assert command.count("--option") == 12, "a command is not broken"
    assert all(len(line) <= 80 for line in lines if line != command)
    (row,) = (line for line in lines if line.startswith("│ 0"))
    assert "too_slow" in row, "nor is a verdict"
    sentences = lines[lines.index("Pruned:") : lines.index("Train the best configuration:")]
    assert any(line.startswith("    ") for line in sentences), "what goes on is indented further"
    told = " ".join(" ".join(sentences).split())
    assert "Learns, but too slowly. A WER of 50.0% would have kept it. It ran on: Learned." in told
