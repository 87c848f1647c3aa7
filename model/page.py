"""A report as one HTML file that needs nothing else, neither scripts nor addresses; light or dark, small or printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jinja2
from markupsafe import Markup

from model.findings import Finding, worst_first


@dataclass(frozen=True)
class Table:
    """Cells are text as it is to be shown; the first of a row names it."""

    title: str
    rows: Sequence[Sequence[str]]
    header: Sequence[str] = ()
    note: str = ""


@dataclass(frozen=True)
class Picture:
    title: str
    svg: str
    """An svg element, trusted: made by `model.plots`. Its colours are the variables of the page."""
    caption: str
    """What it shows, and what to look for."""


def page(
    title: str,
    summary: str,
    findings: Sequence[Finding],
    tables: Sequence[Table] = (),
    pictures: Sequence[Picture] = (),
) -> str:
    """The report: what it comes to in one sentence, the findings worst first, pictures, numbers.

    Every text is escaped; nothing in it can become markup.
    """
    return _TEMPLATE.render(
        title=title,
        summary=summary,
        findings=worst_first(findings),
        tables=tables,
        pictures=[(picture, Markup(picture.svg)) for picture in pictures],
        number=_number,
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


_TEMPLATE = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True).from_string(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>
:root {
  --paper: #fff; --ink: #1c2024; --soft: #666e76; --line: #d8dce0; --panel: #f5f6f8;
  --one: #2563b0; --two: #c25e00; --three: #2e7d4f; --band: #e4e9ef;
  --fatal: #b3261e; --warning: #8f5a00; --info: #44606f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15181b; --ink: #e6e8ea; --soft: #9aa3ab; --line: #363c42; --panel: #1e2226;
    --one: #7ab0f5; --two: #f0a35c; --three: #79c99a; --band: #2a3037;
    --fatal: #ff8a80; --warning: #f2b84b; --info: #9fb8c6;
  }
}
@media print {
  :root {
    --paper: #fff; --ink: #000; --soft: #444; --line: #bbb; --panel: #fff;
    --one: #2563b0; --two: #c25e00; --three: #2e7d4f; --band: #e8e8e8;
    --fatal: #b3261e; --warning: #8f5a00; --info: #44606f;
  }
  body { font-size: 10pt; }
  figure, .finding, tr { break-inside: avoid; }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 64rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere;
}
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0; }
p { margin: .25rem 0; }
.summary { font-size: 1.1rem; max-width: 46rem; }
.finding { border: 1px solid var(--line); border-left: .3rem solid var(--severity); border-radius: .3rem;
  background: var(--panel); padding: .6rem .9rem; margin: .6rem 0; }
.finding h3 span { color: var(--severity); }
.finding .numbers, .soft, figcaption { color: var(--soft); font-size: .9rem; }
.fatal { --severity: var(--fatal); } .warning { --severity: var(--warning); } .info { --severity: var(--info); }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem; }
figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto; stroke-linejoin: round; }
figcaption b { color: var(--ink); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .25rem 1.1rem .25rem 0; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
.pairs td { white-space: normal; }
thead th { color: var(--soft); font-weight: 600; }
tbody th { font-weight: 400; color: var(--soft); white-space: normal; min-width: 7rem; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="summary">{{ summary }}</p>
<h2>Findings</h2>
{% for finding in findings %}
<section class="finding {{ finding.severity }}">
<h3><span>{{ finding.severity }}</span> {{ finding.code }}</h3>
<p>{{ finding.evidence }}</p>
<p>{{ finding.advice }}</p>
{% if finding.number is not none or finding.would_change %}
<p class="numbers">
{%- if finding.number is not none %}Number {{ number(finding.number) }}
{%- if finding.threshold is not none %}, threshold {{ number(finding.threshold) }}{% endif %}. {% endif %}
{%- if finding.would_change %}Would change this: {{ finding.would_change }}{% endif %}</p>
{% endif %}
</section>
{% else %}
<p>None.</p>
{% endfor %}
{% if pictures %}
<h2>Pictures</h2>
<div class="pictures">
{% for picture, svg in pictures %}
<figure role="group" aria-label="{{ picture.title }}">
{{ svg }}
<figcaption><b>{{ picture.title }}.</b> {{ picture.caption }}</figcaption>
</figure>
{% endfor %}
</div>
{% endif %}
{% for table in tables %}
<h2>{{ table.title }}</h2>
<div class="wide"><table{% if not table.header %} class="pairs"{% endif %}>
{% if table.header %}
<thead><tr>{% for cell in table.header %}<th scope="col">{{ cell }}</th>{% endfor %}</tr></thead>
{% endif %}
<tbody>
{% for row in table.rows %}
<tr>{% for cell in row %}{% if loop.first %}<th scope="row">{{ cell }}</th>{% else %}<td>{{ cell }}</td>{% endif %}
{% endfor %}</tr>
{% endfor %}
</tbody>
</table></div>
{% if table.note %}
<p class="soft">{{ table.note }}</p>
{% endif %}
{% endfor %}
</body>
</html>
"""
)
