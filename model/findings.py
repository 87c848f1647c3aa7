"""What a check or a diagnosis finds: one record for all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

Severity: TypeAlias = Literal["info", "warning", "fatal"]
SEVERITIES: tuple[Severity, ...] = ("fatal", "warning", "info")
"""Worst first."""


@dataclass(frozen=True)
class Finding:
    """One thing found, with the number it was found by."""

    code: str
    """Stable; docs/reference/findings.md lists them all."""
    severity: Severity
    number: float | None
    """What was measured, in the unit that the evidence names; None where the finding is not a number."""
    threshold: float | None
    """What the number was held against."""
    evidence: str
    """One sentence with the numbers, ids and names."""
    advice: str
    """What to do about it, or why nothing need be done."""
    would_change: str = ""
    """What observation would overturn this finding."""

    def as_json(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self)


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Fatal ones first; the order within a severity is kept."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def finite(value: Any) -> Any:
    """A value of JSON types with None for each number that is not finite: JSON has no word for those."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return value
