"""What the other services expect to find: the database's tables, and the workers' account in MLflow.

Done again it changes nothing, but for the account's password, which becomes that of the secret. Tables of an older
version are left alone: the error names the command that upgrades them, for a person who has made a copy.
"""

from __future__ import annotations

import os
import sys

import optuna
import requests

from sweeps.errors import DatabaseOutdated, SweepError
from sweeps.store import Store, alone, engine_options

ACCOUNT = "sweeps"
UPGRADE = "docker compose run --rm --no-deps api sweeps db upgrade"


def make_tables(database: str) -> None:
    """Ours and Optuna's: the dashboard may make none.

    Raises:
        DatabaseOutdated: they are there, and an older version's.
    """
    try:
        store = Store(database)
    except DatabaseOutdated as old:
        raise DatabaseOutdated(old.url, old.revision, old.needed, UPGRADE) from None
    store.close()
    with alone(store.url):
        optuna.storages.RDBStorage(store.url, engine_kwargs=engine_options(store.url)).engine.dispose()


def make_account(server: str, admin: tuple[str, str], password: str) -> None:
    """An account that owns the experiments it makes and administrates nothing."""
    account = {"username": ACCOUNT, "password": password}
    users = f"{server}/api/2.0/mlflow/users"
    answer = requests.post(f"{users}/create", json=account, auth=admin, timeout=30)
    if answer.status_code == 400 and answer.json().get("error_code") == "RESOURCE_ALREADY_EXISTS":
        answer = requests.patch(f"{users}/update-password", json=account, auth=admin, timeout=30)
    if answer.status_code == 401:
        raise SystemExit(
            "setup: MLflow refuses its admin: secrets/mlflow_admin_password.txt is not the password it has"
        )
    answer.raise_for_status()


def main() -> None:
    try:
        make_tables(os.environ["SWEEPS_DATABASE"])
    except SweepError as error:
        sys.exit(f"setup: {error}")
    admin = os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]
    make_account(os.environ["MLFLOW_TRACKING_URI"], admin, os.environ["MLFLOW_SWEEPS_PASSWORD"])
    print(f"setup: the tables are there, and MLflow has the account {ACCOUNT!r}")


if __name__ == "__main__":
    main()
