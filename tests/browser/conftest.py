"""A browser: the system's Chromium, headless. Pages are watched: what they say on the console, and whom they ask."""

from __future__ import annotations

import io
import ipaddress
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
PICTURES = "SCREENSHOTS"
"""An environment variable: the folder that pictures of the pages are put into."""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        why = f"there is none of {', '.join(NAMES)} on the path (Debian: apt-get install chromium)"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@dataclass
class Watch:
    """What a page did that it should not."""

    errors: list[str] = field(default_factory=list)
    """On the console, and uncaught."""
    outside: list[str] = field(default_factory=list)
    """Addresses of other machines that it asked for."""


@contextmanager
def watched(browser: Browser, **options: Any) -> Iterator[tuple[Page, Watch]]:
    """A page of its own, without cookies, and what it did."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    page, watch = context.new_page(), Watch()

    def said(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            watch.errors.append(f"{message.type}: {message.text}")

    def asked(request: Request) -> None:
        if not is_here(request.url):
            watch.outside.append(request.url)

    page.on("console", said)
    page.on("pageerror", lambda error: watch.errors.append(f"uncaught: {error}"))
    page.on("request", asked)
    try:
        yield page, watch
    finally:
        context.close()


def is_here(url: str) -> bool:
    """Whether an address is of this machine, or of none."""
    parts = urlsplit(url)
    if parts.scheme in ("data", "blob", "about"):
        return True
    try:
        return parts.hostname == "localhost" or ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """One that may say nothing on the console, and ask no other machine for anything."""
    with watched(browser) as (page, watch):
        yield page
        assert watch.errors == []
        assert watch.outside == []


def picture(page: Page, name: str, **options: Any) -> None:
    """Keep a picture of the page, where pictures are asked for."""
    if folder := os.environ.get(PICTURES):
        Path(folder).mkdir(parents=True, exist_ok=True)
        taken = Image.open(io.BytesIO(page.screenshot(**options))).convert("RGB")
        # In 256 colours: a third of the bytes, in a repository for good.
        taken.quantize(256, dither=Image.Dither.NONE).save(Path(folder) / f"{name}.png", optimize=True)
