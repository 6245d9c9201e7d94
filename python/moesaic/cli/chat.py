"""``moesaic chat MODEL``: a conversation in the terminal.

Lines are edited and remembered by readline where Python has it. A line ending in a backslash goes
on in the next one,
and three double quotes open and close a block. Lines that begin with / are commands.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from moesaic.cli import options as o
from moesaic.cli.run import figures
from moesaic.errors import MoesaicError
from moesaic.model import Model

HELP = """\
/help            this list
/reset           forget the conversation (the system message stays)
/system TEXT     set the system message and forget the conversation
/undo            take back the last question and its answer
/set NAME VALUE  temperature, top_k, top_p, min_p, seed or max_tokens
/show            the conversation, settings and tokens in use
/save FILE       write the conversation as Markdown
/quit            leave (also Ctrl-D)
A line ending in \\ goes on in the next; \"\"\" opens and closes a block of lines. Ctrl-C stops an
answer."""

SETTINGS: dict[str, Callable[[str], float | int]] = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "seed": int,
    "max_tokens": int,
}


def chat(
    model: o.ModelPath,
    system: Annotated[str | None, typer.Option("--system", "-s", help="System message.")] = None,
    max_tokens: o.MaxTokens = 1024,
    temperature: o.Temperature = 0.8,
    top_k: o.TopK = 40,
    top_p: o.TopP = 0.95,
    min_p: o.MinP = 0.05,
    seed: o.Seed = None,
    n_ctx: o.ContextLength = 4096,
    threads: o.Threads = None,
    deterministic: o.Deterministic = False,
) -> None:
    """Talk with a model in the terminal; /help lists the commands."""
    with o.open_model(model, n_ctx=n_ctx, threads=threads, deterministic=deterministic) as m:
        conversation = Conversation(
            m,
            system,
            {
                "max_tokens": max_tokens,
                "temperature": temperature,
                "top_k": top_k,
                "top_p": top_p,
                "min_p": min_p,
                "seed": seed,
            },
        )
        with line_history():
            converse(conversation)


@dataclass
class Conversation:
    """The messages so far and how answers are sampled."""

    model: Model
    system: str | None
    settings: dict[str, Any]
    messages: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def undo(self) -> bool:
        """Take back the last question and answer; False when there is none."""
        for i in range(len(self.messages) - 1, -1, -1):
            if self.messages[i]["role"] == "user":
                del self.messages[i:]
                return True
        return False

    def answer(self, text: str) -> None:
        """Ask, print the answer as it comes, remember both; Ctrl-C keeps what was said."""
        self.messages.append({"role": "user", "content": text})
        said: list[str] = []
        timings = None
        try:
            for chunk in self.model.chat(self.messages, stream=True, **self.settings):
                said.append(chunk.text)
                timings = chunk.timings
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
        except KeyboardInterrupt:
            sys.stdout.write(" [stopped]")
        except MoesaicError:
            self.messages.pop()
            raise
        sys.stdout.write("\n")
        self.messages.append({"role": "assistant", "content": "".join(said)})
        if timings is not None:
            print(figures(timings), file=sys.stderr)


def converse(conversation: Conversation) -> None:
    """Read, answer, until the input ends."""
    interactive = sys.stdin.isatty()
    if interactive:
        print("Type a message; /help lists the commands.", file=sys.stderr)
    while True:
        try:
            text = read_message("> " if interactive else "")
        except EOFError:
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /quit leaves)", file=sys.stderr)
            continue
        if not text.strip():
            continue
        try:
            if text.startswith("/"):
                if not command(conversation, text):
                    return
            else:
                conversation.answer(text)
        except (MoesaicError, OSError, ValueError) as error:
            print(f"moesaic: {error}", file=sys.stderr)


def read_message(prompt: str) -> str:
    """One message: a line, lines joined by trailing backslashes, or a block in triple quotes."""
    line = input(prompt)
    if line.strip().startswith('"""'):
        lines = [line.strip()[3:]]
        while not lines[-1].rstrip().endswith('"""'):
            lines.append(input("... " if prompt else ""))
        lines[-1] = lines[-1].rstrip()[:-3]
        return "\n".join(lines).strip("\n")
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(input("... " if prompt else ""))
    return "\n".join(lines)


def command(conversation: Conversation, line: str) -> bool:
    """Carry out a /command; False means leave."""
    name, _, rest = line[1:].partition(" ")
    rest = rest.strip()
    match name:
        case "quit" | "exit" | "q":
            return False
        case "help" | "?":
            print(HELP)
        case "reset":
            conversation.reset()
            print("(forgotten)")
        case "system":
            conversation.system = rest or None
            conversation.reset()
            print("(system message set)" if rest else "(no system message)")
        case "undo":
            print("(taken back)" if conversation.undo() else "(nothing to take back)")
        case "set":
            change_setting(conversation, rest)
        case "show":
            show(conversation)
        case "save":
            save(conversation, rest)
        case _:
            print(f"no command /{name}; /help lists them")
    return True


def change_setting(conversation: Conversation, rest: str) -> None:
    """``/set NAME VALUE``."""
    name, _, value = rest.partition(" ")
    if name not in SETTINGS:
        print(f"/set takes one of {', '.join(SETTINGS)}")
        return
    try:
        conversation.settings[name] = SETTINGS[name](value)
    except ValueError:
        print(f"/set {name}: {value!r} is not a number")
        return
    print(f"({name} = {conversation.settings[name]})")


def show(conversation: Conversation) -> None:
    """``/show``."""
    for message in conversation.messages:
        print(f"{message['role']}: {message['content']}")
    if conversation.messages:
        text = conversation.model.render_chat(conversation.messages)
        used = len(conversation.model.tokenize(text, add_special=False, parse_special=True))
        print(f"({used} tokens of a context of {conversation.model.n_ctx})")
    print(", ".join(f"{k} {v}" for k, v in conversation.settings.items()))


def save(conversation: Conversation, name: str) -> None:
    """``/save FILE``."""
    if not name:
        print("/save takes a file name")
        return
    text = "".join(f"**{m['role']}**\n\n{m['content']}\n\n" for m in conversation.messages)
    Path(name).expanduser().write_text(text)
    print(f"(written to {name})")


@contextlib.contextmanager
def line_history() -> Any:
    """Readline's history, kept between conversations under the user's state folder."""
    try:
        import readline
    except ImportError:  # a Python built without it: plain input
        yield
        return
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    path = state / "moesaic" / "chat_history"
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        readline.set_history_length(1000)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)
            path.chmod(0o600)  # conversations are private
