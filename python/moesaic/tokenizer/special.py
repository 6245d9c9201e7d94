"""Finds special tokens in a text, so that the parts between them can be tokenised alone.

At each place the longest special token wins, and places are tried from left to right, as the
models' own tokenizers do. Not here: which tokens are special (vocabulary.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

_SPACES = re.compile(r"[ \t\n\v\f\r]*")


def _alternatives(texts: list[str], start: int) -> str:
    """A pattern for sorted ``texts`` from ``start`` on: prefixes shared, longest match first."""
    groups: dict[str, list[str]] = {}
    ends = False
    for text in texts:
        if len(text) == start:
            ends = True
        else:
            groups.setdefault(text[start], []).append(text)
    branches = []
    for group in groups.values():
        first, last = group[0], group[-1]  # sorted: what these two share, all share
        stop = start
        while stop < min(len(first), len(last)) and first[stop] == last[stop]:
            stop += 1
        branches.append(re.escape(first[start:stop]) + _alternatives(group, stop))
    if not branches:
        return ""
    if len(branches) == 1 and not ends:
        return branches[0]
    return f"(?:{'|'.join(branches)}){'?' if ends else ''}"


class SpecialSplitter:
    """Cuts a text at special tokens.

    Parameters
    ----------
    ids
        Text of a special token -> id.
    right_strip_ids
        Ids that swallow the white space behind them.
    """

    def __init__(
        self, ids: Mapping[str, int], right_strip_ids: frozenset[int] = frozenset()
    ) -> None:
        self._ids = dict(ids)
        self._right_strip_ids = right_strip_ids
        self._pattern = re.compile(_alternatives(sorted(self._ids), 0)) if self._ids else None

    def starts(self, text: str) -> list[int]:
        """Indices at which a special token is spelled, those inside another one included."""
        if self._pattern is None:
            return []
        starts: list[int] = []
        match = self._pattern.search(text)
        while match is not None:
            starts.append(match.start())
            match = self._pattern.search(text, match.start() + 1)
        return starts

    def split(
        self,
        text: str,
        literal: frozenset[int] = frozenset(),
        others: SpecialSplitter | None = None,
    ) -> Iterator[str | int]:
        """Yield the parts in order: plain text (never empty) as ``str``, special tokens as ids.

        At indices in ``literal`` only the tokens of ``others`` count.
        """
        if self._pattern is None:
            if text:
                yield text
            return
        begin = at = 0
        while (match := self._pattern.search(text, at)) is not None:
            ids = self._ids
            if match.start() in literal:
                at = match.start() + 1
                if others is None or others._pattern is None:
                    continue
                match = others._pattern.match(text, at - 1)
                if match is None:
                    continue
                ids = others._ids
            if match.start() > begin:
                yield text[begin : match.start()]
            token = ids[match.group()]
            yield token
            begin = match.end()
            if token in self._right_strip_ids:
                spaces = _SPACES.match(text, begin)
                begin = spaces.end() if spaces else begin
            at = begin
        if begin < len(text):
            yield text[begin:]
