"""From nothing to a sweep that is done, by the commands and settings of docker-compose.yml: make compose-smoke.

The tests of this file are one story, told in order.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests

from tests.deploy import compose
from tests.deploy.howto import follow
from tests.deploy.site import PATIENT_SECONDS, CommandFailed, Container, Site

pytestmark = [
    pytest.mark.compose,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform == "win32", reason="the entry point is a shell script"),
]

SPEC = {
    "name": "smoke",
    "corpus": {"path": "tiny"},
    "trainer": {"epochs": 3, "hidden": 16, "channels": 16, "batch_size": 8},
    "first_trials": {
        "original": {"learning_rate": 1e-4, "dropout": 0.1},
        "fixed": {"learning_rate": 5e-4, "dropout": 0.1},
    },
    "space": {"learning_rate": {"low": 1e-4, "high": 1e-3, "log": True}},
    "pruner": {"name": "none"},
    "on_alarm": "continue",
    "budget": {"trials": 6},
}
ACCOUNT = "sweeps"
EXPERIMENTS = "api/2.0/mlflow/experiments/search?max_results=5"


@contextmanager
def new_site(variables: Mapping[str, str]) -> Iterator[Site]:
    """A host with nothing on it but docker-compose.yml and these settings of .env."""
    folder = Path(tempfile.mkdtemp(prefix="site"))
    folder.chmod(0o755)
    places = {"SWEEPS_CORPORA": f"{folder}/corpora", "SWEEPS_SECRETS": f"{folder}/secrets"}
    site = Site(folder, compose.read({**variables, **places}), variables)
    try:
        yield site
    finally:
        site.close()
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """One with secrets, a .env and a corpus, made as the how-to does; nothing runs yet."""
    example = compose.ROOT / ".env.example"
    ports = {f"{name}_PORT": free_port() for name in ("SWEEPS", "MLFLOW", "DASHBOARD", "POSTGRES")}
    variables = compose.variables_of(example)
    assert ports.keys() <= variables.keys()
    with new_site({**variables, **ports, "SWEEPS_WORKERS": "2"}) as site:
        shutil.copy(example, site.folder / ".env")
        subprocess.run(["sh", compose.ROOT / "deploy" / "make-secrets.sh"], cwd=site.folder, check=True)
        small = ["--train", "24", "--dev", "24", "--glosses", "8"]
        corpus = [sys.executable, "-m", "model", "generate", str(site.folder / "corpora" / "tiny"), *small]
        subprocess.run(corpus, cwd=compose.ROOT, check=True)
        yield site


@pytest.fixture(scope="module")
def token(site: Site) -> str:
    """The first operator's, made before anything else runs."""
    told = site.run("api", "sweeps", "token", "create", "first", "--scope", "operate", "--json")
    found: str = json.loads(told.splitlines()[-1])["token"]
    return found


@pytest.fixture(scope="module")
def api(site: Site, token: str) -> Api:
    for name in ("api", "worker", "dashboard"):
        site.up(name)
    return Api(f"http://{site.address('api')}", token)


class Api:
    """The service, asked with a token."""

    def __init__(self, address: str, token: str) -> None:
        self.address = address
        self.headers = {"Authorization": f"Bearer {token}"}

    def __call__(self, method: str, path: str, **body: Any) -> Any:
        answer = requests.request(
            method, f"{self.address}/v1{path}", headers=self.headers, json=body or None, timeout=60
        )
        assert answer.ok, answer.text
        return answer.json()


def test_postgres_does_not_begin_with_a_password_missing(site: Site) -> None:
    with new_site(site.variables) as other:
        shutil.copytree(site.folder / "secrets", other.folder / "secrets")
        (other.folder / "secrets" / "dashboard_database_password.txt").unlink()
        with pytest.raises(subprocess.CalledProcessError) as failed:
            other.start("postgres")
        assert "a database password is empty or cannot be read" in failed.value.stderr
        log = other.folder / "volumes" / "postgres" / "first.log"
        assert other.secret("sweeps_database_password") not in log.read_text(encoding="utf-8")


def test_the_api_does_not_start_while_nobody_has_a_token(site: Site) -> None:
    with pytest.raises(CommandFailed, match="sweeps token create"):
        site.run("api")


def test_a_sweep_that_comes_over_http_is_trained_by_two_workers(site: Site, api: Api) -> None:
    refused = requests.post(f"{api.address}/v1/sweeps", json={"spec": SPEC}, timeout=60)
    assert refused.status_code == 401
    assert api("POST", "/sweeps", spec=SPEC)["new"]
    until(lambda: state(api) == "COMPLETE", site)
    trials = api("GET", "/sweeps/smoke/trials")
    assert [trial["state"] for trial in trials] == ["COMPLETE"] * 6
    assert len({trial["worker"] for trial in trials}) == 2


