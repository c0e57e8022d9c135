"""The frame of the report: style, headings, tables. HTML text in, HTML text out; everything a user named is escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --soft: #52606d; --line: #cbd2d9; --faint: #e4e7eb; --back: #fff;
  --box: #f5f7fa }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --soft: #9aa5b1; --line: #3e4c59;
  --faint: #2a343f; --back: #12171d; --box: #1f2933 } }
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: var(--ink); background: var(--back); margin: 0 auto;
  max-width: 1000px; padding: 24px 24px 64px }
h1 { font-size: 26px; margin: 0 } h2 { font-size: 19px; margin: 40px 0 6px; border-bottom: 1px solid var(--line) }
h3 { font-size: 15px; margin: 22px 0 4px }
.stamp, .note { color: var(--soft); font-size: 13px } .lead { font-size: 17px }
.wide { overflow-x: auto }
svg { display: block; width: 100%; min-width: 680px; height: auto; margin: 6px 0; background: #fff; border-radius: 4px }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 16px 0 }
.tile { flex: 1 1 140px; border: 1px solid var(--line); border-radius: 6px; padding: 8px 12px }
.tile span, .tile small { display: block; color: var(--soft); font-size: 12px } .tile b { font-size: 20px }
table { border-collapse: collapse; font-size: 13px; margin: 8px 0; font-variant-numeric: tabular-nums }
th { text-align: left; color: var(--soft); font-weight: 600 }
th, td { padding: 3px 12px 3px 0; border-bottom: 1px solid var(--faint); vertical-align: top }
td.n, th.n { text-align: right; white-space: nowrap } td { overflow-wrap: break-word }
details { margin: 6px 0 } summary { cursor: pointer; overflow-wrap: anywhere }
pre { background: var(--box); padding: 8px 12px; overflow-x: auto; font-size: 12px; white-space: pre-wrap }
code { background: var(--box); padding: 0 3px }
@media print { body { max-width: none; padding: 0; font-size: 11px } h2 { break-after: avoid }
  .wide { overflow: visible } svg { min-width: 0 } svg, .tile, tr, pre { break-inside: avoid }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact } }
"""


def page(title: str, stamp: str, body: str) -> str:
    """The whole document. Its policy forbids every request, so it cannot but be self-contained."""
    name, _, what = title.partition(": ")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<h1>{escape(name)}</h1><p class=stamp>{escape(what)}. {escape(stamp)}</p>{body}</body></html>\n"
    )


def in_code(words: str) -> str:
    """What stands between backticks is shown as commands are."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", words)


def figure(picture: str) -> str:
    """A picture; on a narrow screen it is scrolled rather than made too small to read."""
    return f"<div class=wide>{picture}</div>"


def heading(words: str) -> str:
    return f'<h2 id="{escape(words.lower().replace(" ", "-"))}">{escape(words)}</h2>'


def details(title: str, body: str, opened: bool = False) -> str:
    """Something to open."""
    return f"<details{' open' if opened else ''}><summary>{escape(title)}</summary>{body}</details>"


def table(heads: Sequence[str], lines: Sequence[Sequence[str]], left: int = 1, cut: int = 0) -> str:
    """A table; the first `left` columns are words, the others numbers. `cut` lines were left out before."""

    def kind(number: int) -> str:
        return ' class="n"' if number >= left else ""

    head = "".join(f"<th{kind(n)}>{escape(word)}</th>" for n, word in enumerate(heads))
    body = "".join(
        "<tr>" + "".join(f"<td{kind(n)}>{escape(word)}</td>" for n, word in enumerate(line)) + "</tr>" for line in lines
    )
    more = f"<p class=note>And {cut:,} more.</p>" if cut > 0 else ""
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{more}"
