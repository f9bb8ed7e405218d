"""Tables that survive pasting. In: rows of text. Out: lines.

On a terminal rich draws them; anywhere else (a pipe, a file) they are Markdown, one row a line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

SHORT, LONG = 14, 24  # characters: what is no longer is not wrapped; words that are no longer are not broken


def print_table(
    console: Console,
    heading: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[int] = (),
    title: str = "",
) -> None:
    """Print one table; columns that are empty in every row are left out."""
    used = [i for i in range(len(heading)) if any(row[i] for row in rows)]
    if title:
        console.print(f"\n[bold]{escape(title)}[/bold]" if console.is_terminal else f"\n{title}\n", highlight=False)
    if not console.is_terminal:
        cells = [[row[i].replace("|", "/") for i in used] for row in (list(heading), *rows)]
        width = [max(len(row[i]) for row in cells) for i in range(len(used))]
        side = [used[i] in right for i in range(len(used))]
        rule = ["-" * (width[i] - 1) + (":" if side[i] else "-") for i in range(len(used))]
        for row in [cells[0], rule, *cells[1:]]:
            text = [cell.rjust(width[i]) if side[i] else cell.ljust(width[i]) for i, cell in enumerate(row)]
            console.out(f"| {' | '.join(text)} |", highlight=False)
        return
    columns = {i: [heading[i], *(row[i] for row in rows)] for i in used}
    longest = {i: max(map(len, cells)) for i, cells in columns.items()}
    words = {i: max(len(word) for cell in cells for word in [*cell.split(), ""]) for i, cells in columns.items()}
    whole = {i: longest[i] if longest[i] <= SHORT else min(words[i], LONG) for i in used}  # figures are not wrapped
    if sum(whole.values()) + 2 * len(used) > console.width and len(used) > 2:
        _print_narrow(console, heading, rows, used, right, longest)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for i in used:
        justify: Literal["left", "right"] = "right" if i in right else "left"
        table.add_column(heading[i], justify=justify, overflow="fold", no_wrap=longest[i] <= SHORT, min_width=whole[i])
    for cells_of in rows:
        table.add_row(*(escape(cells_of[i]) for i in used))
    console.print(table)


def _print_narrow(
    console: Console,
    heading: Sequence[str],
    rows: Sequence[Sequence[str]],
    used: Sequence[int],
    right: Sequence[int],
    width: Mapping[int, int],
) -> None:
    """A table wider than the terminal: per row a line with its name, one with its figures, one with the rest."""
    figures = [i for i in used[1:] if width[i] <= SHORT]
    rest = [i for i in used[1:] if width[i] > SHORT]
    for index, row in enumerate((heading, *rows)):
        style = "bold" if not index else None
        cells = [row[i].rjust(width[i]) if i in right else row[i].ljust(width[i]) for i in figures]
        console.out(row[used[0]], style=style, highlight=False)
        for text in ("  ".join(cells), *(row[i] for i in rest)):
            for line in wrap(text, max(console.width - 2, SHORT), drop_whitespace=False):
                console.out(f"  {line}".rstrip(), style=style, highlight=False)


def print_sentences(sentences: Sequence[str], console: Console) -> None:
    """One line each, in full: wrapping is the terminal's."""
    if sentences:
        console.print()
    for sentence in sentences:
        console.print(f"- {sentence}", highlight=False, markup=False, soft_wrap=True)