def test_its_curves_are_in_mlflow_and_mlflow_asks_who_wants_to_see_them(site: Site, api: Api) -> None:
    check_mlflow_has_all(site, api)
    experiments = f"http://{site.address('mlflow')}/{EXPERIMENTS}"
    assert requests.get(experiments, timeout=10).status_code == 401
    assert requests.get(experiments, auth=(ACCOUNT, "wrong"), timeout=10).status_code == 401
    users = f"http://{site.address('mlflow')}/api/2.0/mlflow/users"
    known = {"username": ACCOUNT, "password": "a password of somebody else"}
    answer = requests.patch(f"{users}/update-admin", json={"username": ACCOUNT, "is_admin": True}, auth=mlflow(site))
    assert answer.status_code == 403, "the workers' account made itself an administrator"
    answer = requests.post(f"{users}/create", json=known | {"username": "else"}, auth=mlflow(site), timeout=10)
    assert answer.status_code == 403, "the workers' account made another"


def test_only_the_names_in_the_file_lead_to_mlflow_and_the_api(site: Site, api: Api) -> None:
    mlflow_page, api_page = f"http://{site.address('mlflow')}/{EXPERIMENTS}", f"{api.address}/v1/sweeps"
    for host, status in (("mlflow:5000", 200), ("localhost:5000", 200), ("evil.example", 403)):
        assert requests.get(mlflow_page, headers={"Host": host}, auth=mlflow(site), timeout=10).status_code == status
    for host, status in (("localhost", 200), ("evil.example", 421)):
        assert requests.get(api_page, headers=api.headers | {"Host": host}, timeout=10).status_code == status


def test_tokens_are_made_listed_and_revoked_as_the_page_says(site: Site, api: Api) -> None:
    made, listed, revoked = follow(site, "deploy.md", "Tokens")
    assert "ANNA: read, good until 20" in listed
    assert made.strip() not in listed
    assert revoked == "token ANNA is revoked\n"
    headers = {"Authorization": f"Bearer {made.strip()}"}
    assert requests.get(f"{api.address}/v1/sweeps", headers=headers, timeout=10).status_code == 401


def test_the_dashboard_shows_the_study_and_cannot_write(site: Site) -> None:
    studies = f"http://{site.address('dashboard')}/api/studies"
    until(lambda: dashboard_shows(site) == 6, site)
    (study,) = requests.get(studies, timeout=10).json()["study_summaries"]
    made = requests.post(studies, json={"study_name": "mine", "directions": ["minimize"]}, timeout=10)
    deleted = requests.delete(f"{studies}/{study['study_id']}", json={}, timeout=10)
    noted = requests.put(f"{studies}/{study['study_id']}/note", json={"body": "x", "version": 1}, timeout=10)
    assert {made.status_code, deleted.status_code, noted.status_code} == {500}
    log = site.containers("postgres")[0].log.read_text(encoding="utf-8")
    assert log.count("permission denied for table") >= 3, "something else went wrong than what should"
    assert dashboard_shows(site) == 6


def test_roles_of_the_database_can_do_what_they_are_for_and_no_more(site: Site) -> None:
    def connect(role: str, database: str, password: str) -> psycopg.Connection[Any]:
        return psycopg.connect(f"postgresql://{role}@{site.address('postgres')}/{database}", password=password)

    secret = site.secret("dashboard_database_password")
    with connect("dashboard", "sweeps", secret) as connection:
        assert connection.execute("SELECT count(*) FROM sweep_trials, studies").fetchone() == (6,)
    for statement in (
        "DELETE FROM trials",
        "UPDATE studies SET study_name = 'mine'",
        "INSERT INTO studies (study_name) VALUES ('mine')",
        "DELETE FROM sweep_sweeps",
        "CREATE TABLE mine (id int)",
        "CREATE TEMPORARY TABLE mine (id int)",
        "SET ROLE sweeps",
    ):
        with connect("dashboard", "sweeps", secret) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement)
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        connect("dashboard", "mlflow", secret)
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        connect("sweeps", "mlflow", site.secret("sweeps_database_password"))
    for role in ("sweeps", "mlflow", "dashboard", "postgres"):
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            connect(role, "postgres", "wrong")


