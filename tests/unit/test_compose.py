"""docker-compose.yml starts MLflow with the settings of `tracking.server` and keeps it to this machine."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from tracking.server import server_settings

COMPOSE = Path(__file__).parents[2] / "docker-compose.yml"


@pytest.fixture
def mlflow() -> dict[str, Any]:
    services = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
    assert list(services) == ["mlflow"]
    service: dict[str, Any] = services["mlflow"]
    return service


def test_the_server_is_started_as_the_local_one_is(mlflow: dict[str, Any]) -> None:
    expected = server_settings(
        store="sqlite:////mlflow/mlflow.db", artifacts="/mlflow/mlartifacts", host="0.0.0.0", port=5000
    )
    assert mlflow["command"] == ["mlflow", *expected.arguments]
    assert mlflow["environment"] == expected.environment


def test_only_this_machine_reaches_it(mlflow: dict[str, Any]) -> None:
    assert mlflow["ports"] == ["127.0.0.1:5000:5000"]
    (allowed,) = [a for a in mlflow["command"] if a.startswith("--allowed-hosts=")]
    assert set(allowed.partition("=")[2].split(",")) == {"localhost:*", "127.0.0.1:*"}
    assert "network_mode" not in mlflow


def test_what_it_stores_survives_the_container(mlflow: dict[str, Any]) -> None:
    assert mlflow["volumes"] == ["mlflow:/mlflow"]
    assert "mlflow" in yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["volumes"]
    stores = [a.partition("=")[2].removeprefix("sqlite:///") for a in mlflow["command"][2:4]]
    assert all(store.startswith("/mlflow/") for store in stores)


def test_the_image_is_the_version_the_tests_ran_with(mlflow: dict[str, Any]) -> None:
    assert mlflow["image"] == f"ghcr.io/mlflow/mlflow:v{version('mlflow')}"


def test_it_follows_the_compose_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_schema_check_would_notice_a_mistake(tmp_path: Path) -> None:
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text(COMPOSE.read_text(encoding="utf-8").replace("    image:", "    imgae:"), encoding="utf-8")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(wrong)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "imgae" in result.stdout
