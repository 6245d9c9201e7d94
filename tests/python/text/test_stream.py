"""Whole characters from any cut of the bytes; text cut exactly before a stop, whatever the
chunks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.errors import ArgumentError
from moesaic.tokenizer import StopMatcher, StreamDecoder


@settings(max_examples=300, deadline=None)
@given(
    data=st.one_of(
        st.binary(max_size=40), st.text(max_size=20).map(lambda t: t.encode("utf-8", "replace"))
    )
)
def test_one_byte_at_a_time(data: bytes) -> None:
    decoder = StreamDecoder(lambda i: bytes([i]))
    parts = [decoder.feed(b) for b in data]
    assert "".join(parts) + decoder.flush() == data.decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"\xf0\x9f\x98\x80", ["", "", "", "\U0001f600"]),
        (b"\xe4\xb8\xadx", ["", "", "中", "x"]),
        (b"\xffa", ["\ufffd", "a"]),  # can begin nothing
        (b"\xc3(", ["", "\ufffd("]),  # held until it cannot become a character
        (b"\xe0\x80", ["", "\ufffd\ufffd"]),  # overlong
        (b"\xed\xa0\x80", ["", "", "\ufffd" * 3]),  # a surrogate, known by its third byte
        (b"\xf5", ["\ufffd"]),  # beyond U+10FFFF
    ],
)
def test_bytes_are_held_exactly_as_long_as_they_can_become_text(
    data: bytes, shown: list[str]
) -> None:
    decoder = StreamDecoder(lambda i: bytes([i]))
    assert [decoder.feed(b) for b in data] == shown
    assert decoder.flush() == ""


def test_flush_ends_half_a_character() -> None:
    decoder = StreamDecoder(lambda i: bytes([i]))
    assert decoder.feed([0x61, 0xE4, 0xB8]) == "a"
    assert decoder.flush() == "\ufffd"


def test_one_leading_blank_is_dropped() -> None:
    pieces = [b"", b" ", b" a"]
    decoder = StreamDecoder(pieces.__getitem__, strip_space=True)
    assert [decoder.feed(i) for i in (0, 2, 2, 1)] == ["", "a", " a", " "]


def by_definition(stops: list[str], text: str) -> tuple[str, str | None]:
    """Cut at the stop that is complete first; of those complete at one place, the longest."""
    ends = [(text.find(s) + len(s), -len(s), s) for s in stops if s in text]
    if not ends:
        return text, None
    end, minus, stop = min(ends)
    return text[: end + minus], stop


@settings(max_examples=500, deadline=None)
@given(
    stops=st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4),
    chunks=st.lists(st.text("ab\nc", max_size=5), max_size=10),
)
def test_stops_do_not_depend_on_chunks(stops: list[str], chunks: list[str]) -> None:
    text, stop = by_definition(stops, "".join(chunks))
    matcher = StopMatcher(stops)
    shown = "".join(matcher.feed(c) for c in chunks) + matcher.flush()
    assert (shown, matcher.matched) == (text, stop)
    if stop is not None:
        assert matcher.feed("more") == "" and matcher.flush() == ""


@settings(max_examples=300, deadline=None)
@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3),
    text=st.text("abc", max_size=15),
)
def test_no_more_is_held_than_may_become_a_stop(stops: list[str], text: str) -> None:
    matcher = StopMatcher(stops)
    shown = ""
    for i, char in enumerate(text, 1):
        shown += matcher.feed(char)
        if matcher.matched is not None:
            return
        held = text[len(shown) : i]
        assert text[:i] == shown + held
        assert held == "" or any(s.startswith(held) for s in stops)


def test_wrong_stops_are_refused() -> None:
    for stops in ("", [""], ["a", ""]):
        with pytest.raises(ArgumentError, match="empty string"):
            StopMatcher(stops)
    with pytest.raises(ArgumentError, match="got int"):
        StopMatcher([3])  # type: ignore[list-item]
    assert StopMatcher("END").feed("aENDb") == "a"
    assert StopMatcher().feed("anything") == "anything"