def test_every_process_ends_and_comes_back_while_a_sweep_runs(site: Site, api: Api) -> None:
    api("POST", "/sweeps/smoke/resume", trials=12)
    until(lambda: any(trial["state"] == "RUNNING" for trial in api("GET", "/sweeps/smoke/trials")), site)
    killed, asked = site.containers("worker")
    site.restart(killed, Container.kill)
    site.restart(asked, Container.stop)
    for name in ("api", "dashboard", "mlflow", "postgres"):
        (container,) = site.containers(name)
        site.restart(container, Container.stop)
    for container in site.running:  # the dashboard's first answer after its database was away is an error
        site.until_well(container)
    until(lambda: state(api) == "COMPLETE", site)
    check_all_twelve(site, api)


def test_a_back_up_is_restored_as_the_page_says(site: Site, api: Api) -> None:
    follow(site, "back-up.md", "Back up")
    site.close()
    with new_site(site.variables) as other:
        for mine in ("backup", "corpora"):
            shutil.copytree(site.folder / mine, other.folder / mine)
        follow(other, "back-up.md", "Restore")
        check_all_twelve(other, api)
        follow(other, "back-up.md", "Only MLflow is lost")
        check_all_twelve(other, api)


def check_all_twelve(site: Site, api: Api) -> None:
    trials = api("GET", "/sweeps/smoke/trials")
    assert [trial["number"] for trial in trials] == list(range(12))
    assert [trial["state"] for trial in trials] == ["COMPLETE"] * 12
    check_mlflow_has_all(site, api)
    until(lambda: dashboard_shows(site) == 12, site)


def test_nothing_was_written_where_a_container_cannot_write(site: Site) -> None:
    assert [file for folder in (site.folder / "work").iterdir() for file in folder.iterdir()] == []


def test_no_log_has_a_secret(site: Site, token: str) -> None:
    secrets = {name: site.secret(name) for name in site.project.secrets} | {"token": token}
    logs = {log.name: log.read_text(encoding="utf-8", errors="replace") for log in site.folder.glob("*.log")}
    assert len(logs) >= 12
    assert [(log, name) for log, text in logs.items() for name, secret in secrets.items() if secret in text] == []


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def state(api: Api) -> str:
    found: str = api("GET", "/sweeps/smoke")["sweep"]["state"]
    return found


def until(what: Callable[[], Any], site: Site) -> None:
    """Poll until it is true.

    Raises:
        AssertionError: too late; the message has what every container wrote last.
    """
    deadline = time.monotonic() + PATIENT_SECONDS
    while not what():
        words = "\n".join(container.words() for container in site.running)
        assert time.monotonic() < deadline, f"not seen within {PATIENT_SECONDS:.0f} s\n{words}"
        time.sleep(0.5)


def mlflow(site: Site) -> tuple[str, str]:
    return ACCOUNT, site.secret("mlflow_sweeps_password")


def check_mlflow_has_all(site: Site, api: Api) -> None:
    """One run a trial, finished, with every epoch once."""

    def ask(path: str, **body: Any) -> Any:
        address, method = f"http://{site.address('mlflow')}/api/2.0/mlflow/{path}", "POST" if body else "GET"
        answer = requests.request(method, address, json=body or None, auth=mlflow(site), timeout=30)
        assert answer.ok, answer.text
        return answer.json()

    def runs() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = ask("runs/search", experiment_ids=[experiment], max_results=100).get("runs", [])
        return found

    until(lambda: all(trial["run_id"] for trial in api("GET", "/sweeps/smoke/trials")), site)
    experiment = ask("experiments/get-by-name?experiment_name=smoke")["experiment"]["experiment_id"]
    trials = {trial["run_id"]: trial["number"] for trial in api("GET", "/sweeps/smoke/trials")}
    until(lambda: {run["info"]["status"] for run in runs()} == {"FINISHED"}, site)
    assert sorted(run["info"]["run_id"] for run in runs()) == sorted(trials)
    for run, number in trials.items():
        points = ask(f"metrics/get-history?run_id={run}&metric_key=dev/wer")["metrics"]
        curve = api("GET", f"/sweeps/smoke/trials/{number}/curve")
        stored = [(epoch["epoch"], epoch["metrics"]["dev/wer"]) for epoch in curve]
        assert stored
        assert sorted((point["step"], point["value"]) for point in points) == stored


def dashboard_shows(site: Site) -> int:
    """How many trials of the study it has."""
    studies = f"http://{site.address('dashboard')}/api/studies"
    (study,) = requests.get(studies, timeout=10).json()["study_summaries"]
    assert study["study_name"] == "smoke"
    return len(requests.get(f"{studies}/{study['study_id']}", timeout=10).json()["trials"])
