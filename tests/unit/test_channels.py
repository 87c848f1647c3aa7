"""A message by webhook, e-mail and command, to real servers; and what a notify.yaml may not say."""

from __future__ import annotations

import json
import logging
import ssl
import sys
import time
import warnings
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session

from sweeps.channels import Channel, load_channels, send
from sweeps.errors import CannotTell, SpecError
from tests.telling import Hook, hooked

MESSAGE = {"id": "f" * 32, "event": "new_best", "sweep": "demo", "text": "Grün: 31 %", "at": 1.0, "data": {"a": None}}
SECRET = "s3cr3t-0123456789-abcdef"
ENVIRON = {"HOOK": SECRET, "SMTP_PASSWORD": "pass-word-1", "EMPTY": ""}


def channel(**content: Any) -> Channel:
    return Channel.model_validate(content)


@pytest.fixture
def hook() -> Iterator[Hook]:
    with hooked() as hook:
        yield hook


# webhooks


def test_a_webhook_gets_the_message_and_the_headers(hook: Hook) -> None:
    send(channel(webhook=f"{hook.url}/${{HOOK}}", headers={"Authorization": "Bearer ${HOOK}"}), MESSAGE, ENVIRON)
    assert hook.got == [MESSAGE]
    assert hook.paths == [f"/hook/{SECRET}"]
    assert hook.headers[0]["Authorization"] == f"Bearer {SECRET}"


def test_an_address_may_be_a_secret_as_a_whole(hook: Hook) -> None:
    send(channel(webhook="${URL}"), MESSAGE, {"URL": f"{hook.url}/x"})
    assert hook.paths == ["/hook/x"]
    with pytest.raises(CannotTell, match=r"http sends in the clear"):
        send(channel(webhook="${URL}"), MESSAGE, {"URL": "http://elsewhere.invalid/x"})


@pytest.mark.parametrize("status", [400, 404, 500, 503])
def test_what_is_no_success_is_an_error(hook: Hook, status: int) -> None:
    hook.status = status
    with pytest.raises(CannotTell, match=f"127.0.0.1 answers {status}"):
        send(channel(webhook=hook.url), MESSAGE)


def test_a_redirect_is_not_followed(hook: Hook) -> None:
    with hooked() as other:
        hook.status, hook.location = 307, other.url
        with pytest.raises(CannotTell, match="a redirect: name the address that it leads to"):
            send(channel(webhook=hook.url, headers={"Authorization": "${HOOK}"}), MESSAGE, ENVIRON)
        assert other.got == []


def test_a_webhook_that_hangs_is_given_up(hook: Hook) -> None:
    hook.seconds, began = 30.0, time.monotonic()
    with pytest.raises(CannotTell, match="ReadTimeout"):
        send(channel(webhook=hook.url, timeout_seconds=0.3), MESSAGE)
    assert time.monotonic() - began < 5


