"""Addresses of MLflow's pages. Pure."""

from __future__ import annotations

from urllib.parse import quote, urlsplit, urlunsplit

# An experiment's plain address opens the GenAI overview; these open its training runs as charts, lowest WER first.
_CHARTS_BY_WER = (
    "workflowType=machine_learning&compareRunsMode=CHART&orderByKey=metrics.%60dev%2Fwer%60&orderByAsc=true"
)


def without_credentials(uri: str) -> str:
    """`uri` as it may be printed: `https://user:password@host` loses what stands before the `@`."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def experiment_url(base_url: str, experiment_id: str, *, search_filter: str | None = None) -> str:
    """The experiment's training runs with charts, sorted by WER.

    `search_filter` is MLflow's search language, e.g. `tags.collapse = 'true'`.
    """
    url = f"{_page(base_url)}experiments/{experiment_id}/runs?{_CHARTS_BY_WER}"
    return url if search_filter is None else f"{url}&searchFilter={quote(search_filter, safe='')}"


def run_url(base_url: str, experiment_id: str, run_id: str) -> str:
    """The page of one run."""
    return f"{_page(base_url)}experiments/{experiment_id}/runs/{run_id}"


def _page(base_url: str) -> str:
    return f"{without_credentials(base_url).rstrip('/')}/#/"
