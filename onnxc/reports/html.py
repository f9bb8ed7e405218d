"""One page that holds everything in itself and is light or dark as the reader's system is. In: parts. Out: HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --page: #f6f8fa; --card: #ffffff; --line: #d8dee4; --text: #1f2328;
  --quiet: #59636e; --accent: #2f6fc4; --mark: #ddeafc; }
@media (prefers-color-scheme: dark) { :root { --page: #0d1117; --card: #151b23; --line: #2d343d; --text: #e6edf3;
  --quiet: #9198a1; --accent: #6cb0ff; --mark: #1b2f4b; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 32px 20px 48px; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; }
h1 { font-size: 24px; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 16px; margin: 0 0 10px; }
.lead { margin: 0 0 20px; color: var(--quiet); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px; margin: 0 0 20px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 7px 10px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--quiet); font-weight: 600; vertical-align: bottom; }
.word { text-align: left; }
tbody tr:last-child td { border-bottom: 0; }
tr:target td { background: var(--mark); }
ul { margin: 0; padding-left: 20px; color: var(--quiet); }
""".strip()


def document(title: str, heading: str, lead: str, parts: Iterable[str], style: str = "") -> str:
    """The page: ``heading``, a sentence, and ``parts``, which are HTML already; ``style`` is added to STYLE."""
    body = "\n".join(part for part in parts if part)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{STYLE}
{style}
</style>
</head>
<body>
<main>
<h1>{escape(heading)}</h1>
<p class="lead">{escape(lead)}</p>
{body}
</main>
</body>
</html>
"""


def card(content: str, title: str = "") -> str:
    """A box around HTML; nothing around nothing."""
    if not content:
        return ""
    return f'<div class="card scroll">{f"<h2>{escape(title)}</h2>" if title else ""}\n{content}\n</div>'


def listed(sentences: Sequence[str]) -> str:
    """Sentences as a list."""
    return f"<ul>{''.join(f'<li>{escape(each)}</li>' for each in sentences)}</ul>" if sentences else ""


def grid(heading: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,), anchor: str = "") -> str:
    """A table; columns that are empty in every row are left out. ``left``: columns of words; ``anchor``: rows are
    called so, with their number.
    """
    used = [index for index in range(len(heading)) if any(row[index] for row in rows)]

    def cells(row: Sequence[str], tag: str) -> str:
        kinds = [f'<{tag} class="word">' if index in left else f"<{tag}>" for index in used]
        return "".join(f"{kind}{escape(row[index])}</{tag}>" for kind, index in zip(kinds, used, strict=True))

    names = [f' id="{anchor}-{number}"' if anchor else "" for number in range(len(rows))]
    body = "\n".join(f"<tr{name}>{cells(row, 'td')}</tr>" for name, row in zip(names, rows, strict=True))
    return f"<table>\n<thead><tr>{cells(heading, 'th')}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
