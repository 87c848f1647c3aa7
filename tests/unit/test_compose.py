"""docker-compose.yml starts what the code expects, keeps it to this machine, and gives nobody more than they need."""

from __future__ import annotations

import re
import runpy
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

import tests.deploy.postgres
from sweeps.errors import DatabaseOutdated
from tests.deploy import compose
from tests.deploy.compose import COMPOSE, ROOT
from tracking.server import server_settings

CONTENT: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = CONTENT["services"]
SECRETS: set[str] = set(CONTENT["secrets"])
DEPLOY = ROOT / "deploy"
OURS = [name for name in SERVICES if name != "postgres"]

each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=list(SERVICES))
each_of_ours = pytest.mark.parametrize("service", [SERVICES[name] for name in OURS], ids=OURS)


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def hosts(words: list[str]) -> set[str]:
    (allowed,) = [word for word in words if word.startswith("--allowed-hosts=")]
    return set(allowed.partition("=")[2].split(","))


# MLflow


def test_mlflow_is_started_as_the_local_server_is_and_asks_for_passwords() -> None:
    database, folder = "postgresql+psycopg://mlflow@postgres:5432/mlflow", "/var/lib/mlflow/artifacts"
    expected = server_settings(store=database, artifacts=folder, host="0.0.0.0", port=5000)
    service = compose.read({}).services["mlflow"]
    (cors,) = [word for word in service.command if word.startswith("--cors-allowed-origins=")]
    words = [word for word in service.command if word not in (cors, "--app-name=basic-auth")]
    assert len(words) == len(service.command) - 2
    assert cors == "--cors-allowed-origins=https://localhost"
    assert hosts(words) == hosts(list(expected.arguments)) | {"mlflow:*", "localhost"}
    assert [word.partition("--allowed-hosts=")[0] for word in words] == [
        word.partition("--allowed-hosts=")[0] for word in ("mlflow", *expected.arguments)
    ]
    assert expected.environment.items() <= service.environment.items()


def test_mlflow_remembers_whose_password_was_right() -> None:
    settings = text_of("deploy/mlflow-auth.ini")
    assert re.search(r"^auth_cache_ttl_seconds = 60$", settings, re.MULTILINE)
    assert "database_uri = postgresql+psycopg://mlflow@postgres:5432/mlflow\n" in settings
    assert "admin_password" not in settings


# What faces the network, and as whom


@each_service
def test_only_this_machine_reaches_it(service: dict[str, Any]) -> None:
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert service.keys().isdisjoint({"network_mode", "networks", "privileged", "pid", "ipc", "cap_add"})


@each_service
def test_it_has_no_rights_that_it_does_not_need(service: dict[str, Any]) -> None:
    assert service["user"] not in ("root", "0", "0:0")
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"]
    assert not any("docker.sock" in volume for volume in service.get("volumes", ()))


@each_of_ours
def test_it_sends_nothing_home(service: dict[str, Any]) -> None:
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "RAY_USAGE_STATS_ENABLED": "0"}
    assert quiet.items() <= service["environment"].items()


def test_the_api_wants_a_token_and_reads_corpora_in_their_folder_alone() -> None:
    words = SERVICES["api"]["command"]
    assert words[:2] == ["sweeps", "serve"]
    assert {"--require-token", "--corpus-root=/corpora"} <= set(words)
    for name in ("api", "worker"):
        assert "${SWEEPS_CORPORA:-./corpora}:/corpora:ro" in SERVICES[name]["volumes"]


# Secrets


@each_service
def test_secrets_come_as_files(service: dict[str, Any]) -> None:
    for name, value in service["environment"].items():
        if re.search("PASSWORD|SECRET|TOKEN|KEY", name):
            assert name.endswith("_FILE")
            assert value.removeprefix("/run/secrets/") in service["secrets"]
    named = {value.removeprefix("/run/secrets/") for value in service["environment"].values()}
    assert set(service["secrets"]) <= named, "a secret that it has no use for"


@each_of_ours
def test_the_entry_point_reads_every_secret_file(service: dict[str, Any]) -> None:
    (listed,) = re.findall(r"^for name in (.*?); do$", text_of("deploy/entrypoint.sh"), re.MULTILINE | re.DOTALL)
    files = {name.removesuffix("_FILE") for name in service["environment"] if name.endswith("_FILE")}
    assert files <= set(listed.replace("\\", "").split())


