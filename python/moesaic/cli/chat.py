"""``moesaic chat MODEL``: a conversation in the terminal.

Lines are edited and remembered by readline where Python has it. A line that ends in a backslash
goes on in the next one, and three double quotes open and close a block. Lines that begin with /
are commands (``chat_commands``). Without a terminal every line of stdin is a message.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from moesaic.cli import chat_commands
from moesaic.cli import options as o
from moesaic.cli.run import figures
from moesaic.cli.terminal import command, in_flags, one_line, plain
from moesaic.errors import ArgumentError, FormatError, MoesaicError
from moesaic.generation import check_options
from moesaic.model import Model
from moesaic.results import Timings

_ANSWER_COLOUR = "\x1b[36m"  # cyan, which can be read on dark and on light
_PLAIN_COLOUR = "\x1b[0m"


@command
def chat(
    model: o.ModelPath,
    system: Annotated[str | None, typer.Option("--system", "-s", help="System message.")] = None,
    max_tokens: o.MaxTokens = o.ANSWER_TOKENS,
    temperature: o.Temperature = 0.8,
    top_k: o.TopK = 40,
    top_p: o.TopP = 0.95,
    min_p: o.MinP = 0.05,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Same seed, same answers.  [default: random]")
    ] = None,
    n_ctx: o.ContextLength = None,
    threads: o.Threads = None,
    template_var: Annotated[
        list[str] | None,
        typer.Option(
            "--template-var",
            help="A variable of the model's chat template, like enable_thinking=false.",
            show_default=False,
        ),
    ] = None,
    deterministic: o.Deterministic = False,
    cluster: o.Workers = None,
    key: o.Key = None,
    local: o.Local = None,
    on_loss: o.OnLoss = "raise",
    plan: o.PlanFile = None,
    kv_type: o.KvType = "f16",
    kv_tokens: o.KvTokens = None,
    override: o.OverrideKeys = None,
) -> None:
    """Talk with a model; /help lists the commands."""
    settings: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "seed": seed,
    }
    variables = dict(chat_commands.template_variable(text) for text in template_var or ())
    overrides = o.override_values(override, "chat")
    place = o.Place(cluster, key, local, on_loss, plan, kv_type, kv_tokens, overrides)
    with o.open_model(
        model, n_ctx=n_ctx, threads=threads, deterministic=deterministic, place=place
    ) as m:
        talk(m, system, settings, variables)


def talk(
    m: Model,
    system: str | None,
    settings: dict[str, Any],
    template_vars: dict[str, Any] | None = None,
) -> None:
    """Hold a conversation with a model that is open, until the person leaves."""
    check_options(settings, m.config.vocab, "chat")
    if "tokenizer.chat_template" not in m.metadata:
        raise FormatError(
            f"[chat] {m.path}: it has no chat template (key tokenizer.chat_template), so it was "
            'not made for conversations; use moesaic run MODEL "text"'
        )
    conversation = Conversation(m, system, settings, template_vars or {})
    if not sys.stdin.isatty():
        converse(conversation, interactive=False)
        return
    print(banner(m), file=sys.stderr)
    with line_history():
        converse(conversation, interactive=True)


def banner(m: Model) -> str:
    """Return what is said before the first question."""
    name = plain(m.config.name or Path(m.path).name)
    return (
        f"{name}: context of {m.n_ctx:,} tokens, {m.device}.\n"
        "Type a message; /help lists the commands, Ctrl-D or exit leaves."
    )


@dataclass
class Conversation:
    """The messages so far and how answers are sampled."""

    model: Model
    system: str | None
    settings: dict[str, Any]
    template_vars: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def undo(self) -> str | None:
        """Take back the last question and answer; return the question, None when there is none."""
        for i in range(len(self.messages) - 1, -1, -1):
            if self.messages[i]["role"] == "user":
                question = self.messages[i]["content"]
                del self.messages[i:]
                return question
        return None

    def retry(self) -> bool:
        """Ask the last question again; False when there is none.

        Raises
        ------
        MoesaicError
            The conversation is as it was before.
        """
        before = list(self.messages)
        question = self.undo()
        if question is None:
            return False
        try:
            self.answer(question)
        except BaseException:
            self.messages = before
            raise
        if len(self.messages) < len(before):  # stopped before it began
            self.messages = before
        return True

    def tokens_used(self) -> int:
        """Tokens that the conversation takes, with the beginning of the next answer."""
        text = self.model.render_chat(self.messages, template_vars=self.template_vars)
        return len(self.model.tokenize(text, parse_special=True))

    def answer(self, text: str) -> None:
        """Ask, print the answer as it comes, remember both. Ctrl-C keeps what was said.

        Raises
        ------
        MoesaicError
            The conversation is as it was before.
        """
        self.messages.append({"role": "user", "content": text})
        try:
            self._check_room()
            said, timings, finish = self._print_answer()
        except BaseException:
            self.messages.pop()
            raise
        if finish == "stopped" and not said:
            self.messages.pop()
            print("(stopped before it began; the question is taken back)", file=sys.stderr)
            return
        self.messages.append({"role": "assistant", "content": said})
        if timings is not None:
            print(f"[{figures(timings)}{self._note(timings, finish)}]", file=sys.stderr)

    def _note(self, timings: Timings, finish: str) -> str:
        """Why an answer ended, where that is not its own doing."""
        if finish == "stopped":
            return "; stopped, and kept as far as it came"
        if finish != "length":
            return ""
        if timings.generated_tokens >= self.settings["max_tokens"]:
            return f"; cut at {timings.generated_tokens} tokens, /set max_tokens allows more"
        return "; cut where the context is full, /undo or /reset makes room"

    def _check_room(self) -> None:
        used, n_ctx = self.tokens_used(), self.model.n_ctx
        if used >= n_ctx:
            raise ArgumentError(
                f"[chat] the conversation takes {used} tokens of a context of {n_ctx}: /undo or "
                f"/reset makes room, or start again with --n-ctx {2 * used}"
            )

    def _print_answer(self) -> tuple[str, Timings | None, str]:
        """Return what was said, how fast, and why it ended."""
        said: list[str] = []
        timings, finish = None, "stopped"
        chunks = self.model.chat(
            self.messages, stream=True, template_vars=self.template_vars, **self.settings
        )
        with coloured(sys.stdout):
            try:
                for chunk in chunks:
                    said.append(chunk.text)
                    timings, finish = chunk.timings, chunk.finish_reason or finish
                    sys.stdout.write(chunk.text)
                    sys.stdout.flush()
            except KeyboardInterrupt:
                finish = "stopped"
        if said:
            sys.stdout.write("\n")
            sys.stdout.flush()
        return "".join(said), timings, finish


@contextlib.contextmanager
def coloured(stream: TextIO) -> Iterator[None]:
    """Write in the colour of answers where a person looks on; $NO_COLOR and a dumb terminal none.

    The colour ends with the block, whatever ends it.
    """
    if (
        not stream.isatty()
        or os.environ.get("NO_COLOR")
        or os.environ.get("TERM", "dumb") == "dumb"
    ):
        yield
        return
    stream.write(_ANSWER_COLOUR)
    try:
        yield
    finally:
        stream.write(_PLAIN_COLOUR)
        stream.flush()


def converse(conversation: Conversation, *, interactive: bool) -> None:
    """Read and answer until the input ends; without a person, until the first error."""
    while True:
        try:
            text = read_message(interactive)
        except EOFError:
            if interactive:
                print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            if not interactive:
                raise
            print("\n(Ctrl-D or /quit leaves)", file=sys.stderr)
            continue
        if not text.strip():
            continue
        try:
            if interactive and text.strip().lower() in chat_commands.LEAVE:
                return
            if text.startswith("/"):
                if not chat_commands.run(conversation, text):
                    return
            else:
                conversation.answer(text)
        except BrokenPipeError:
            raise
        except (MoesaicError, OSError) as error:
            if not interactive:
                raise
            print(f"moesaic: {one_line(in_flags(str(error)))}", file=sys.stderr)


def read_message(interactive: bool) -> str:
    """One message: a line, lines joined by trailing backslashes, or a block in triple quotes."""
    line = input("> " if interactive else "")
    more = "... " if interactive else ""
    lines = [line]
    try:
        if line.strip().startswith('"""'):
            lines = [line.strip()[3:]]
            while not lines[-1].rstrip().endswith('"""'):
                lines.append(input(more))
            lines[-1] = lines[-1].rstrip()[:-3]
            return "\n".join(lines).strip("\n")
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(input(more))
    except EOFError:  # what was begun counts; the next read ends the conversation
        pass
    return "\n".join(lines)


@contextlib.contextmanager
def line_history() -> Iterator[None]:
    """Readline's history, kept between conversations under the user's state folder."""
    try:
        import readline
    except ImportError:  # a Python built without it: plain input
        yield
        return
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    path = state / "moesaic" / "chat_history"
    readline.parse_and_bind("set enable-bracketed-paste on")  # pasted lines are one message
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        readline.set_history_length(1000)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)  # conversations are private
            readline.write_history_file(path)
            path.chmod(0o600)
