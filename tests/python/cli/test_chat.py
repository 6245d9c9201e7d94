"""moesaic chat: without a terminal, and on a pseudo-terminal as a person has it."""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import time
from pathlib import Path

import pytest
from cli_process import start

import moesaic
from moesaic.cli.chat import Conversation, read_message


def test_lines_of_stdin_are_messages(cli, demo_path):
    script = "Good morning.\n/show\n"
    result = cli("chat", demo_path, "-n", "8", "--seed", "1", stdin=script)
    assert result.exit_code == 0
    with moesaic.Model.demo(progress=False) as m:
        g = m.chat([{"role": "user", "content": "Good morning."}], max_tokens=8, seed=1)
    answer, shown = result.stdout.split("\n", 1)
    assert answer == g.text
    assert shown.startswith(f"user: Good morning.\nassistant: {g.text}\n(")
    assert "tok/s; cut at 8 tokens" in result.stderr and ">" not in result.stdout


def test_the_conversation_is_what_the_model_sees(cli, demo_path, tmp_path):
    file = tmp_path / "talk.md"
    script = (
        f"One.\nTwo.\n/undo\n/save {file}\n/save {file}\n/undo\n/undo\n/system Be brief.\n/show\n"
    )
    result = cli("chat", demo_path, "-n", "4", stdin=script)
    text = file.read_text()
    assert "One." in text and "Two." not in text and text.count("**assistant**") == 1
    for said in ("there already", "(taken back)", "nothing to take back", "system: Be brief."):
        assert said in result.stdout


def test_settings_and_commands(cli, demo_path):
    script = (
        "/set temperature 0\n/set top_k x\n/set top_p 7\n/set nothing 1\n/set seed 9\n"
        "/set seed random\n/bogus\n/help\n/show\n/quit\nnever said\n"
    )
    result = cli("chat", demo_path, stdin=script)
    assert result.exit_code == 0 and "never said" not in result.stdout
    for said in (
        "(temperature = 0.0)",
        "got 'x', need a whole number",
        "top_p: got 7",
        "/set takes one of temperature",
        "(seed = 9)",
        "(seed = random)",
        "no command /bogus",
        "/undo ",
        "temperature 0.0, top_k 40, top_p 0.95, min_p 0.05, seed random",
    ):
        assert said in result.stdout


def test_messages_of_several_lines(cli, demo_path):
    result = cli("chat", demo_path, "-n", "2", stdin="a\\\nb\n/show\n")
    assert "user: a\nb\n" in result.stdout
    reads = iter(['"""one', "", 'two"""', "x\\", "y", '"""open'])

    def read(prompt: str = "") -> str:
        try:
            return next(reads)
        except StopIteration:
            raise EOFError from None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.input", read)
        assert read_message(True) == "one\n\ntwo"
        assert read_message(True) == "x\ny"
        assert read_message(True) == "open"
        with pytest.raises(EOFError):
            read_message(True)


def test_a_full_context_says_what_makes_room(cli, demo_path):
    result = cli("chat", demo_path, "-n", "4", "-c", "40", stdin="word " * 60 + "\n")
    assert result.exit_code == 2  # without a person an error ends it
    assert "/undo or /reset makes room" in result.stderr and "--n-ctx" in result.stderr


def test_errors_leave_the_conversation_as_it_was(demo_path):
    with moesaic.Model.demo(progress=False, n_ctx=64) as m:
        talk = Conversation(m, "Be brief.", {"max_tokens": 4, "seed": 1})
        talk.answer("One.")
        before = list(talk.messages)
        with pytest.raises(moesaic.ArgumentError, match="makes room"):
            talk.answer("word " * 100)
        assert talk.messages == before
        assert [x["role"] for x in before] == ["system", "user", "assistant"]


# -- on a terminal ---------------------------------------------------------------------------------


