"""The services of docker-compose.yml as plain processes on loopback.

What a container engine would do is done by hand, and nothing else: a service's name leads to 127.0.0.1, its port is the
one that is published, paths of volumes, secrets and /opt/deploy lead to folders here, and the image's entry point runs
before the command. Signals go to the main process alone, as in a container; once that has ended, the rest is killed.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

from tests.deploy import postgres
from tests.deploy.compose import ROOT, Project, Service

PATIENT_SECONDS = 180.0


class CommandFailed(Exception):
    """A command of a container ended with another code than 0. The message has what it wrote."""


@dataclass
class Container:
    service: Service
    process: subprocess.Popen[bytes]
    folder: Path
    """Its working directory. It has to stay empty: in the container it is read-only."""
    log: Path

    def words(self) -> str:
        """The last of what it wrote."""
        return f"{self.service.name} wrote:\n" + self.log.read_text(encoding="utf-8", errors="replace")[-4000:]

    def stop(self) -> None:
        """As `docker stop`.

        Raises:
            AssertionError: it takes longer than the file allows.
        """
        tree = self._tree()
        self.process.send_signal(postgres.STOP_SIGNAL if self.service.name == "postgres" else signal.SIGTERM)
        try:
            self.process.wait(self.service.stop_seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not ended within {self.service.stop_seconds:.0f} s\n{self.words()}") from None
        finally:
            _kill(tree)

    def kill(self) -> None:
        """As `docker kill`: everything in it, at once."""
        _kill(self._tree())
        self.process.wait()

    def _tree(self) -> list[psutil.Process]:
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        if process.is_running():
            process.kill()
    psutil.wait_procs(processes, timeout=10)


@dataclass
class Site:
    """The containers, volumes and secrets of one project."""

    folder: Path
    """A short path that every user may enter: PostgreSQL does not run as root, and has its socket here."""
    project: Project
    variables: Mapping[str, str]
    """The settings of its .env."""
    running: list[Container] = field(default_factory=list)
    _completed: set[str] = field(default_factory=set)
    _started: int = 0

    def up(self, name: str) -> list[Container]:
        """Start what the service needs, then as many of it as the file says, and wait until all are well."""
        self._meet_needs(name)
        begun = [self.start(name) for _ in range(self.project.services[name].scale)]
        for container in begun:
            self.until_well(container)
        return begun

    def run(
        self,
        name: str,
        *command: str,
        needs: bool = True,
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes] | None = None,
    ) -> str:
        """`docker compose run --rm NAME COMMAND`; what it wrote to stdout.

        Args:
            needs: start what the service needs; otherwise `--no-deps`.

        Raises:
            CommandFailed: with what it wrote.
        """
        if needs:
            self._meet_needs(name)
        service = self.project.services[name]
        return self._call(service, self._command(service, command or service.command), stdin, stdout)

    def execute(self, name: str, *command: str, stdin: IO[bytes] | None = None, stdout: IO[bytes] | None = None) -> str:
        """`docker compose exec NAME COMMAND`, in a container that runs: without the entry point.

        Raises:
            CommandFailed: with what it wrote.
        """
        assert self.containers(name), f"{name} does not run"
        service = self.project.services[name]
        return self._call(service, [self.here(word, service) for word in command], stdin, stdout)

    def set_up_again(self) -> None:
        """The next `up` runs once more what runs once, as each `docker compose up` does."""
        self._completed.clear()

    def start(self, name: str) -> Container:
        """Start one container, whatever it needs."""
        service, self._started = self.project.services[name], self._started + 1
        environment, user = self._environment(service), None
        command = self._command(service, service.command)
        if name == "postgres":
            data, user = self._volume("postgres"), postgres.user()
            if not (data / "PG_VERSION").exists():
                scripts = [what for where, what in service.mounts.items() if "/docker-entrypoint-initdb.d/" in where]
                postgres.initialise(data, [ROOT / script for script in scripts], environment)
            command = postgres.command(service.command, data, self._port(service))
        folder, log = self._working_folder(), self.folder / f"{self._started}-{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env=environment,
                cwd=folder,
                user=user,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        container = Container(service, process, folder, log)
        self.running.append(container)
        return container

    def containers(self, name: str) -> list[Container]:
        return [each for each in self.running if each.service.name == name and each.process.poll() is None]

    def restart(self, container: Container, end: Callable[[Container], None]) -> Container:
        """End it in that way, start its service again, and wait until that is well."""
        end(container)
        self.running.remove(container)
        begun = self.start(container.service.name)
        self.until_well(begun)
        return begun

    def address(self, name: str) -> str:
        """Where the service listens: host and port."""
        return f"127.0.0.1:{self._port(self.project.services[name])}"

    def secret(self, name: str) -> str:
        return Path(self.project.secrets[name]).read_text(encoding="utf-8")

    def here(self, text: str, service: Service) -> str:
        """A text of this service, with its addresses and paths as they are on this machine."""
        for other in self.project.services.values():
            if other.published is not None:
                text = re.sub(rf"\b{other.name}:{other.published.inside}\b", self.address(other.name), text)
        if service.published is not None:
            text = re.sub(rf"(?<=[:=]){service.published.inside}\b", str(self._port(service)), text)
        places = {where: self._mounted(what) for where, what in service.mounts.items()}
        places |= {f"/run/secrets/{name}": Path(self.project.secrets[name]) for name in service.secrets}
        places["/opt/deploy"] = self._deploy()
        for where, path in places.items():
            text = re.sub(rf"(?<![\w/]){re.escape(where)}(?![\w-])", path.as_posix(), text)
        return text.replace("0.0.0.0", "127.0.0.1")

    def close(self) -> None:
        """End everything, what was started first last."""
        for container in reversed(self.running):
            if container.process.poll() is None:
                container.kill()

    def _meet_needs(self, name: str) -> None:
        for needed, condition in self.project.services[name].needs.items():
            if condition == "service_healthy":
                if not self.containers(needed):
                    self.up(needed)
            elif needed not in self._completed:
                assert condition == "service_completed_successfully"
                self.run(needed)
                self._completed.add(needed)

    def until_well(self, container: Container) -> None:
        """
        Raises:
            AssertionError: it ended, or its health check fails for too long; the message has what it wrote last.
        """
        check = [self.here(word, container.service) for word in container.service.healthcheck]
        deadline = time.monotonic() + PATIENT_SECONDS
        while True:
            assert container.process.poll() is None, f"ended with {container.process.poll()}\n{container.words()}"
            with suppress(CommandFailed):
                self._call(container.service, check)
                return
            assert time.monotonic() < deadline, f"not well within {PATIENT_SECONDS:.0f} s\n{container.words()}"
            time.sleep(0.5)

    def _call(
        self,
        service: Service,
        command: Sequence[str],
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes] | None = None,
    ) -> str:
        environment = self._environment(service)
        if service.name == "postgres":  # where programs find it there is no other
            environment |= {"PGHOST": str(self._volume("postgres")), "PGPORT": str(self._port(service))}
        ended = subprocess.run(
            command,
            env=environment,
            cwd=self._working_folder(),
            stdin=stdin or subprocess.DEVNULL,
            stdout=stdout or subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            timeout=PATIENT_SECONDS,
            check=False,
        )
        if ended.returncode:
            raise CommandFailed(f"{service.name} ended with {ended.returncode}\n{ended.stdout}\n{ended.stderr}")
        return ended.stdout or ""

    def _command(self, service: Service, command: Sequence[str]) -> list[str]:
        return [self.here(word, service) for word in ("sh", "/opt/deploy/entrypoint.sh", *command)]

    def _environment(self, service: Service) -> dict[str, str]:
        """Nothing of this process's own."""
        programs = [str(Path(sys.executable).parent), str(postgres.BIN), os.defpath]
        temporary = self.folder / "tmp"
        temporary.mkdir(exist_ok=True)
        around = {
            "PATH": os.pathsep.join(programs),
            "HOME": str(temporary),
            "TMPDIR": str(temporary),
            "LANG": "C.UTF-8",
        }
        return around | {name: self.here(value, service) for name, value in service.environment.items()}

    def _port(self, service: Service) -> int:
        assert service.published is not None, f"{service.name} publishes no port"
        return service.published.port

    def _mounted(self, what: str) -> Path:
        return ROOT / what if "/" in what else self._volume(what)

    def _volume(self, name: str) -> Path:
        folder = self.folder / "volumes" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _working_folder(self) -> Path:
        folder = self.folder / "work" / str(len(list((self.folder / "work").glob("*"))))
        folder.mkdir(parents=True)
        return folder

    def _deploy(self) -> Path:
        """What the image has in /opt/deploy, with addresses as they are here."""
        copy = self.folder / "deploy"
        if not copy.exists():
            shutil.copytree(ROOT / "deploy", copy)
            settings, mlflow = copy / "mlflow-auth.ini", self.project.services["mlflow"]
            settings.write_text(self.here(settings.read_text(encoding="utf-8"), mlflow), encoding="utf-8")
        return copy
