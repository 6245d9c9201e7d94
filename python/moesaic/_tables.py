"""Tables: rows of cells as aligned text for terminals, and as HTML for notebooks.

Cells are made safe here: control characters are written out in text, and HTML is escaped, since
names come from files and other machines.
"""

from __future__ import annotations

import html
from collections.abc import Collection, Sequence

__all__ = ["html_table", "plain", "shortened", "text_table"]

Rows = Sequence[Sequence[str]]


def plain(text: str, keep: str = "") -> str:
    r"""Write control characters as ``\x1b``: what a file says must not drive a terminal.

    Parameters
    ----------
    text : str
        Any text.
    keep : str
        Characters that stay as they are.
    """
    return "".join(
        c if c in keep or (c.isprintable() or c == " ") else c.encode("unicode_escape").decode()
        for c in text
    )


def text_table(rows: Rows, *, right: Collection[int] = ()) -> str:
    """Return rows as lines, each column padded to its widest cell.

    Parameters
    ----------
    rows : sequence of sequence of str
        All of one length; the heads are a row like the others.
    right : collection of int
        Columns that are aligned to the right.

    Examples
    --------
    >>> print(text_table([("name", "n"), ("a", "10")], right={1}))
    name   n
    a     10
    """
    if not rows:
        return "(none)"
    cells = [[plain(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


def html_table(rows: Rows, *, heads: bool = True) -> str:
    """Return rows as an HTML table.

    Parameters
    ----------
    rows : sequence of sequence of str
        All of one length.
    heads : bool
        Whether the first row holds the heads of the columns.

    Examples
    --------
    >>> html_table([("name",), ("<a>",)])
    '<table><tr><th>name</th></tr><tr><td>&lt;a&gt;</td></tr></table>'
    """
    lines: list[str] = []
    for i, row in enumerate(rows):
        tag = "th" if heads and i == 0 else "td"
        cells = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
        lines.append(f"<tr>{cells}</tr>")
    return f"<table>{''.join(lines)}</table>"


def shortened(items: Sequence[str], *, first: int, last: int) -> list[str]:
    """Return the first and the last items, with a line between them that counts the others.

    Examples
    --------
    >>> shortened(["a", "b", "c", "d", "e"], first=1, last=1)
    ['a', '... 3 more ...', 'e']
    """
    left_out = len(items) - first - last
    if left_out <= 1:
        return list(items)
    return [*items[:first], f"... {left_out} more ...", *items[len(items) - last :]]
