"""A rendered chat: the prompt as text, with the places where users' words spell control tokens.

Such words are marked while the template runs (`Marks`): a character of the private use area behind
the first letter of each spelling, so that nothing that templates do at the ends of texts (trim,
join, JSON) sees it. The marks are taken out of the result, and the text without them must equal
what the template gives for unmarked messages. Not here: rendering (chat.py), tokens (tokenizer/).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

#: Finds where control tokens are spelled in a text: indices of their first characters.
FindControl = Callable[[str], list[int]]

_PRIVATE = [chr(c) for c in range(0xE8C0, 0xE900)]


class RenderedChat(str):
    """Text of a chat, as its template wrote it.

    It is a ``str`` in every way. ``generate`` and all that takes a prompt reads the template's own
    control tokens in it as tokens, and those that a message only spells as plain text.

    Attributes
    ----------
    literal : frozenset of int
        Indices of characters at which no control token begins, although one is spelled there.
    """

    literal: frozenset[int]

    def __new__(cls, text: str, literal: Iterable[int] = ()) -> RenderedChat:
        """Make one from the text, and where it spells control tokens that are none."""
        self = super().__new__(cls, text)
        self.literal = frozenset(literal)
        return self


class Marks:
    """Marks behind the first characters of control tokens spelled in messages and tools."""

    def __init__(self, find: FindControl, values: Any) -> None:
        self._find = find
        dump = json.dumps(values, ensure_ascii=False)
        self.mark = next((c for c in _PRIVATE if c not in dump), "")
        self._pattern = re.compile(rf"{self.mark}|\\u{ord(self.mark or ' '):04x}")

    def keys(self, values: Any) -> list[tuple[str, str]]:
        """Which there are: (role or "tools", the text from the token on, shortened)."""
        found: dict[tuple[str, str], None] = {}
        self._walk(values, None, found)
        return list(found)

    def put(self, values: Any, keys: Iterable[tuple[str, str]]) -> Any:
        """A copy of messages or tools with the marks of ``keys`` in all their texts."""
        return self._walk(values, frozenset(keys), {})

    def take(self, text: str) -> tuple[str, list[int]]:
        """The text without marks, and the indices of the characters they stood behind."""
        parts: list[str] = []
        literal: list[int] = []
        begin = length = 0
        for match in self._pattern.finditer(text):
            parts.append(text[begin : match.start()])
            length += match.start() - begin
            literal.append(length - 1)
            begin = match.end()
        return "".join([*parts, text[begin:]]), literal

    def _walk(
        self,
        value: Any,
        keys: frozenset[tuple[str, str]] | None,
        found: dict[tuple[str, str], None],
        owner: str = "tools",
    ) -> Any:
        if isinstance(value, str):
            return self._marked(value, keys, found, owner)
        if isinstance(value, list):
            return [self._walk(item, keys, found, owner) for item in value]
        if isinstance(value, dict):
            owner = str(value.get("role", owner))
            return {
                self._marked(k, keys, found, owner): (
                    v if k == "role" else self._walk(v, keys, found, owner)
                )
                for k, v in value.items()
            }
        return value

    def _marked(
        self,
        text: str,
        keys: frozenset[tuple[str, str]] | None,
        found: dict[tuple[str, str], None],
        owner: str,
    ) -> str:
        begin = 0
        parts: list[str] = []
        for start in self._find(text):
            key = (owner, text[start : start + 24])
            if keys is None:
                found[key] = None
            elif key in keys:
                parts.append(text[begin : start + 1])
                begin = start + 1
        return text if not parts else self.mark.join([*parts, text[begin:]])
