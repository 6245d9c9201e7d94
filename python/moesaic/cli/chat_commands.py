"""The /commands of ``moesaic chat``. What they say goes to stdout, as answers do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesaic.cli.terminal import one_line
from moesaic.errors import ArgumentError
from moesaic.generation import check_options

if TYPE_CHECKING:
    from moesaic.cli.chat import Conversation

HELP = """\
/help            this list
/reset, /clear   forget the conversation (the system message stays)
/system TEXT     set the system message and forget the conversation
/undo            take back the last question and its answer
/retry           answer the last question anew
/set NAME VALUE  temperature (temp), top_k, top_p, min_p, seed or max_tokens (n)
/set think off   or on: whether the model thinks first, where its template knows that
/set var NAME=VALUE  a variable of the chat template
/show            the conversation, tokens in use, and settings
/save FILE       write the conversation as Markdown
/quit            leave (also exit, quit and Ctrl-D)
A line that ends in \\ goes on in the next; \"\"\" opens and closes a block of lines. Ctrl-C stops
an answer; what was said stays."""

#: What leaves, typed alone on a terminal.
LEAVE = frozenset({"exit", "quit", "bye", ":q", ":wq", "exit()", "quit()"})

#: What people call settings elsewhere.
ALIASES = {
    "temp": "temperature",
    "n": "max_tokens",
    "num_predict": "max_tokens",
    "n_predict": "max_tokens",
    "max_new_tokens": "max_tokens",
}

#: The variables that templates know thinking by.
_THINKING = ("enable_thinking", "thinking")
_SWITCH = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}

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
        case "quit" | "exit" | "q" | "bye":
            return False
        case "help" | "?":
            print(HELP)
        case "reset" | "clear" | "new":
            conversation.reset()
            print("(forgotten)")
        case "system":
            conversation.system = rest or None
            conversation.reset()
            print("(system message set)" if rest else "(no system message)")
        case "undo":
            undone = conversation.undo() is not None
            print("(taken back)" if undone else "(nothing to take back)")
        case "retry" | "again" | "regenerate":
            if not conversation.retry():
                print("(nothing to answer anew)")
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
    name, _, text = rest.replace("=", " ", 1).partition(" ")
    name, text = name.lower().replace("-", "_"), text.strip()
    name = ALIASES.get(name, name)
    if name in ("think", "thinking", "nothink"):
        change_thinking(conversation, "off" if name == "nothink" else text)
        return
    if name in ("var", "template_var"):
        try:
            key, value = template_variable(rest.partition(" ")[2].strip())
        except ArgumentError as error:
            print(one_line(error))
            return
        conversation.template_vars[key] = value
        print(f"({key} = {value!r} in the template)")
        return
    if name not in SETTINGS:
        print(f"/set takes one of {', '.join(SETTINGS)}, think or var, and a value")
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


def change_thinking(conversation: Conversation, text: str) -> None:
    """``/set think on`` or ``off``."""
    if text.lower() not in _SWITCH:
        print(f"/set think: got {text!r}, need on or off")
        return
    wanted = _SWITCH[text.lower()]
    template = str(conversation.model.metadata.get("tokenizer.chat_template", ""))
    known = [name for name in _THINKING if name in template]
    conversation.template_vars |= dict.fromkeys(known or _THINKING[:1], wanted)
    note = "" if known else "; this model's template does not ask for it"
    print(f"(think = {'on' if wanted else 'off'}{note})")


def template_variable(text: str) -> tuple[str, Any]:
    """``"enable_thinking=false"`` as a name and a value: JSON where it is, else text.

    Raises
    ------
    ArgumentError
        No name and value.
    """
    name, equals, value = text.partition("=")
    name = name.strip()
    if not equals or not name.isidentifier():
        raise ArgumentError(
            f"[chat] --template-var: got {text!r}, need NAME=VALUE like enable_thinking=false"
        )
    value = value.strip()
    if value.lower() in ("true", "false"):
        return name, value.lower() == "true"
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


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
    if conversation.template_vars:
        print(", ".join(f"{k} {v!r}" for k, v in conversation.template_vars.items()))


def save(conversation: Conversation, name: str) -> None:
    """``/save FILE``."""
    if not name:
        print("/save takes a file name")
        return
    if not conversation.messages:
        print("(nothing to save yet)")
        return
    text = "".join(f"**{m['role']}**\n\n{m['content']}\n\n" for m in conversation.messages)
    try:
        with Path(name).expanduser().open("x", encoding="utf-8", errors="replace") as file:
            file.write(text)
    except FileExistsError:
        print(f"{name} is there already; give another name")
        return
    print(f"(written to {name})")
