"""moesaic chat: words that leave, settings by other names, retrying, thinking, colour."""

from __future__ import annotations

import io

import pytest

import moesaic
from moesaic.cli import chat as chat_module
from moesaic.cli.chat import Conversation, banner, coloured
from moesaic.cli.chat_commands import run, template_variable


@pytest.fixture(scope="module")
def demo():
    with moesaic.Model.demo(progress=False) as m:
        yield m


@pytest.fixture
def talk(demo):
    return Conversation(demo, None, {"max_tokens": 4, "seed": 1})


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("/set temp 0.5", "temperature", 0.5), ("/set temp=0.5", "temperature", 0.5),
        ("/set n 7", "max_tokens", 7), ("/set num_predict 7", "max_tokens", 7),
        ("/set top-k 3", "top_k", 3), ("/set  TOP_P  0.5", "top_p", 0.5),
    ],
)  # fmt: skip
def test_settings_by_other_names(talk, line, name, value):
    run(talk, line)
    assert talk.settings[name] == value


def test_clear_retry_and_saving_nothing(talk, tmp_path, capsys):
    run(talk, "/retry")
    run(talk, f"/save {tmp_path / 'talk.md'}")
    assert not (tmp_path / "talk.md").exists()
    said = capsys.readouterr().out
    assert "(nothing to answer anew)" in said and "(nothing to save yet)" in said
    talk.answer("One.")
    first = list(talk.messages)
    run(talk, "/retry")
    assert talk.messages == first  # the same seed
    talk.settings["max_tokens"] = 2
    run(talk, "/retry")
    assert [m["role"] for m in talk.messages] == ["user", "assistant"]
    assert talk.messages[0] == first[0] and talk.messages[1] != first[1]
    run(talk, "/clear")
    assert talk.messages == []


def test_a_retry_that_fails_leaves_the_conversation(talk):
    talk.answer("One.")
    before = list(talk.messages)
    talk.settings["top_p"] = 7
    with pytest.raises(moesaic.ArgumentError):
        run(talk, "/retry")
    assert talk.messages == before


def test_thinking_and_variables_reach_the_template(talk, demo, capsys, monkeypatch):
    seen = []
    render = type(demo).render_chat

    def spy(self, messages, **options):
        seen.append(options.get("template_vars"))
        return render(self, messages, **options)

    monkeypatch.setattr(type(demo), "render_chat", spy)
    run(talk, "/set think off")
    run(talk, "/set var style=brief")
    run(talk, "/set var")
    run(talk, "/set think perhaps")
    said = capsys.readouterr().out
    assert "(think = off; this model's template does not ask for it)" in said
    assert "need NAME=VALUE" in said and "need on or off" in said
    talk.answer("One.")
    assert all(v == {"enable_thinking": False, "style": "brief"} for v in seen) and seen


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=false", False),
        ("a=True", True),
        ("a=3", 3),
        ("a=[1]", [1]),
        ("a=b=c", "b=c"),
        ("a=", ""),
    ],
)
def test_values_of_template_variables(text, value):
    assert template_variable(text) == ("a", value)


@pytest.mark.parametrize("text", ["", "a", "=1", "1a=2", "a b=1"])
def test_what_is_no_template_variable(cli, demo_path, text):
    with pytest.raises(moesaic.ArgumentError, match="need NAME=VALUE"):
        template_variable(text)
    result = cli("chat", demo_path, "--template-var", text)
    assert result.exit_code == 2 and "--template-var" in result.stderr


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_only_where_it_is_wanted(monkeypatch):
    def shown(stream, **env):
        for name in ("NO_COLOR", "TERM"):
            monkeypatch.delenv(name, raising=False)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(KeyboardInterrupt), coloured(stream):
            stream.write("x")
            raise KeyboardInterrupt
        return stream.getvalue()

    assert shown(Screen(), TERM="xterm") == "\x1b[36mx\x1b[0m"
    assert shown(Screen(), TERM="xterm", NO_COLOR="1") == "x"
    assert shown(Screen(), TERM="dumb") == shown(Screen()) == "x"
    assert shown(io.StringIO(), TERM="xterm") == "x"


def test_the_banner_names_model_and_context(demo):
    said = banner(demo)
    assert "512 tokens" in said and demo.config.name in said and "exit" in said


@pytest.mark.parametrize("word", ["exit", "quit", "Exit", " bye ", ":q"])
def test_words_that_leave(talk, monkeypatch, word):
    lines = iter([word, "never read"])
    monkeypatch.setattr(chat_module, "read_message", lambda interactive: next(lines))
    chat_module.converse(talk, interactive=True)
    assert talk.messages == [] and next(lines) == "never read"


def test_a_piped_word_is_a_message(cli, demo_path):
    assert "user: exit" in cli("chat", demo_path, "-n", "2", stdin="exit\n/show\n").stdout
