"""What only somebody hostile sends: each is refused with the reason, soon, nothing is stored, and the server lives."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sweeps.api.gate import MOST_BYTES
from tests.api.conftest import Site, TestClient, refusal
from tests.serving import spec

pytestmark = pytest.mark.slow

SECONDS = 20.0
"""Of CPU that a request may take."""

HUGE = 10**400
LARGER_THAN_PYTHON_READS = "9" * 5_000


@pytest.fixture
def client(site: Site) -> Iterator[TestClient]:
    """Asks with a token that may operate. Afterwards nothing may have been made, and the server must answer."""
    client = site.client("operate")
    yield client
    assert client.get("/v1/sweeps").json() == []
    assert not site.service.home.corpora.exists()
    assert client.post("/v1/sweeps", json={"spec": spec("fine", "small")}).status_code == 201


def refused(client: TestClient, body: bytes | str, path: str = "/v1/sweeps", **headers: str) -> str:
    """The reason, told soon enough."""
    raw = body if isinstance(body, bytes) else body.encode()
    assert len(raw) <= MOST_BYTES, "refused for its size alone"
    begun = time.process_time()
    answer = client.post(path, content=raw, headers={"Content-Type": "application/json", **headers})
    taken = time.process_time() - begun
    assert 400 <= answer.status_code < 500, answer.text[:500]
    assert taken < SECONDS, f"{taken:.1f} s"
    reason = refusal(answer).detail
    assert len(reason) > 10
    return reason


def create(client: TestClient, content: Any) -> str:
    return refused(client, json.dumps({"spec": content}, separators=(",", ":")))


def changed(where: str, value: Any) -> dict[str, Any]:
    """A spec that is fine but for one place, `trainer.epochs` say."""
    content: dict[str, Any] = spec("x", "small")
    section, keys = content, where.split(".")
    for key in keys[:-1]:
        section = section.setdefault(key, {})
    section[keys[-1]] = value
    return content


# YAML

BILLION_LAUGHS = "a: &a [x]\n" + "".join(
    f"{one}: &{one} [{', '.join([f'*{other}'] * 9)}]\n" for other, one in itertools.pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("!!python/object/apply:os.system ['touch /tmp/sprung']", "tag"),
        ("name: !!python/name:os.system x\ncorpus: small", "tag"),
        ("name: !!python/object/new:tuple [[1]]\ncorpus: small", "tag"),
        ("name: !!bool maybe\ncorpus: small", "tag"),
        ('name: !!int ""\ncorpus: small', "tag"),
        ("name: !!timestamp never\ncorpus: small", "tag"),
        ("name: !!binary aGFsbG8=\ncorpus: small", "tag"),
        ("name: !foreign x\ncorpus: small", "tag"),
        ("%TAG ! tag:yaml.org,2002:python/\n---\n!object/apply:os.system [x]", "tag"),
        (BILLION_LAUGHS, "alias"),
        ("a: &a {b: *a}\nname: x", "alias"),
        ("base: &b {name: x}\n<<: *b\ncorpus: small", "alias"),
        ("[" * 10_000, "deep"),
        ("{a: " * 10_000, "deep"),
        ("- " * 10_000, "deep"),
        ("? " * 10_000, "deep"),
        ("[" * 500_000, "deep"),
        ("".join(f"k{i}: {i}\n" for i in range(70_000)), "more than"),
        ("[" + "a," * 400_000 + "]", "more than"),
        ("- x\n" * 200_000, "more than"),
        ("x: " + "1" * 500_000, "characters"),
        ("x: 0x" + "f" * 500_000, "characters"),
        ("x: 1" + ":1" * 400_000, "characters"),
        ("name: x\ncorpus: small\nseed: 0x" + "f" * 1_900, "seed"),
        ("name: x\ncorpus: small\nseed: 1" + ":1" * 900, "seed"),
        ("name: x\ncorpus: small\nseed: 1" + ":1" * 900 + ".5", "not valid YAML"),
        ("name: x\ncorpus: small\nseed: " + "1_" * 900 + "1", "seed"),
        ("name: x\ncorpus: small\nseed: " + "9" * 1_999, "seed"),
        ("name: x\ncorpus: small\nseed: 2001-13-45", "not valid YAML"),
        ("name: x\ncorpus: small\nbudget: {hours: .nan}", "budget.hours"),
        ("name: x\ncorpus: small\nbudget: {hours: .inf}", "budget.hours"),
        ("name: x\ncorpus: small\nbudget: {hours: 1.0e+999}", "budget.hours"),
        ("name: x\ncorpus: small\n? [1, 2]\n: 3", "not valid YAML"),
        ("name: x\ncorpus: small\n1: 2", "key"),
        ("--- a\n--- b\n", "not valid YAML"),
        ("name: \x00", "not valid YAML"),
        ("name: \x1b[31m", "not valid YAML"),
        ('name: "\\x1b[31m"\ncorpus: small', "control characters"),
        ('name: "\\ud800"\ncorpus: small', "control characters"),
        ("#" * 1_000_000, "mapping"),
        (" " * 1_000_000, "mapping"),
        ("\n" * 500_000, "mapping"),
        ("'" + "a" * 1_000_000, "not valid YAML"),
        ("- 'a\n" * 150_000, "not valid YAML"),
        ("@", "not valid YAML"),
        ("", "mapping"),
        ("\ufeff", "mapping"),
    ],
    ids=lambda value: repr(value[:30]),
)
def test_yaml(client: TestClient, text: str, reason: str) -> None:
    assert reason in create(client, text)


# JSON


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"null",
        b"[]",
        b"1",
        b'"x"',
        b"{}",
        b'{"spec": null}',
        b'{"spec": []}',
        b'{"spec": 1}',
        b'{"spec": {}, "trials": "many"}',
        b'{"spec": {}, "trials": 0}',
        b'{"spec": {}, "trials": 1e999}',
        b'{"spec": {}, "trials": NaN}',
        b'{"spec": {}, "trials": 1.5}',
        b'{"spec": {}, "force": "please"}',
        b'{"spec": {}, "trainer": 7}',
        b'{"spec": {}, "sudo": true}',
        b'{"spec": {"name": "x", "corpus": "small"}, "spec": 1}',
        b'{"spec": {"name": "x\xff"}}',
        b'{"spec": {"name": "x", "corpus": "small", "seed": ' + LARGER_THAN_PYTHON_READS.encode() + b"}}",
        b"\xff\xfe\x00",
        b"\x00" * 1_000,
        b"[" * 1_000_000,
        b'{"a":' * 150_000,
        b'{"spec":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"spec": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"spec": "' + b"\\ud800" * 100_000 + b'"}',
    ],
    ids=lambda body: repr(body[:40]),
)
def test_json(client: TestClient, body: bytes) -> None:
    refused(client, body)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "x/y"])
def test_other_content_types(client: TestClient, kind: str) -> None:
    refused(client, json.dumps({"spec": spec("x", "small")}), **{"Content-Type": kind})


DEPTHS = (30, 100, 200, 300, 400, 500, 600, 700, 800, 900, 950, 990, 2_000, 10_000)


@pytest.mark.parametrize(("begin", "end"), [('{"a":', "}"), ("[", "]")], ids=["objects", "lists"])
def test_nested_deeply(client: TestClient, begin: str, end: str) -> None:
    places = ('"trainer": %s', '"x": %s', '"first_trials": {"a": {"epochs": %s}}', '"space": {"dropout": %s}')
    for depth, where in itertools.product(DEPTHS, places):
        nested = begin * depth + "1" + end * depth
        refused(client, f'{{"spec": {{"name": "x", "corpus": "small", {where % nested}}}}}')


@pytest.mark.parametrize(
    "make",
    [
        lambda n: {"name": "x", "corpus": "small", **{f"{i:x}": 0 for i in range(n)}},
        lambda n: changed("trainer", {f"{i:x}": 0 for i in range(n)}),
        lambda n: changed("space", {f"{i:x}": 0 for i in range(n)}),
        lambda n: changed("first_trials", {f"t{i}": {} for i in range(n // 2)}),
        lambda n: changed("first_trials", {f"t {i}": {} for i in range(n // 2)}),
        lambda n: changed("first_trials.a", {f"{i:x}": 0 for i in range(n)}),
        lambda n: changed("corpus", {"path": "small", **{f"{i:x}": 0 for i in range(n)}}),
        lambda n: changed("corpus", {"generated": {f"{i:x}": 0 for i in range(n)}}),
        lambda n: changed("pruner", {f"{i:x}": 0 for i in range(n)}),
        lambda n: changed("budget", list(range(n))),
        lambda n: changed("name", "a" * 10 * n),
        lambda n: changed("a" * 9 * n, 1),
        lambda n: changed("milestones", "1:50%," * n),
        lambda n: changed("milestones", ",".join(f"{i}:50%" for i in range(1, n // 2))),
        lambda n: changed("pruner", "a" * 10 * n),
        lambda n: changed("corpus", "a/" * 4 * n),
        lambda n: changed("corpus", "../" * 3 * n),
    ],
)
def test_very_many(client: TestClient, make: Callable[[int], Any]) -> None:
    create(client, make(100_000))


NUMBERS = [HUGE, -HUGE, 10**19, -1, float("nan"), float("inf"), -float("inf"), 1e308, "1e999", "nan", "x", [], {}]

PLACES = [
    *(f"trainer.{name}" for name in ("epochs", "batch_size", "hidden", "threads", "patience")),
    *("trainer.learning_rate", "trainer.dropout"),
    *("first_trials.a.seed", "first_trials.a.epochs", "first_trials.a.patience"),
    *("space.patience.low", "space.patience.high", "space.learning_rate.low", "space.dropout"),
    *("workers", "seed", "budget.trials", "budget.total_epochs", "budget.hours"),
    *("sampler.startup_trials", "pruner.audit_share", "pruner.grace_epochs"),
    *(f"generated.{name}" for name in ("train", "dev", "glosses", "signers", "width", "noise", "seed")),
]


@pytest.mark.parametrize("where", PLACES)
def test_numbers(client: TestClient, where: str) -> None:
    for number in NUMBERS:
        if where.startswith("generated"):
            content = changed("corpus", {"generated": {"train": 2, where.rpartition(".")[2]: number}})
        else:
            content = changed(where, number)
        create(client, content)


@pytest.mark.parametrize(
    "content",
    [
        changed("corpus", {"generated": {"train": 5_001}}),
        changed("corpus", {"generated": {"train": 2_000, "dev": 2_000, "test": 2_000}}),
        changed("corpus", {"generated": {"glosses": 10**6}}),
        changed("corpus", {"path": "small", "generated": {}}),
        changed("corpus", {"path": "small", "modalities": {"pose": HUGE}}),
        changed("corpus", {"path": "small", "modalities": {}}),
        changed("corpus", {"path": "small", "filter": "(a+)+$"}),
        changed("corpus", {"path": "small\x00"}),
        changed("corpus", {"path": 7}),
        changed("milestones", f"{'9' * 5000}:50%"),
        changed("milestones", f"1:{'9' * 5000}%"),
        changed("milestones", f"{HUGE}:0.5,x"),
        changed("pruner", {"name": "hyperband", "max_resource": HUGE}),
        changed("pruner", {"name": "successive_halving", "min_resource": HUGE}),
        changed("pruner", {"name": "successive_halving", "min_early_stopping_rate": 10**9}),
        changed("pruner", {"name": "patient", "patience": 1, "wrapped_pruner": {"name": "patient"}}),
        changed("space", {"patience": {"low": HUGE, "high": 1}}),
        changed("space", {"learning_rate": {"low": HUGE, "high": 1}}),
        changed("space", {"learning_rate": {"low": 1, "high": -HUGE}}),
        changed("first_trials", {"a": {"learning_rate": [1]}}),
        changed("first_trials", {"\x00": {}}),
        changed("first_trials", {"\ud800": {}}),
        changed("first_trials", {"": {}}),
        changed("first_trials", []),
    ],
)
def test_other_specs(client: TestClient, content: Any) -> None:
    create(client, content)


NAMES = [
    *("", ".", "..", "a/b", "a\\b", "con", "NUL.txt", "x.", "-x", "a b", "ü", "a\x00b", "a\nb", "\ud800", "🙂"),
    *("a" * 65, "../../x", "%2e", "x:y"),
]


def test_names(client: TestClient) -> None:
    for name in NAMES:
        create(client, changed("name", name))
        create(client, changed("first_trials", {name: {}}))


NAMES_IN_PATHS = [
    *("%00", "a%00b", "%0a", "%7f", "%2e%2e", "%2fetc", "%ff", "%f0%9f%99%82", "a" * 300, "%ed%a0%80", "%25"),
    *("'; DROP TABLE sweeps; --", "*", "[", "1e5"),
]
ASKED = [
    *(("GET", ""), ("GET", "/trials"), ("GET", "/trials/0/curve"), ("GET", "/live")),
    *(("POST", "/pause"), ("POST", "/trials"), ("DELETE", "")),
]


def test_names_in_paths(any_site: Site) -> None:
    any_site.service.create(spec("mine", "small"))
    client = any_site.client("operate")
    for name, (method, path) in itertools.product(NAMES_IN_PATHS, ASKED):
        answer = client.request(method, f"/v1/sweeps/{name}{path}", json={"values": {}} if method == "POST" else None)
        assert answer.status_code in (404, 405, 422), (name, method, path, answer.text)
        refusal(answer)
    for name in NAMES_IN_PATHS:
        assert client.get(f"/v1/sweeps/mine/trials/{name}").status_code in (404, 422)
    assert len(any_site.service.sweeps()) == 1


QUERIES = [
    *("after=x", f"after={HUGE}", "after=-2", "after=1e5", "after=NaN", "after=%00", f"after={2**31}"),
    *("limit=0", "limit=-1", f"limit={10**9}", "limit=1001", "state=", "state=DEAD"),
]


def test_queries(any_site: Site) -> None:
    any_site.service.create(spec("mine", "small"))
    client = any_site.client("read")
    for query in QUERIES:
        answer = client.get(f"/v1/sweeps/mine/trials?{query}")
        assert answer.status_code == 422, query
        refusal(answer)


def test_a_last_event_that_is_none_is_no_matter(any_site: Site) -> None:
    any_site.service.create(spec("mine", "small"))
    any_site.service.cancel("mine")
    client = any_site.client("read")
    for known in ("x", "-1", "9" * 30, "²", "1.5", "", "0x1", "\x7f"):
        answer = client.get("/v1/sweeps/mine/live", headers={"Last-Event-ID": known.encode("latin-1")})
        assert answer.status_code == 200
        assert answer.text.endswith("event: over\ndata: {}\n\n")


VALUES: list[Any] = [
    *({"values": {"epochs": number}} for number in (HUGE, -1, 10**18, "x", None, [1], {"a": 1}, float("nan"))),
    {"values": {"nothing": 1}},
    {"values": {f"k{i}": i for i in range(50_000)}},
    {"values": {"epochs": 1}, "name": "a" * 65},
    {"values": {"epochs": 1}, "name": "\x00"},
    {"values": {"epochs": 1}, "name": "\ud800"},
    {"values": {"epochs": 1}, "name": "range-test"},
    {"values": {"epochs": 1}, "name": "../x"},
    {"values": {"epochs": 1}, "name": "7"},
    {"values": {"epochs": 1}, "name": ""},
    {"values": {"\x00": 1}},
    {"values": {"\ud800": "\ud800"}},
    {"values": {"schedule": "\x1b[31m"}},
    {"values": {"device": "!!python/object:os.system"}},
    {"values": []},
    {"values": "epochs: 1"},
    {},
    {"values": {}, "sudo": 1},
]


def test_configurations(any_site: Site) -> None:
    any_site.service.create(spec("mine", "small"))
    client = any_site.client("operate")
    for body in VALUES:
        refused(client, json.dumps(body), "/v1/sweeps/mine/trials")
    for depth in DEPTHS:
        nested = '{"a":' * depth + "1" + "}" * depth
        refused(client, f'{{"values": {{"epochs": {nested}}}}}', "/v1/sweeps/mine/trials")
    assert len(any_site.service.trials("mine")) == 1
    assert client.post("/v1/sweeps/mine/trials", json={"values": {"epochs": 1}}).status_code == 201


def test_budgets(any_site: Site) -> None:
    any_site.service.create(spec("mine", "small"))
    for trials in (0, -1, HUGE, 1_000_001, "x", 1.5, [], float("nan")):
        refused(any_site.client("operate"), json.dumps({"trials": trials}), "/v1/sweeps/mine/resume")
    assert any_site.service.sweep("mine").sweep.budget["trials"] == 4
