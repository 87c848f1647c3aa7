"""Tokens: what a client of the service shows, and what is kept of it."""

from __future__ import annotations

import hashlib
import secrets

PREFIX = "swp_"
"""So that a token is known for one where it turns up: in a log, in a commit."""


def new_token() -> str:
    """256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def sha256_of(token: str) -> str:
    """What the database keeps, in hex. A plain digest will do: there is no guessing 256 random bits."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
