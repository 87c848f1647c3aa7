"""Whatever a run reports, judging it gives findings that can be read, and the same ones every time."""

from __future__ import annotations

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from model.diagnosis import judge, run_findings
from model.findings import SEVERITIES
from model.floors import Floors
from model.types import METRICS, EpochReport, TrainingConfig

NUMBERS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(0, 1),
    st.sampled_from([0.0, 1.0, 100.0, math.nan, math.inf]),
)
FLOORS = st.builds(
    Floors,
    constant_wer=st.floats(0, 2),
    constant_sentence=st.just("A"),
    constant_loss=st.one_of(st.floats(0, 10), st.just(math.nan)),
    dev_constant_loss=st.one_of(st.floats(0, 10), st.just(math.nan)),
    uniform_loss=st.one_of(st.floats(0, 200), st.just(math.nan)),
)
CONFIGS = st.builds(
    TrainingConfig,
    epochs=st.integers(1, 40),
    learning_rate=st.floats(1e-9, 10),
    schedule=st.sampled_from(["cosine_restarts", "plateau", "step", "constant"]),
    warmup_start_factor=st.floats(0.01, 1),
    warmup_epochs=st.floats(0, 50),
)


@st.composite
def runs(draw: st.DrawFn) -> list[EpochReport]:
    steps = draw(st.integers(0, 2000))
    measured = {"dev/wer", *draw(st.sets(st.sampled_from(list(METRICS))))}
    return [
        EpochReport(
            epoch,
            epoch * steps,
            {key: draw(NUMBERS) for key in sorted(measured)},
            steps,
            draw(st.integers(0, steps)),
            epoch * steps * 1e-3,
        )
        for epoch in range(1, draw(st.integers(0, 6)) + 1)
    ]


@given(runs(), CONFIGS, FLOORS, st.one_of(st.none(), st.integers(1, 1000)), st.booleans())
def test_any_run_can_be_judged(
    run: list[EpochReport], config: TrainingConfig, floors: Floors, sequences: int | None, ended: bool
) -> None:
    judgement = judge(run, config, floors, ended=ended, dev_sequences=sequences)
    assert list(judgement.findings) == run_findings(run, config, floors, dev_sequences=sequences)
    assert len({finding.code for finding in judgement.findings}) == len(judgement.findings)
    ranks = [SEVERITIES.index(finding.severity) for finding in judgement.findings]
    assert ranks == sorted(ranks)
    for finding in judgement.findings:
        json.dumps(finding.as_json(), allow_nan=False)
        assert finding.evidence.endswith(".")
    assert judgement.sentence.endswith(".")
    assert (judgement.verdict is None) is not ended
