"""Links resolve, specs in the pages are specs, and the tree in CONTRIBUTING.md is the tree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from sweeps.spec import SweepSpec, load_spec

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CODE = ("model", "sweeps", "tracking", "benchmarks", "examples")
IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Headings as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", without_code(text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_relative_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text_of(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{target}: there is no {linked}"
        assert not anchor or anchor in anchors(linked), f"{target}: no such heading in {linked.name}"


def test_every_page_is_reached_from_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / target).resolve() for target in re.findall(r"\]\(([^)#\s]+)", text_of(index))}
    assert {page for page in (ROOT / "docs").rglob("*.md") if page != index} <= linked


BLOCKS = [
    pytest.param(block, id=f"{name}-{number}")
    for page, name in zip(PAGES, IDS, strict=True)
    for number, block in enumerate(re.findall(r"^```yaml\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL))
    if re.search(r"^name:", block, re.MULTILINE) and re.search(r"^corpus:", block, re.MULTILINE)
]


def test_there_are_specs_in_the_pages() -> None:
    assert len(BLOCKS) >= 5


@pytest.mark.parametrize("block", BLOCKS)
def test_a_spec_in_a_page_is_one(block: str) -> None:
    assert SweepSpec.model_validate(yaml.safe_load(block)).warnings() == []


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_examples_are_specs_with_both_named_trials(example: Path) -> None:
    assert load_spec(example).first_trials.keys() >= {"original", "fixed"}


def tree() -> dict[str, str]:
    """Path to annotation of every line of the tree that CONTRIBUTING.md opens with; folders end in a slash."""
    block = re.search(r"^```\n(.*?)^```", text_of(ROOT / "CONTRIBUTING.md"), re.MULTILINE | re.DOTALL)
    assert block is not None
    found: dict[str, str] = {}
    folders: list[str] = []
    for line in block[1].splitlines():
        name, _, annotation = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2
        folders = [*folders[:depth], name] if name.endswith("/") else folders[:depth]
        path = "".join(folders) if name.endswith("/") else "".join(folders) + name
        found[path] = annotation.strip()
    return found


def test_the_tree_names_nothing_that_is_not_there() -> None:
    for path in tree():
        assert (ROOT / path).exists(), path
        assert (ROOT / path).is_dir() == path.endswith("/"), path


def test_the_tree_names_every_file_of_the_code() -> None:
    files = [f for part in CODE for f in (ROOT / part).rglob("*") if f.suffix in (".py", ".yaml")]
    assert {f.relative_to(ROOT).as_posix() for f in files} - tree().keys() == set()


def test_the_tree_says_something_of_each() -> None:
    assert [path for path, annotation in tree().items() if not annotation] == []
