from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tracking.links import artifact_source, artifacts_url, experiment_url, run_url, view_url, without_credentials
from tracking.server import store_path, store_uri

CHARTS = "workflowType=machine_learning&compareRunsMode=CHART&orderByKey=metrics.%60best%2Fwer%60&orderByAsc=true"


@pytest.mark.parametrize("base", ["http://127.0.0.1:5000", "http://127.0.0.1:5000/"])
def test_the_experiment_opens_on_its_charts_sorted_by_wer(base: str) -> None:
    assert experiment_url(base, "7") == f"http://127.0.0.1:5000/#/experiments/7/runs?{CHARTS}"


def test_a_filter_survives_the_way_through_the_address() -> None:
    search = "tags.collapse = 'true' AND params.name = \"a&b#c\""
    url = experiment_url("https://mlflow.example/prefix", "7", search_filter=search)
    fragment = urlsplit(url).fragment
    query = parse_qs(fragment.partition("?")[2])
    assert url.startswith("https://mlflow.example/prefix/#/experiments/7/runs?")
    assert query["searchFilter"] == [search]
    assert query["orderByKey"] == ["metrics.`best/wer`"]


def test_a_run_has_its_own_page() -> None:
    assert (
        run_url("http://h:5000/", "7", "abc") == "http://h:5000/#/experiments/7/runs/abc?workflowType=machine_learning"
    )


def test_a_stored_view_brings_its_own_order_and_filter() -> None:
    url = view_url("http://h:5000", "7", "sweep-all")
    assert url == (
        "http://h:5000/#/experiments/7/runs?workflowType=machine_learning&compareRunsMode=CHART"
        "&viewStateShareKey=sweep-all"
    )
    assert "compareRunsMode" not in view_url("http://h:5000", "7", "sweep-all", charts=False)


def test_without_a_base_links_are_relative_to_the_page() -> None:
    assert run_url("", "7", "abc") == "#/experiments/7/runs/abc?workflowType=machine_learning"
    assert (
        artifacts_url("", "7", "abc", "pictures/a b.png")
        == "#/experiments/7/runs/abc/artifacts/pictures/a%20b.png?workflowType=machine_learning"
    )
    assert (
        artifacts_url("http://h", "7", "abc")
        == "http://h/#/experiments/7/runs/abc/artifacts?workflowType=machine_learning"
    )
    assert artifact_source("abc", "pictures/a b.png") == "get-artifact?path=pictures%2Fa%20b.png&run_uuid=abc"


def test_no_password_is_printed() -> None:
    assert without_credentials("https://me:se@cret@host:8/x") == "https://host:8/x"
    assert without_credentials("sqlite:////a@b/mlflow.db") == "sqlite:////a@b/mlflow.db"
    assert "cret" not in experiment_url("https://me:secret@host", "7") + run_url("https://me:secret@host", "7", "a")


def test_a_store_uri_names_its_file_whatever_the_path(tmp_path: Path) -> None:
    for name in ["plain", "a b", "100%", "%20", "手語"]:
        uri = store_uri(tmp_path / name)
        assert uri.startswith("sqlite:///")
        assert store_path(uri) == (tmp_path / name / "mlflow.db").resolve()


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:mlflow.db", "mlflow.db"])
def test_a_store_uri_without_a_file_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="names no database file"):
        store_path(uri)