class Terminal:
    """moesaic chat on a pseudo-terminal."""

    def __init__(self, args: list[str], state: Path) -> None:
        self._seen = b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:  # the child; nothing of the test may run on here
            try:
                os.environ |= {"XDG_STATE_HOME": str(state), "TERM": "dumb"}
                os.execv(sys.executable, [sys.executable, "-m", "moesaic", *args])
            finally:
                os._exit(127)

    def until(self, text: str, seconds: float = 60.0) -> str:
        """Return the output up to and with a text; what lies behind it is for the next call."""
        wanted, end = text.encode(), time.monotonic() + seconds
        while wanted not in self._seen:
            assert time.monotonic() < end, f"no {text!r} came, but {self._seen!r}"
            if select.select([self.fd], [], [], 0.2)[0]:
                self._seen += self._read(text)
        said, _, self._seen = self._seen.partition(wanted)
        return (said + wanted).decode(errors="replace")

    def press_until(self, key: str, text: str) -> str:
        """Press a key until a text comes.

        CPython hears a Ctrl-C that falls between a prompt's being shown and its waiting for input
        only with the next key.
        """
        for _ in range(30):
            self.type(key)
            try:
                return self.until(text, 2.0)
            except AssertionError:
                continue
        raise AssertionError(f"no {text!r} came, but {self._seen!r}")

    def _read(self, text: str) -> bytes:
        try:
            piece = os.read(self.fd, 65536)
        except OSError:  # how Linux says that the other end was closed
            piece = b""
        assert piece, f"it ended before {text!r}, after {self._seen!r}"
        return piece

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def end(self) -> int:
        """Return the exit code."""
        while True:
            try:
                if not os.read(self.fd, 65536):
                    break
            except OSError:
                break
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def terminal(endless_path, tmp_path):
    opened: list[Terminal] = []

    def make(*args: str) -> Terminal:
        opened.append(Terminal(["chat", endless_path, *args], tmp_path))
        return opened[-1]

    yield make
    for t in opened:
        os.close(t.fd)
        try:
            os.kill(t.pid, signal.SIGKILL)
            os.waitpid(t.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def test_ctrl_c_stops_an_answer_and_keeps_the_conversation(terminal, tmp_path):
    t = terminal("-c", "200000", "-n", "190000")
    t.until("> ")
    t.type("Pray go on for a very long time.\r")
    t.until("time.\r\n")
    t.until("e")  # some of the answer
    t.type("\x03")
    assert "stopped, and kept" in t.until("> ")
    t.type("/show\r")
    shown = t.until("tokens of a context of 200000")
    assert "user: Pray go on" in shown and "assistant: " in shown
    t.until("> ")
    t.press_until("\x03", "Ctrl-D or /quit leaves")  # at the prompt it only says how to leave
    t.until("> ")
    t.type("\x04")
    assert t.end() == 0
    history = tmp_path / "moesaic" / "chat_history"
    assert "Pray go on for a very long time." in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


def test_history_comes_back_and_errors_do_not_end_it(terminal, tmp_path):
    (tmp_path / "moesaic").mkdir()
    (tmp_path / "moesaic" / "chat_history").write_text("/set top_k 7\n")
    t = terminal("-n", "4", "-c", "40")
    t.until("> ")
    t.type("\x1b[A\r")  # the arrow up
    t.until("(top_k = 7)")
    t.until("> ")
    t.type("word " * 60 + "\r")
    t.until("makes room")
    t.until("> ")
    t.type("a\\\r")
    t.until("... ")
    t.type("b\r")
    t.until("tok/s")
    t.until("> ")
    t.type("/quit\r")
    assert t.end() == 0


def test_ctrl_c_ends_run_with_130(endless_path):
    p = start("run", endless_path, "-p", "It", "-c", "200000", "-n", "190000")
    assert p.stdout is not None
    assert p.stdout.read(8)  # it runs
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=60)
    assert p.returncode == 130
    assert err.decode().splitlines()[-1] == "moesaic: interrupted" and b"Traceback" not in err
    assert out.endswith(b"\n")