def test_nobody_there_is_an_error_without_secrets(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with hooked() as hook:
        url = hook.url
    with pytest.raises(CannotTell) as error:
        send(channel(webhook=f"{url}/${{HOOK}}"), MESSAGE, ENVIRON)
    assert "ConnectError" in str(error.value)
    assert SECRET not in str(error.value)
    assert SECRET not in caplog.text


def test_a_sent_secret_is_in_no_log(hook: Hook, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    send(channel(webhook=f"{hook.url}/${{HOOK}}"), MESSAGE, ENVIRON)
    assert SECRET not in caplog.text


def test_a_certificate_that_nobody_vouches_for_is_refused() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with smtp(ssl_context=context) as server, pytest.raises(CannotTell, match="CERTIFICATE_VERIFY_FAILED"):
        send(channel(webhook=f"https://127.0.0.1:{server.port}/"), MESSAGE)


# commands


def test_a_command_gets_the_message_on_stdin(tmp_path: Path) -> None:
    code = f"import pathlib, sys; pathlib.Path({str(tmp_path / 'got')!r}).write_bytes(sys.stdin.buffer.read())"
    send(channel(command=[sys.executable, "-c", code]), MESSAGE)
    assert json.loads((tmp_path / "got").read_text(encoding="utf-8")) == MESSAGE


def test_no_shell_reads_a_command(tmp_path: Path) -> None:
    code = f"import pathlib, sys; pathlib.Path({str(tmp_path / 'got')!r}).write_text(sys.argv[1])"
    send(channel(command=[sys.executable, "-c", code, "$(echo x); `y` && z"]), MESSAGE)
    assert (tmp_path / "got").read_text() == "$(echo x); `y` && z"


def test_a_command_that_fails_says_its_last_words() -> None:
    code = "import sys; print('no such room', file=sys.stderr); sys.exit(3)"
    with pytest.raises(CannotTell, match="ended with 3: no such room"):
        send(channel(command=[sys.executable, "-c", code]), MESSAGE)
    with pytest.raises(CannotTell, match="cannot be run"):
        send(channel(command=["no-such-program-here"]), MESSAGE)


def test_a_command_that_hangs_is_ended_with_what_it_started() -> None:
    started = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(4)']); "
    began = time.monotonic()
    with pytest.raises(CannotTell, match=r"took longer than 1 s"):
        send(channel(command=[sys.executable, "-c", f"{started} time.sleep(30)"], timeout_seconds=1), MESSAGE)
    assert time.monotonic() - began < 3.5  # not waiting for its child's end of the pipe


# e-mail


class AnyPort(Controller):
    """On a free port, which it knows once it listens."""

    def _trigger_server(self) -> None:
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


class Mailbox:
    """An SMTP server in a thread."""

    def __init__(self, **options: Any) -> None:
        self.mail: list[Envelope] = []
        self.logins: list[tuple[bytes, bytes]] = []
        context = options.pop("ssl_context", None)
        self._options = {"enable_SMTPUTF8": True, **options}
        mailbox = self

        def login(server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
            mailbox.logins.append((data.login, data.password))
            return AuthResult(success=data.password == b"pass-word-1", handled=False)

        self._controller = AnyPort(
            self, hostname="127.0.0.1", port=0, ssl_context=context, authenticator=login, **self._options
        )

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        self.mail.append(envelope)
        return "250 OK"

    @property
    def port(self) -> int:
        return int(self._controller.port)

    def __enter__(self) -> Mailbox:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # without TLS, on loopback, is what is tried
            self._controller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._controller.stop(no_assert=True)


smtp = Mailbox
PLAIN = {"host": "127.0.0.1", "security": "none", "sender": "Sweeps <sweeps@example.org>", "to": ["a@example.org"]}


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """TLS of a server on loopback that this process trusts."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def test_an_email_has_the_text_and_the_json() -> None:
    with smtp() as box:
        send(channel(email={**PLAIN, "port": box.port}), MESSAGE)
    (envelope,) = box.mail
    assert (envelope.mail_from, envelope.rcpt_tos) == ("sweeps@example.org", ["a@example.org"])
    assert isinstance(envelope.content, bytes)
    mail = message_from_bytes(envelope.content)
    assert mail["Subject"] == "[sweeps] demo: new best"
    assert mail["Message-ID"] == f"<{'f' * 32}@ctc-sweeps>"
    payload = mail.get_payload(decode=True)
    assert isinstance(payload, bytes)
    text = payload.decode("utf-8").replace("\r\n", "\n")
    assert text.startswith("Grün: 31 %\n\n{")
    assert json.loads(text.partition("\n\n")[2]) == MESSAGE


@pytest.mark.parametrize("security", ["starttls", "ssl"])
def test_a_password_goes_through_tls_alone(trusted: ssl.SSLContext, security: str) -> None:
    options = {"ssl_context": trusted} if security == "ssl" else {"tls_context": trusted, "auth_require_tls": True}
    if security == "ssl":
        options["auth_require_tls"] = False  # it does not know that it is within TLS
    account = {"user": "me", "password": "${SMTP_PASSWORD}", "security": security}
    with smtp(**options) as box:
        send(channel(email={**PLAIN, **account, "port": box.port}), MESSAGE, ENVIRON)
        assert box.logins == [(b"me", b"pass-word-1")]
        assert len(box.mail) == 1
        with pytest.raises(CannotTell, match="SMTPAuthenticationError"):
            send(channel(email={**PLAIN, **account, "port": box.port}), MESSAGE, {"SMTP_PASSWORD": "wrong-1"})


def test_a_server_without_tls_gets_no_mail() -> None:
    with smtp() as box, pytest.raises(CannotTell, match="STARTTLS"):
        send(channel(email={**PLAIN, "security": "starttls", "port": box.port}), MESSAGE)
    assert box.mail == []


# the file


def faults(tmp_path: Path, content: Any) -> str:
    file = tmp_path / "notify.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(SpecError) as error:
        load_channels(file, ENVIRON)
    return str(error.value).replace(str(file), "FILE")


MAIL = {**PLAIN, "host": "smtp.example.org", "security": "starttls"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "FILE: it is a mapping from the name of a channel to what it is"),
        ("- a", "FILE: it is a mapping from the name of a channel to what it is"),
        ("a: [", "not valid YAML"),
        ("a: !!python/object/apply:os.system [x]", "not valid YAML"),
        ({"a": {"webhok": "https://x.org"}}, "FILE: a.webhok: unknown key; did you mean webhook?"),
        ({"a b": {"webhook": "https://x.org"}}, "a channel's name is letters, digits, dots, dashes"),
        ({"a": {}}, "FILE: a: name one of webhook, email and command, not none of them"),
        ({"a": {"webhook": "https://x.org", "command": ["x"]}}, "not webhook and command"),
        ({"a": {"webhook": "ftp://x.org"}}, "write https://HOST/..."),
        ({"a": {"webhook": "https://me:pw@x.org"}}, "no user and password in an address"),
        ({"a": {"webhook": "http://x.org/${HOOK}"}}, "http sends in the clear, and this has a secret"),
        ({"a": {"webhook": f"https://x.org/{SECRET}"}}, "s3cr... looks like a secret"),
        ({"a": {"webhook": f"https://x.org/?key={SECRET}"}}, "looks like a secret"),
        ({"a": {"webhook": "https://x.org", "headers": {"X-Api-Key": "abc"}}}, "write ${NAME}, and set that variable"),
        ({"a": {"webhook": "https://x.org", "headers": {"X-A": "a\nB: c"}}}, "is no header of one line"),
        ({"a": {"webhook": "https://x.org/${NOT_THERE}"}}, "a: ${NOT_THERE} is not set in this environment"),
        ({"a": {"webhook": "https://x.org/${EMPTY}"}}, "a: ${EMPTY} is not set in this environment"),
        ("a: {webhook: 'https://x.org', on: [ends]}", "a.on.0: 'ends': input should be"),
        ({"a": {"webhook": "https://x.org", "timeout_seconds": 1000}}, "a.timeout_seconds: 1000"),
        ({"a": {"command": "rm -rf /"}}, "no shell reads it; write a list of words"),
        ({"a": {"command": ["x", "${HOOK}"]}}, "everybody here can read a command's words"),
        ({"a": {"command": ["x"], "headers": {"A": "b"}}}, "only a webhook has them"),
        ({"a": {"email": {**MAIL, "password": "hunter2", "user": "x"}}}, "a password does not belong in a file"),
        ({"a": {"email": {**MAIL, "user": "x"}}}, "user and password go together"),
        ({"a": {"email": {**MAIL, "security": "none"}}}, "smtp.example.org is another machine; use starttls"),
        ({"a": {"email": {**MAIL, "to": "nobody"}}}, "'nobody': is no address"),
        ({"a": {"email": {**MAIL, "to": "a@b.org\nBcc: c@d.org"}}}, "is no address"),
    ],
)
def test_a_fault_is_named_with_the_way_out(tmp_path: Path, content: Any, said: str) -> None:
    found = faults(tmp_path, content)
    assert said in found
    assert SECRET not in found


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    found = faults(tmp_path, {"a": {"webhok": "x"}, "b": {"webhook": "https://x.org/${NO}"}, "c": {"on": "end"}})
    assert [line.split(": ")[1][0] for line in found.splitlines()] == ["a", "b", "c"]


def test_what_a_channel_hears(tmp_path: Path) -> None:
    file = tmp_path / "notify.yaml"
    file.write_text("team: {webhook: 'https://x.org/my-sweeps', on: end, sweeps: [demo*]}\nall: {command: [x]}\n")
    found = load_channels(file, {})
    assert found["team"].hears(("breaker", "end"), "demo-2")
    assert not found["team"].hears(("new_best",), "demo-2")
    assert not found["team"].hears(("end",), "other")
    assert all(found["all"].hears((kind,), "other") for kind in ("takeoff", "alarm", "new_best", "end", "breaker"))
