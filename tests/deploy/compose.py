"""docker-compose.yml as Compose would read it: variables filled in, a value for each service."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
_VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\})")


class Published(NamedTuple):
    host: str
    """The interface of this machine."""
    port: int
    inside: int
    """The port in the container."""


@dataclass(frozen=True)
class Service:
    """What a container would be started with."""

    name: str
    image: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    secrets: tuple[str, ...]
    mounts: Mapping[str, str]
    """Path in the container to the volume's name or the path on the host."""
    published: Published | None
    needs: Mapping[str, str]
    """Service to the condition it must be in first."""
    healthcheck: tuple[str, ...]
    """A command of the container that succeeds when it is well."""
    stop_seconds: float
    scale: int


@dataclass(frozen=True)
class Project:
    services: Mapping[str, Service]
    secrets: Mapping[str, str]
    """Name to file."""


def read(variables: Mapping[str, str]) -> Project:
    """docker-compose.yml with these variables, and its defaults for all others."""
    content = _filled(yaml.safe_load(COMPOSE.read_text(encoding="utf-8")), variables)
    services = {name: _service(name, each) for name, each in content["services"].items()}
    return Project(services, {name: each["file"] for name, each in content["secrets"].items()})


def variables_of(file: Path) -> dict[str, str]:
    """The settings of a .env file."""
    lines = (line.partition("=") for line in file.read_text(encoding="utf-8").splitlines())
    return {name: value for name, equals, value in lines if equals and not name.startswith("#")}


def variables_used() -> dict[str, set[str]]:
    """Each variable that docker-compose.yml asks for, to the defaults it names there."""
    used: dict[str, set[str]] = {}
    for text in _texts(yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))):
        for found in _VARIABLE.finditer(text):
            if found["name"]:
                used.setdefault(found["name"], set()).add(found["default"])
    return used


def _filled(value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(each, variables) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, variables) for each in value]
    if isinstance(value, str):
        return _VARIABLE.sub(lambda m: (variables.get(m["name"]) or m["default"] or "") if m["name"] else "$", value)
    return value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)
    elif isinstance(value, str):
        yield value


def _service(name: str, content: Mapping[str, Any]) -> Service:
    mounts = [volume.split(":") for volume in content.get("volumes", ())]
    ports = [port.split(":") for port in content.get("ports", ())]
    check = content.get("healthcheck", {}).get("test", ["CMD"])
    assert check[0] == "CMD", f"{name}: a health check through a shell"
    return Service(
        name=name,
        image=content["image"],
        command=tuple(content["command"]),
        environment=dict(content.get("environment", {})),
        secrets=tuple(content.get("secrets", ())),
        mounts={where: what for what, where, *_ in mounts},
        published=next((Published(host, int(port), int(inside)) for host, port, inside in ports), None),
        needs={needed: how["condition"] for needed, how in content.get("depends_on", {}).items()},
        healthcheck=tuple(check[1:]),
        stop_seconds=float(content["stop_grace_period"].removesuffix("s")),
        scale=int(content.get("scale", 1)),
    )
