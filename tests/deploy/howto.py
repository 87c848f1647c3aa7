"""The commands of a how-to page, done to a site as its reader does them."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
from contextlib import ExitStack
from typing import IO

from tests.deploy.compose import ROOT
from tests.deploy.site import Site


def commands_of(page: str, heading: str) -> list[str]:
    """Each line of the shell blocks below a heading of a page in docs/how-to/."""
    text = (ROOT / "docs" / "how-to" / page).read_text(encoding="utf-8")
    (section,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    blocks: list[str] = re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def follow(site: Site, page: str, heading: str) -> list[str]:
    """Do what the page says; returns what each command wrote."""
    return [_do(site, line) for line in commands_of(page, heading)]


def _do(site: Site, line: str) -> str:
    with ExitStack() as files:
        streams: dict[str, IO[bytes]] = {}
        words = shlex.split(line)
        for sign, stream, mode in ((">", "stdout", "wb"), ("<", "stdin", "rb")):
            if sign in words:
                file = words.pop(words.index(sign) + 1)
                words.remove(sign)
                streams[stream] = files.enter_context((site.folder / file).open(mode))
        if words[:2] != ["docker", "compose"]:
            subprocess.run(words, cwd=site.folder, check=True)
            return ""
        verb, *rest = words[2:]
        options = list(itertools.takewhile(lambda word: word.startswith("-"), rest))
        names = rest[len(options) :]
        if verb == "exec":
            return site.execute(*names, stdin=streams.get("stdin"), stdout=streams.get("stdout"))
        if verb == "run":
            needs = "--no-deps" not in options
            return site.run(*names, needs=needs, stdin=streams.get("stdin"), stdout=streams.get("stdout"))
        if verb == "stop":
            for container in [each for name in names for each in site.containers(name)]:
                container.stop()
        elif verb in ("start", "up"):
            if verb == "up":
                site.set_up_again()
            for name in names or [name for name in site.project.services if name != "setup"]:
                if not site.containers(name):
                    site.up(name)
        else:
            assert verb == "build", f"{line}: what does that do?"  # there is no image here
        return ""
