"""Addresses of MLflow's pages. Pure.

Without a base address they are relative, for texts that MLflow's page shows itself: they hold wherever it is opened.
"""

from __future__ import annotations

from urllib.parse import quote, urlsplit, urlunsplit

# An experiment's plain address opens the GenAI overview; this opens its training runs.
_TRAINING = "workflowType=machine_learning"
_CHARTS = "&compareRunsMode=CHART"
_BEST_FIRST = "&orderByKey=metrics.%60best%2Fwer%60&orderByAsc=true"


def without_credentials(uri: str) -> str:
    """`uri` as it may be printed: `https://user:password@host` loses what stands before the `@`."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def experiment_url(base_url: str, experiment_id: str, *, search_filter: str | None = None, charts: bool = True) -> str:
    """The experiment's training runs, those with the lowest best WER first, with charts of the first ten or as a table.

    `search_filter` is MLflow's search language, e.g. `tags.collapse = 'true'`.
    """
    url = f"{_page(base_url)}experiments/{experiment_id}/runs?{_TRAINING}{_CHARTS if charts else ''}{_BEST_FIRST}"
    return url if search_filter is None else f"{url}&searchFilter={quote(search_filter, safe='')}"


def view_url(base_url: str, experiment_id: str, view: str, *, charts: bool = True) -> str:
    """A view that is stored with the experiment (`tracking.views`), which brings its own filter and order."""
    url = f"{_page(base_url)}experiments/{experiment_id}/runs?{_TRAINING}{_CHARTS if charts else ''}"
    return f"{url}&viewStateShareKey={quote(view, safe='')}"


def run_url(base_url: str, experiment_id: str, run_id: str) -> str:
    """The page of one run."""
    return f"{_page(base_url)}experiments/{experiment_id}/runs/{run_id}?{_TRAINING}"


def artifacts_url(base_url: str, experiment_id: str, run_id: str, path: str = "") -> str:
    """The artifacts of a run, one of them opened if `path` names it."""
    place = f"/{quote(path)}" if path else ""
    return f"{_page(base_url)}experiments/{experiment_id}/runs/{run_id}/artifacts{place}?{_TRAINING}"


def artifact_source(run_id: str, path: str) -> str:
    """Where MLflow's page gets the content of an artifact from, relative to the page: for pictures in its texts."""
    return f"get-artifact?path={quote(path, safe='')}&run_uuid={run_id}"


def _page(base_url: str) -> str:
    return f"{without_credentials(base_url).rstrip('/')}/#/" if base_url else "#/"
