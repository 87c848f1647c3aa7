"""Views of a sweep's runs, stored with its experiment, so that a link opens them without a further click.

MLflow's page keeps views that people save in tags of the experiment, and lists them under "Views". The format is its
own and undocumented: what is relied on here is what `tests/browser/test_mlflow.py` opens in a browser. A view that
MLflow cannot read costs a notice and the experiment's overview: ask `are_stored` before a link is printed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from tracking.server import ask

View: TypeAlias = Literal["all", "collapsed", "best", "parallel", "read"]

TITLES: Mapping[View, str] = {
    "all": "All trials",
    "collapsed": "Collapsed only",
    "best": "Best ten",
    "parallel": "Parallel coordinates",
    "read": "What the best ten read",
}
COLLAPSED = "tags.collapse = 'true'"
_SEARCHES: Mapping[View, str] = {
    "collapsed": COLLAPSED,
    # Whose pictures reach to the last epochs.
    "read": "tags.collapse = 'false' and tags.trial_state != 'PRUNED'",
}

_TAG = "mlflow.sharedViewState."
_BEST_FIRST = {"orderByKey": "metrics.`best/wer`", "orderByAsc": True}
_COLUMNS = ("tags.`verdict`", "metrics.`best/wer`", "params.`learning_rate`", "tags.`rule`", "tags.`reason`")
_FOLDED = (
    "best",
    "decode",
    "dev",
    "optim",
    "probe",
    "range_test",
    "spread",
    "train",
    "Model metrics",
    "System metrics",
)
"""Sections of MLflow's charts: a metric's is what stands before its `/`, that of pictures is "Model metrics"."""


@dataclass(frozen=True)
class Images:
    """Pictures that runs have, one a step: see `RunWriter.log_image`."""

    key: str
    step: int
    """Shown at first."""


def tags(parameters: Sequence[str], images: Images, created_at: float) -> dict[str, str]:
    """What an experiment is tagged with so that it has the views. The same arguments give the same tags.

    Args:
        parameters: what the sweep searched.
        created_at: when the sweep was made, UNIX seconds: views are listed by it.
    """
    return {_TAG + key(view): _stored(view, parameters, images, created_at) for view in TITLES}


def key(view: View) -> str:
    """What a link calls the view: see `links.view_url`."""
    return f"sweep-{view}"


def are_stored(uri: str, experiment_id: str) -> bool:
    """Whether the experiment has the views: one that was made by an earlier version has not.

    Args:
        uri: of an MLflow server, `http(s)://...`.

    Raises:
        TrackingUnavailable: it does not answer.
    """
    answer = ask(uri, "/api/2.0/mlflow/experiments/get", experiment_id=experiment_id)
    if answer.status_code != 200:
        return False
    there = {tag["key"] for tag in answer.json()["experiment"].get("tags", [])}
    return all(_TAG + key(view) in there for view in TITLES)


def _stored(view: View, parameters: Sequence[str], images: Images, created_at: float) -> str:
    at = round(1000 * created_at) - list(TITLES).index(view)  # the list shows the newest first
    state = json.dumps(_state(view, parameters, images), separators=(",", ":"))
    return json.dumps({"name": TITLES[view], "createdAt": at, "updatedAt": at, "state": state})


def _state(view: View, parameters: Sequence[str], images: Images) -> dict[str, Any]:
    """What MLflow's page takes over from a view, over its defaults."""
    section: dict[str, Any] = {"name": "WER and spread", "columns": 2, "cardHeight": 440}
    charts = [_line("dev/wer"), _line("spread/time")]
    if view == "parallel":
        section, charts = {"name": "Configurations", "columns": 1, "cardHeight": 440}, [_parallel(parameters)]
    elif view == "read":
        section, charts = {"name": "Log-probabilities", "columns": 1, "cardHeight": 600}, [_slides(images)]
    sections = [
        {**section, "uuid": "first", "display": True, "isReordered": True},
        *({"name": name, "uuid": name, "display": False, "isReordered": True} for name in _FOLDED),
    ]
    return {
        **_BEST_FIRST,
        "searchFilter": _SEARCHES.get(view, ""),
        # Of all runs, or of the first ten: the first are the best ones.
        "runsHiddenMode": "FIRST_10_RUNS" if view in ("best", "read") else "SHOW_ALL",
        "selectedColumns": [*_COLUMNS, *(f"params.`{name}`" for name in parameters if name != "learning_rate")],
        "compareRunSections": sections,
        "compareRunCharts": charts,
        "isAccordionReordered": True,  # or the sections are sorted by name
    }


def _chart(kind: str, name: str) -> dict[str, Any]:
    return {
        "type": kind,
        "uuid": f"sweep-{name}",
        "metricSectionId": "first",
        "displayName": name,
        "deleted": False,
        "isGenerated": False,
    }


def _line(metric: str) -> dict[str, Any]:
    return {
        **_chart("LINE", metric),
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "xAxisKey": "step",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "lineSmoothness": 0,
        "displayPoints": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }


def _parallel(parameters: Sequence[str]) -> dict[str, Any]:
    return {
        **_chart("PARALLEL", "parallel"),
        "selectedParams": list(parameters),
        "selectedMetrics": ["best/wer"],
        "showAllRuns": True,
    }


def _slides(images: Images) -> dict[str, Any]:
    # Without showRunParams: false each picture stands below all parameters of its run.
    return {**_chart("IMAGE", images.key), "imageKeys": [images.key], "step": images.step, "showRunParams": False}
