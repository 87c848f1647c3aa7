"""How commands show what they found: as text for a person, as one JSON object for a program."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from model.findings import Finding, finite, worst_first


def columns() -> int:
    """Width of the terminal, within reason."""
    return min(120, shutil.get_terminal_size((100, 24)).columns)


def finding_lines(findings: Iterable[Finding]) -> list[str]:
    """Findings worst first, each as severity and code, then evidence, advice and what would change it, indented."""
    lines: list[str] = []
    for finding in worst_first(findings):
        lines.append(f"{finding.severity}: {finding.code}")
        for label, text in (
            ("", finding.evidence),
            ("Do: ", finding.advice),
            ("Would change this: ", finding.would_change),
        ):
            if text:
                lines += textwrap.wrap(label + text, columns(), initial_indent="  ", subsequent_indent="    ")
    return lines


def exit_code(findings: Sequence[Finding]) -> int:
    """1 with a fatal finding, else 0."""
    return int(any(finding.severity == "fatal" for finding in findings))


def as_json(findings: Iterable[Finding], facts: Mapping[str, Any]) -> str:
    """One JSON object on one line: `findings`, worst first, and `facts`; a number that is not finite is null."""
    whole = {"findings": [finding.as_json() for finding in worst_first(findings)], "facts": facts}
    return json.dumps(finite(whole), allow_nan=False)
