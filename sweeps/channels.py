"""How somebody is told: by webhook, e-mail or a command of this machine, as its notify.yaml says.

Who keeps a sweep decides whom it tells: no spec and no request names an address or a command. Secrets stand in the
environment, and nowhere else: the file names them as `${NAME}`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import smtplib
import ssl
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from email.message import EmailMessage
from email.utils import parseaddr
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sweeps.errors import CannotTell, SpecError, SweepError
from sweeps.notifying import NEWS, News
from sweeps.spec import NAME, explained, text_of

LOOPBACK = ("localhost", "127.0.0.1", "::1")
PORTS = {"starttls": 587, "ssl": 465, "none": 25}

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SECRET_HEADER = re.compile(r"auth|token|key|secret|cookie|password|signature", re.IGNORECASE)
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_TOKEN_LENGTH = 16


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Email(_Section):
    """A mailbox, and the server that takes mail for it."""

    host: str
    port: int | None = Field(None, ge=1, le=65_535, description="default: 587, with ssl 465, with none 25")
    security: Literal["starttls", "ssl", "none"] = Field("starttls", description="none: to this machine alone")
    user: str | None = None
    password: str | None = Field(None, description="${NAME}, a variable of the environment")
    sender: str
    to: tuple[str, ...] = Field(min_length=1, max_length=50)

    @field_validator("to", mode="before")
    @classmethod
    def _one_alone(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("to", "sender")
    @classmethod
    def _addresses(cls, value: Any) -> Any:
        for each in [value] if isinstance(value, str) else value:
            if not re.fullmatch(r"[^@\s]+@[^@\s]+", parseaddr(each)[1]) or not each.isprintable():
                raise ValueError(f"{each!r}: is no address; write name@host")
        return value

    @field_validator("password")
    @classmethod
    def _no_literal(cls, value: str | None) -> str | None:
        if value is not None and not _VARIABLE.fullmatch(value):
            raise ValueError("a password does not belong in a file; write ${SMTP_PASSWORD}, and set that variable")
        return value

    @model_validator(mode="after")
    def _in_private(self) -> Email:
        if self.security == "none" and self.host not in LOOPBACK:
            raise ValueError(
                f"security: none sends in the clear, and {self.host} is another machine; use starttls, ssl"
            )
        if (self.user is None) != (self.password is None):
            raise ValueError("user and password go together; give both, or none")
        return self


class Channel(_Section):
    """One way to somebody: a webhook, an e-mail or a command."""

    webhook: str | None = Field(None, description="address that gets the message by POST, as JSON")
    headers: dict[str, str] = Field(default_factory=dict, max_length=20, description="of the webhook's request")
    email: Email | None = None
    command: tuple[str, ...] | None = Field(None, min_length=1, description="words; it gets the message on stdin")
    on: tuple[News, ...] = Field(NEWS, min_length=1, description="what is told")
    sweeps: tuple[str, ...] = Field(("*",), min_length=1, description="names of sweeps; * stands for anything")
    timeout_seconds: float = Field(10.0, gt=0, le=120, description="that one try may take")

    @field_validator("on", "sweeps", mode="before")
    @classmethod
    def _one_alone(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("webhook")
    @classmethod
    def _an_address(cls, url: str | None) -> str | None:
        if url is not None:
            if not _VARIABLE.match(url):
                _check_address(url, secret=bool(_VARIABLE.search(url)))
            _check_no_token(url, "a webhook's address")
        return url

    @field_validator("headers")
    @classmethod
    def _no_secrets(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if not _HEADER_NAME.fullmatch(name) or not value.isprintable():
                raise ValueError(f"{name!r}: is no header of one line")
            if _SECRET_HEADER.search(name) and not _VARIABLE.search(value):
                raise ValueError(f"{name}: a secret does not belong in a file; write ${{NAME}}, and set that variable")
            _check_no_token(value, name)
        return headers

    @field_validator("command", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError(f"{value!r}: no shell reads it; write a list of words: [python, tell.py]")
        if isinstance(value, Sequence) and any(_VARIABLE.search(str(word)) for word in value):
            raise ValueError("everybody here can read a command's words; it has the environment itself: read it there")
        return value

    @model_validator(mode="after")
    def _one_way(self) -> Channel:
        given = [name for name in ("webhook", "email", "command") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"name one of webhook, email and command, not {' and '.join(given) or 'none of them'}")
        if self.headers and self.webhook is None:
            raise ValueError("headers: only a webhook has them; take them out")
        return self

    def hears(self, kinds: Sequence[str], sweep: str) -> bool:
        return any(kind in self.on for kind in kinds) and any(fnmatchcase(sweep, each) for each in self.sweeps)

    @property
    def variables(self) -> list[str]:
        """The variables of the environment that it takes."""
        texts = [self.webhook or "", *self.headers.values(), self.email.password or "" if self.email else ""]
        return [name for text in texts for name in _VARIABLE.findall(text)]


def _check_address(url: str, *, secret: bool) -> None:
    parts = urlsplit(url)
    shown = f"{parts.scheme}://{parts.hostname or ''}"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{shown}: write https://HOST/..., or a variable that holds it")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"{shown}: no user and password in an address; write a header, Authorization, with ${{NAME}}")
    if parts.scheme == "http" and secret and parts.hostname not in LOOPBACK:
        raise ValueError(f"{shown}: http sends in the clear, and this has a secret; use https")


def _check_no_token(text: str, what: str) -> None:
    for part in re.split(r"[^A-Za-z0-9_-]+", _VARIABLE.sub(" ", text)):
        if len(part) >= _TOKEN_LENGTH and re.search(r"\d", part) and re.search(r"[A-Za-z]", part):
            raise ValueError(
                f"{what}: {part[:4]}... looks like a secret, which does not belong in a file; write ${{NAME}} in its "
                "place, and set that variable"
            )


def load_channels(file: Path, environ: Mapping[str, str] = os.environ) -> dict[str, Channel]:
    """The channels of a notify.yaml, by name, checked whole.

    Raises:
        SpecError: with a line for each fault; so for a variable that is not set.
    """
    try:
        content = yaml.safe_load(text_of(file))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SpecError(f"{file}: not valid YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(content, dict) or not content:
        raise SpecError(f"{file}: it is a mapping from the name of a channel to what it is")
    channels: dict[str, Channel] = {}
    faults: list[str] = []
    for name, value in content.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            faults.append(f"{name!r}: a channel's name is letters, digits, dots, dashes")
            continue
        if isinstance(value, dict) and True in value:  # YAML reads a bare `on` so
            value = {"on" if key is True else key: each for key, each in value.items()}
        try:
            channels[name] = channel = Channel.model_validate(value)
        except ValidationError as error:
            faults += explained(error, Channel, name)
            continue
        unset = [each for each in channel.variables if not environ.get(each)]
        faults += [f"{name}: ${{{each}}} is not set in this environment; set it, or take it out" for each in unset]
    if faults:
        raise SpecError("\n".join(f"{file}: {fault}" for fault in faults))
    return channels


def channels_of(default: Path, given: Path | None) -> dict[str, Channel]:
    """Those of the file that was named, else those of the home, if it has any.

    Raises:
        SpecError: see `load_channels`.
    """
    if given is None and not default.exists():
        return {}
    return load_channels(given or default)


def send(channel: Channel, message: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> None:
    """Tell it, once.

    Args:
        message: JSON types; `id`, `event`, `sweep` and `text` are among them.

    Raises:
        CannotTell: it was not told; says why, without secrets.
    """
    try:
        if channel.webhook is not None:
            _post(channel, message, environ)
        elif channel.email is not None:
            _mail(channel.email, message, channel.timeout_seconds, environ)
        else:
            _run(channel, message)
    except CannotTell as error:
        raise CannotTell(_without_secrets(str(error), channel, environ)) from None


def _post(channel: Channel, message: Mapping[str, Any], environ: Mapping[str, str]) -> None:
    import httpx

    logging.getLogger("httpx").setLevel(logging.WARNING)  # its every line holds the address, and that may be a secret
    assert channel.webhook is not None
    url = _filled(channel.webhook, environ)
    headers = {name: _filled(value, environ) for name, value in channel.headers.items()}
    try:
        _check_address(url, secret=bool(channel.variables))
    except ValueError as error:
        raise CannotTell(str(error)) from None
    host = urlsplit(url).hostname
    try:
        # A redirect is not followed: what is in the address and the headers is for this host.
        answer = httpx.post(url, json=dict(message), headers=headers, timeout=channel.timeout_seconds)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise CannotTell(f"{host}: {type(error).__name__}: {error}") from None
    if answer.is_redirect:
        raise CannotTell(f"{host} answers {answer.status_code}, a redirect: name the address that it leads to")
    if not answer.is_success:
        raise CannotTell(f"{host} answers {answer.status_code}")


def _mail(email: Email, message: Mapping[str, Any], seconds: float, environ: Mapping[str, str]) -> None:
    mail = EmailMessage()
    mail["Subject"] = f"[sweeps] {message['sweep']}: {str(message['event']).replace('_', ' ')}"
    mail["From"], mail["To"] = email.sender, ", ".join(email.to)
    mail["Message-ID"] = f"<{message['id']}@ctc-sweeps>"  # sent twice, it is one
    mail.set_content(f"{message['text']}\n\n{json.dumps(dict(message), indent=2)}\n")
    port, context = email.port or PORTS[email.security], ssl.create_default_context()
    try:
        if email.security == "ssl":
            server: smtplib.SMTP = smtplib.SMTP_SSL(email.host, port, timeout=seconds, context=context)
        else:
            server = smtplib.SMTP(email.host, port, timeout=seconds)
        with server:
            if email.security == "starttls":
                server.starttls(context=context)
            if email.user is not None and email.password is not None:
                server.login(email.user, _filled(email.password, environ))
            refused = server.send_message(mail)
    except (smtplib.SMTPException, OSError) as error:
        raise CannotTell(f"{email.host}: {type(error).__name__}: {error}") from None
    if refused:
        raise CannotTell(f"{email.host} refused {', '.join(refused)}")


def _run(channel: Channel, message: Mapping[str, Any]) -> None:
    assert channel.command is not None
    name = channel.command[0]
    # Into a file: who waits for the end of a pipe waits for all that the command has started as well.
    with tempfile.TemporaryFile() as said:
        try:
            ended = subprocess.run(
                list(channel.command),
                input=json.dumps(dict(message)).encode(),
                stdout=subprocess.DEVNULL,
                stderr=said,
                timeout=channel.timeout_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise CannotTell(f"{name} took longer than {channel.timeout_seconds:g} s") from None
        except OSError as error:
            raise CannotTell(f"{name} cannot be run ({error.strerror or error})") from None
        if ended.returncode:
            said.seek(0)
            words = said.read()[-500:].decode(errors="replace").split()
            raise CannotTell(f"{name} ended with {ended.returncode}: {' '.join(words)[-300:]}")


def _filled(text: str, environ: Mapping[str, str]) -> str:
    def value(name: re.Match[str]) -> str:
        if not environ.get(name[1]):
            raise CannotTell(f"${{{name[1]}}} is not set in this environment")
        return environ[name[1]]

    return _VARIABLE.sub(value, text)


def _without_secrets(text: str, channel: Channel, environ: Mapping[str, str]) -> str:
    for name in channel.variables:
        if value := environ.get(name):
            text = text.replace(value, f"${{{name}}}")
    return " ".join(text.split())[:300]


def sample(names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A message to try each of these channels with."""
    for name in names:
        yield (
            name,
            {
                "id": "test",
                "event": "test",
                "sweep": "test",
                "text": f"This is what channel {name} gets when a sweep has news.",
                "at": None,
                "data": {},
            },
        )


def chosen(channels: Mapping[str, Channel], wanted: str | None) -> dict[str, Channel]:
    """That one, or all.

    Raises:
        SweepError: there is none of that name.
    """
    if wanted is None:
        return dict(channels)
    if wanted not in channels:
        raise SweepError(f"there is no channel {wanted!r}: there are {', '.join(channels) or 'none'}")
    return {wanted: channels[wanted]}