def test_nobody_but_postgres_has_its_superuser() -> None:
    assert [name for name, service in SERVICES.items() if "postgres_password" in service["secrets"]] == ["postgres"]
    assert SERVICES["dashboard"]["secrets"] == ["dashboard_database_password"]
    assert "mlflow_admin_password" not in SERVICES["api"]["secrets"] + SERVICES["worker"]["secrets"]


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_the_secrets_that_are_made_are_those_of_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "my secrets"
    make = ["sh", DEPLOY / "make-secrets.sh", folder]
    subprocess.run(make, check=True)
    made = {file.stem: file.read_text(encoding="utf-8") for file in folder.iterdir()}
    assert made.keys() == SECRETS
    assert len(set(made.values())) == len(made)
    assert {len(secret) for secret in made.values()} == {48}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o444}
    subprocess.run(make, check=True)
    assert {file.stem: file.read_text(encoding="utf-8") for file in folder.iterdir()} == made, "a secret was replaced"


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_the_entry_point_takes_secrets_from_files_and_refuses_without(tmp_path: Path) -> None:
    file = tmp_path / "a secret"
    show = [sys.executable, "-c", "import os; print(os.environ['PGPASSWORD'], 'PGPASSWORD_FILE' in os.environ)"]

    def run() -> subprocess.CompletedProcess[str]:
        environment = {"PATH": "/usr/bin:/bin", "PGPASSWORD_FILE": str(file)}
        command = ["sh", DEPLOY / "entrypoint.sh", *show]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    for content in (None, ""):
        if content is not None:
            file.write_text(content, encoding="utf-8")
        ended = run()
        assert (ended.returncode, ended.stdout) == (1, "")
        assert f"PGPASSWORD_FILE is {file}, which is empty or cannot be read" in ended.stderr
    file.write_text("$(id) 'x\" *\n", encoding="utf-8")
    ended = run()
    assert (ended.returncode, ended.stdout) == (0, "$(id) 'x\" * False\n"), ended.stderr


# Setup


def test_setup_makes_the_tables_and_leaves_older_ones_to_a_person(tmp_path: Path) -> None:
    file = tmp_path / "sweeps.db"
    make_tables = runpy.run_path(str(DEPLOY / "setup.py"))["make_tables"]
    for _ in range(2):
        make_tables(f"sqlite:///{file.as_posix()}")
    with closing(sqlite3.connect(file)) as connection:
        made = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert {"sweep_trials", "sweep_tokens", "studies", "trials"} <= made
        connection.execute("UPDATE sweep_alembic_version SET version_num = '0003'")
        connection.commit()
    with pytest.raises(DatabaseOutdated, match="run `docker compose run --rm --no-deps api sweeps db upgrade`"):
        make_tables(f"sqlite:///{file.as_posix()}")


# What lasts, and what is pinned


def test_what_is_stored_survives_the_containers() -> None:
    kept = {volume.partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())}
    assert set(CONTENT["volumes"]) == {"postgres", "mlflow", "sweeps"} <= kept
    assert "postgres:/var/lib/postgresql" in SERVICES["postgres"]["volumes"]
    assert "mlflow:/var/lib/mlflow" in SERVICES["mlflow"]["volumes"]
    assert "sweeps:/var/lib/sweeps" in SERVICES["worker"]["volumes"]
    made = next(line for line in text_of("Dockerfile").splitlines() if "install --directory --owner" in line)
    assert {"/var/lib/sweeps", "/var/lib/mlflow"} <= set(made.split()), "else a new volume is root's"


def test_all_is_started_again_but_the_setup() -> None:
    again = {name: service["restart"] for name, service in SERVICES.items()}
    assert again.pop("setup") == "no"
    assert set(again.values()) == {"unless-stopped"}
    assert [name for name, service in SERVICES.items() if "healthcheck" not in service] == ["setup"]


def test_postgres_is_the_version_the_tests_ran_with() -> None:
    assert re.fullmatch(rf"postgres:{re.escape(tests.deploy.postgres.version())}-\w+", SERVICES["postgres"]["image"])


def test_the_image_is_of_this_version_on_a_python_that_is_pinned() -> None:
    pinned = re.search(r'^version = "(.+)"$', text_of("pyproject.toml"), re.MULTILINE)
    assert pinned is not None
    assert {SERVICES[name]["image"] for name in OURS} == {f"ctc-sweeps:{pinned[1]}"}
    (base,) = re.findall(r"^FROM (.+)$", text_of("Dockerfile"), re.MULTILINE)
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", base)


def test_the_image_runs_as_the_user_of_the_file_through_the_entry_point() -> None:
    lines = text_of("Dockerfile").splitlines()
    assert {f"USER {SERVICES[name]['user']}" for name in OURS} == {line for line in lines if line.startswith("USER")}
    assert 'ENTRYPOINT ["sh", "/opt/deploy/entrypoint.sh"]' in lines
    assert "COPY deploy /opt/deploy" in lines


def test_the_build_sees_only_what_the_image_copies() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", text_of("Dockerfile"), re.MULTILINE)
    seen = [line for line in text_of(".dockerignore").splitlines() if not line.startswith("#")]
    assert seen[0] == "*"
    assert {line[1:] for line in seen if line.startswith("!")} == {name for names in copied for name in names.split()}


# Settings


def test_every_setting_is_in_the_example_with_its_default() -> None:
    used = compose.variables_used()
    assert all(len(defaults) == 1 for defaults in used.values()), "two defaults for one setting"
    assert compose.variables_of(ROOT / ".env.example") == {name: default for name, (default,) in used.items()}


def test_it_follows_the_compose_schema() -> None:
    result = checked(COMPOSE)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_schema_check_would_notice_a_mistake(tmp_path: Path) -> None:
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text(text_of("docker-compose.yml").replace("    healthcheck:", "    heathcheck:"), encoding="utf-8")
    result = checked(wrong)
    assert result.returncode == 1
    assert "heathcheck" in result.stdout


def checked(file: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)
