"""The /commands of ``moesaic chat``. What they say goes to stdout, as answers do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from moesaic.cli.terminal import one_line
from moesaic.errors import ArgumentError
from moesaic.generation import check_options

if TYPE_CHECKING:
    from moesaic.cli.chat import Conversation

HELP = """\
/help            this list
/reset           forget the conversation (the system message stays)
/system TEXT     set the system message and forget the conversation
/undo            take back the last question and its answer
/set NAME VALUE  temperature, top_k, top_p, min_p, seed or max_tokens
/show            the conversation, tokens in use, and settings
/save FILE       write the conversation as Markdown
/quit            leave (also Ctrl-D)
A line that ends in \\ goes on in the next; \"\"\" opens and closes a block of lines. Ctrl-C stops
an answer; what was said stays."""

SETTINGS: dict[str, Callable[[str], float | int]] = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "seed": int,
    "max_tokens": int,
}


def run(conversation: Conversation, line: str) -> bool:
    """Carry out a /command; False means leave."""
    name, _, rest = line[1:].partition(" ")
    rest = rest.strip()
    match name.strip():
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
    name, _, text = rest.partition(" ")
    if name not in SETTINGS:
        print(f"/set takes one of {', '.join(SETTINGS)}, and a value")
        return
    try:
        value = None if (name, text) == ("seed", "random") else SETTINGS[name](text)
        check_options({name: value}, conversation.model.config.vocab, "chat")
    except ArgumentError as error:
        print(one_line(error))
        return
    except ValueError:
        kind = "a whole number" if SETTINGS[name] is int else "a number"
        print(f"/set {name}: got {text!r}, need {kind}")
        return
    conversation.settings[name] = value
    print(f"({name} = {'random' if value is None else value})")


def show(conversation: Conversation) -> None:
    """``/show``."""
    for message in conversation.messages:
        print(f"{message['role']}: {message['content']}")
    if conversation.messages:
        used = conversation.tokens_used()
        print(f"({used} tokens of a context of {conversation.model.n_ctx})")
    print(
        ", ".join(f"{k} {'random' if v is None else v}" for k, v in conversation.settings.items())
    )


def save(conversation: Conversation, name: str) -> None:
    """``/save FILE``."""
    if not name:
        print("/save takes a file name")
        return
    text = "".join(f"**{m['role']}**\n\n{m['content']}\n\n" for m in conversation.messages)
    try:
        with Path(name).expanduser().open("x", encoding="utf-8", errors="replace") as file:
            file.write(text)
    except FileExistsError:
        print(f"{name} is there already; give another name")
        return
    print(f"(written to {name})")
