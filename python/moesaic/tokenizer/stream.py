"""A stream of tokens as text: whole characters only, and cut exactly before a stop string.

Both classes are pure: they know no model and no vocabulary beyond a function from id to bytes.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence

from moesaic.errors import ArgumentError


class StreamDecoder:
    r"""Turns token ids into text as they come, never yielding half a UTF-8 character.

    Bytes that can still become a character are held back; bytes that no longer can become U+FFFD.
    What all calls yield, joined, is what :meth:`Tokenizer.decode` gives for all the ids. Made by
    :meth:`Tokenizer.stream_decoder`.

    Parameters
    ----------
    piece
        Bytes of a token, empty for one that is not shown.
    strip_space
        Whether one leading blank of the whole text is dropped (SentencePiece adds it to every
        text).

    Examples
    --------
    >>> pieces = [b"caf", b"\xc3", b"\xa9", b"\xff!"]
    >>> decoder = StreamDecoder(pieces.__getitem__)
    >>> [decoder.feed(i) for i in range(4)], decoder.flush()
    (['caf', '', 'é', '�!'], '')
    """

    def __init__(self, piece: Callable[[int], bytes], *, strip_space: bool = False) -> None:
        self._piece = piece
        self._strip_space = strip_space
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, ids: int | Iterable[int]) -> str:
        """Take one id or several; return the text that is now certain."""
        data = b"".join(map(self._piece, ids if isinstance(ids, Iterable) else (ids,)))
        if self._strip_space and data:
            self._strip_space = False
            data = data.removeprefix(b" ")
        return self._decoder.decode(data)

    def flush(self) -> str:
        """End the text: bytes still held back become U+FFFD."""
        return self._decoder.decode(b"", final=True)


class StopMatcher:
    r"""Cuts a stream of text exactly before the first stop string.

    A stop ends the text as soon as its last character has come, wherever the chunks were cut; of
    several that end at one place the longest counts. Text that may still turn out to be the
    beginning of a stop is held back.

    Parameters
    ----------
    stops
        One stop string or several, none of them empty. None at all is fine: everything passes.

    Raises
    ------
    ArgumentError
        A stop is empty or not a string.

    Examples
    --------
    >>> stop = StopMatcher(["\nUser:", "END"])
    >>> [stop.feed(text) for text in ("Hello E", "N route", "\nUs", "er: hi")], stop.matched
    (['Hello ', 'EN route', '', ''], '\nUser:')
    """

    def __init__(self, stops: str | Sequence[str] = ()) -> None:
        self._stops = [stops] if isinstance(stops, str) else list(stops)
        for i, stop in enumerate(self._stops):
            if not isinstance(stop, str):
                raise ArgumentError(
                    f"[StopMatcher] stops[{i}]: got {type(stop).__name__}, need a string"
                )
            if not stop:
                raise ArgumentError(
                    f"[StopMatcher] stops[{i}]: got an empty string, need at least one character;"
                    " every text would end before it began"
                )
        self._borders = [_borders(stop) for stop in self._stops]
        self._states = [0] * len(self._stops)  # how many characters of each stop the text ends with
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        """Take the next text; return what can be shown. After a stop nothing more comes."""
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        states = self._states
        for end, char in enumerate(text, 1):
            longest = 0
            for k, stop in enumerate(self._stops):
                borders, state = self._borders[k], states[k]
                while state and stop[state] != char:
                    state = borders[state - 1]
                state += stop[state] == char
                states[k] = state
                if state == len(stop) > longest:
                    longest, self.matched = state, stop
            if self.matched is not None:
                whole = self._held + text[:end]
                self._held = ""
                return whole[: len(whole) - longest]
        whole = self._held + text
        shown = len(whole) - max(states)
        self._held = whole[shown:]
        return whole[:shown]

    def flush(self) -> str:
        """End the text: what was held back in case of a stop is text after all."""
        held, self._held = self._held, ""
        self._states = [0] * len(self._stops)
        return held


def _borders(text: str) -> list[int]:
    """Length of the longest proper prefix of text[: i + 1] that ends it (Knuth, Morris, Pratt)."""
    borders = [0] * len(text)
    state = 0
    for i in range(1, len(text)):
        while state and text[state] != text[i]:
            state = borders[state - 1]
        state += text[state] == text[i]
        borders[i] = state
    return borders
