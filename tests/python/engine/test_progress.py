"""Bars and callbacks: who sees what, and when nothing is shown."""

from __future__ import annotations

import io
import sys

import pytest

import moesaic
from moesaic import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def attach(monkeypatch):
    """Put a terminal in stderr's place; called in the test, since pytest sets stderr before it."""

    def attach(stderr, delay=0.0):
        monkeypatch.setattr(sys, "stderr", stderr)
        monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
        # What is quick shows no bar; here it shall.
        units = {name: (*unit[:2], delay) for name, unit in progress._UNITS.items()}
        monkeypatch.setattr(progress, "_UNITS", units)
        monkeypatch.setattr(progress, "_BYTES", (*progress._BYTES[:2], delay))
        return stderr

    return attach


def test_a_bar_on_a_terminal(attach):
    terminal = attach(Terminal())
    with moesaic.Model.demo() as m:
        assert "load" in terminal.getvalue()
        m.forward([1] * 400)
    assert "prefill" in terminal.getvalue()


def test_none_when_told_so(attach):
    terminal = attach(Terminal())
    with moesaic.Model.demo(progress=False) as m:
        m.forward([1] * 400)
    assert terminal.getvalue() == ""


def test_none_where_nobody_looks(attach):
    stderr = attach(io.StringIO())
    with moesaic.Model.demo() as m:
        m.forward([1] * 400)
    assert stderr.getvalue() == ""
    with moesaic.Model.demo(progress=True) as m:
        m.forward([1] * 400)
    assert "prefill" in stderr.getvalue()


def test_closed_or_missing_stderr(attach):
    closed = io.StringIO()
    closed.close()
    for stderr in (None, closed):
        attach(stderr)
        moesaic.Model.demo().close()


def test_short_work_shows_no_bar(attach):
    terminal = attach(Terminal(), delay=5.0)
    with moesaic.Model.demo() as m:
        m.forward([1])
    assert terminal.getvalue() == ""


def test_an_exception_of_the_callback_stops_the_work():
    def enough(stage, done, total):
        if stage == "prefill":
            raise ZeroDivisionError(stage)

    with moesaic.Model.demo(progress=enough) as m:
        with pytest.raises(ZeroDivisionError):
            m.forward([1] * 400)
        with m.session() as s:
            with pytest.raises(ZeroDivisionError):
                s.forward([1] * 400)
            assert len(s) in (0, 400)  # it may have ended before it heard
            s.truncate(0)
        assert m.stats()["active"] in (0, 1)
