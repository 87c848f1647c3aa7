"""Views stored with an experiment: what a link needs to find there. A browser tests that MLflow can read them."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs

import pytest

from tracking import views
from tracking.links import view_url
from tracking.writer import MAX_TAG_LENGTH

PARAMETERS = ("learning_rate", "warmup_start_factor", "dropout", "patience")
IMAGES = views.Images("posteriorgram", 18)


def stored(view: views.View) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is kept of a view, and the state of the page in it."""
    key = parse_qs(view_url("", "7", views.key(view)).partition("?")[2])["viewStateShareKey"][0]
    kept = json.loads(views.tags(PARAMETERS, IMAGES, 1.8e9)[f"mlflow.sharedViewState.{key}"])
    return kept, json.loads(kept["state"])


def test_the_same_sweep_has_the_same_views_in_the_order_of_their_titles() -> None:
    assert views.tags(PARAMETERS, IMAGES, 1.8e9) == views.tags(list(PARAMETERS), IMAGES, 1.8e9)
    made = {view: stored(view)[0] for view in views.TITLES}
    assert [kept["name"] for kept in sorted(made.values(), key=lambda kept: -kept["createdAt"])] == list(
        views.TITLES.values()
    )


@pytest.mark.parametrize("view", views.TITLES)
def test_every_chart_is_in_a_section_that_is_open(view: views.View) -> None:
    _, state = stored(view)
    shown = {section["uuid"] for section in state["compareRunSections"] if section["display"]}
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == shown
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`best/wer`", True)


def test_all_trials_are_drawn_at_once_and_the_best_ten_alone() -> None:
    _, state = stored("all")
    assert [chart["metricKey"] for chart in state["compareRunCharts"]] == ["dev/wer", "spread/time"]
    assert (state["runsHiddenMode"], state["searchFilter"]) == ("SHOW_ALL", "")
    assert stored("best")[1]["runsHiddenMode"] == "FIRST_10_RUNS"
    assert stored("collapsed")[1]["searchFilter"] == "tags.collapse = 'true'"
    assert stored("parallel")[1]["compareRunCharts"][0]["selectedParams"] == list(PARAMETERS)


def test_a_view_of_very_many_parameters_fits_a_tag() -> None:
    many = [f"parameter_{n}" for n in range(60)]
    assert max(map(len, views.tags(many, IMAGES, 1.8e9).values())) < MAX_TAG_LENGTH
