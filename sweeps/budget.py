"""What a budget allows, and what of it is spent. Pure.

Budgets are as the database keeps them: the keys of `spec.Budget`; older ones lack some.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

IMPROVEMENT = 0.005
"""A WER lower by so much is worth going on for, unless asked otherwise (fraction)."""

LIMITS = ("total_epochs", "hours", "device_hours", "money")
"""What may be limited besides the number of trials."""


@dataclass(frozen=True)
class Spending:
    """What a sweep has spent so far."""

    epochs: int
    """Recorded, and where that is asked in hand."""
    seconds: float
    """Of wall time under a keeper."""
    device_seconds: float
    """Sum of the seconds of the recorded epochs, over all trials."""


@dataclass(frozen=True)
class Share:
    """A limit, and what of it is spent, in its own unit."""

    name: str
    """The key of the budget."""
    given: float
    spent: float
    unit: str
    """As it stands behind a number."""

    @property
    def left(self) -> float:
        return max(0.0, self.given - self.spent)

    def __str__(self) -> str:
        return f"{self.given:g} {self.unit}"


def is_limited(budget: Mapping[str, Any]) -> bool:
    """Whether anything but the number of trials is limited."""
    return any(budget.get(name) is not None for name in LIMITS)


def cost(budget: Mapping[str, Any], device_seconds: float) -> float | None:
    """Money that so much training costs; None where no price is known."""
    price = budget.get("price_per_device_hour")
    return None if price is None else float(price) * device_seconds / 3600


def shares(budget: Mapping[str, Any], spending: Spending) -> list[Share]:
    """Each limit of the budget but that of trials."""
    money = cost(budget, spending.device_seconds)
    spent = {
        "total_epochs": (spending.epochs, "epochs"),
        "hours": (spending.seconds / 3600, "hours"),
        "device_hours": (spending.device_seconds / 3600, "device hours"),
        "money": (money or 0.0, budget.get("currency") or "in money"),
    }
    return [Share(name, budget[name], *spent[name]) for name in LIMITS if budget.get(name) is not None]


def exceeded(budget: Mapping[str, Any], spending: Spending, more_epochs: int = 1) -> Share | None:
    """The first limit that does not allow so many more epochs, if one does not. How long an epoch takes is known when
    it is over: of time and money it is allowed while any is left.
    """
    for share in shares(budget, spending):
        over = share.spent + more_epochs > share.given if share.name == "total_epochs" else share.left == 0
        if over:
            return share
    return None


def training_left(
    budget: Mapping[str, Any], spending: Spending, workers: int, seconds_per_epoch: float
) -> dict[str, float]:
    """Seconds of training that each limit leaves to so many workers at once."""
    worth = {"total_epochs": seconds_per_epoch, "hours": 3600.0 * workers, "device_hours": 3600.0}
    if (price := budget.get("price_per_device_hour")) is not None:
        worth["money"] = 3600 / price
    return {share.name: share.left * worth[share.name] for share in shares(budget, spending)}
