"""Chat messages in the forms that clients and datasets send, brought into one form.

OpenAI's, vLLM's and transformers' users send dicts, pydantic objects and dataclasses, content as
text or as a list of parts, fields that are null, arguments of tool calls as JSON text or as
objects, reasoning under several names. Templates expect one of these forms each, and which one is
known only by rendering: `Conversation.forms` yields them, the likeliest first, and `losses` counts
what a rendered text has lost. Not here: rendering (chat.py).
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from moesaic.errors import ArgumentError

WHERE = "[ChatTemplate.render]"

_REASONING_NAMES = ("reasoning_content", "reasoning", "thinking")
_TEXT_PARTS = ("text", "input_text", "output_text")
_REASONING_PARTS = ("thinking", "reasoning")
# Word in the type of a part that is not text -> what the model does not take.
_MEDIA = {
    "image": "images",
    "audio": "audio",
    "video": "videos",
    "file": "files",
    "document": "files",
    "media": "media",
}
# A role, and what it is called in templates that do not know it.
_OTHER_ROLES = {
    "developer": ("system",),
    "function": ("tool", "ipython"),
    "ipython": ("tool",),
    "tool": ("ipython",),
}
_RESULT_ROLES = ("tool", "function", "ipython")

JsonDict = dict[str, Any]


def plain(value: Any) -> Any:
    """What JSON does not know by itself, as something it knows; ``default=`` of ``json.dumps``."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, enum.Enum):
        return value.value
    fields = _fields_of(value)
    if fields is not None:
        return fields
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return list(value)
    if callable(value):
        name = getattr(value, "__name__", type(value).__name__)
        raise TypeError(
            f"got the function {name!r}; a tool is declared as "
            '{"type": "function", "function": {"name": ..., "parameters": JSON schema}}'
        )
    raise TypeError(f"got a value of type {type(value).__name__}")


def _fields_of(value: Any) -> JsonDict | None:
    """Fields of an object that is a record: of pydantic, a dataclass, or a named tuple."""
    if isinstance(value, type):
        return None
    for method in ("model_dump", "_asdict", "dict"):
        dump = getattr(value, method, None)
        if callable(dump):
            return dict(dump())
    if dataclasses.is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if hasattr(value, "role") and hasattr(value, "__dict__"):
        return {k: v for k, v in vars(value).items() if not k.startswith("_")}
    return None


def to_json(value: Any, what: str) -> Any:
    """Return what JSON can say of ``value``: a copy that nothing else holds."""
    try:
        return json.loads(json.dumps(value, default=plain))
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(f"{WHERE} {what}: {error}; need what JSON can say") from None


def text_of(message: Any) -> str:
    """Return the words of one message, its parts joined."""
    content = _normalised(to_json(_shallow(message), "messages"), -1)["content"]
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content)
    return content if isinstance(content, str) else ""


def checked_tools(tools: Any) -> list[Any] | None:
    """Return tool declarations as JSON knows them, without null fields; None when there are none.

    Raises
    ------
    ArgumentError
        Not a list, or with a value that JSON cannot say.
    """
    if tools is None:
        return None
    if isinstance(tools, str | Mapping) or not isinstance(tools, Sequence):
        raise ArgumentError(
            f"{WHERE} tools: got {type(tools).__name__}, need a list of tool declarations such"
            ' as {"type": "function", "function": {...}}'
        )
    declared: list[Any] = to_json(list(tools), "tools")
    for i, tool in enumerate(declared):
        if isinstance(tool, dict):
            declared[i] = tool = _without_nulls(tool)
            if isinstance(tool.get("function"), dict):
                tool["function"] = _without_nulls(tool["function"])
    return declared or None


def tool_names(tools: list[Any]) -> list[str]:
    """Names of the functions that tool declarations declare."""
    functions = [t.get("function", t) if isinstance(t, dict) else None for t in tools]
    names = [f.get("name") if isinstance(f, dict) else None for f in functions]
    return [name for name in names if isinstance(name, str) and name]


class Conversation:
    """Checked messages, and the forms in which a template may want them.

    Parameters
    ----------
    messages
        What the caller gave.

    Raises
    ------
    ArgumentError
        Not a list of messages, a part that is not text, or a value that JSON cannot say.
    """

    def __init__(self, messages: Any) -> None:
        if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
            raise ArgumentError(
                f"{WHERE} messages: got {type(messages).__name__}, need a list of"
                ' {"role": "user", "content": "..."}'
            )
        for i, message in enumerate(messages):
            if not isinstance(message, Mapping) and (
                isinstance(message, str) or _fields_of(message) is None
            ):
                raise ArgumentError(
                    f"{WHERE} messages[{i}]: got {type(message).__name__}, need a mapping such as"
                    ' {"role": "user", "content": "..."}'
                )
        raw = to_json([_shallow(m) for m in messages], "messages, tools or template_vars")
        self.messages: list[JsonDict] = [_normalised(m, i) for i, m in enumerate(raw)]

    def mark_end(self, mark: str) -> None:
        """Put ``mark`` behind the last message's words: its content, or its reasoning alone.

        Raises
        ------
        ArgumentError
            There is no last message of an assistant with text to continue.
        """
        last = self.messages[-1] if self.messages else {"role": "nothing"}
        if last.get("role") != "assistant" or last.get("tool_calls"):
            raise ArgumentError(
                f"{WHERE} continue_final_message: got a last message of role "
                f"{last.get('role')!r}{' with tool calls' if last.get('tool_calls') else ''}, need "
                "one of role 'assistant' with the text to continue"
            )
        content = last["content"]
        if isinstance(content, list):
            content[-1]["text"] += mark
        elif content == "" and last.get(_REASONING_NAMES[0]):
            last |= {name: last[name] + mark for name in _REASONING_NAMES}
        else:
            last["content"] = content + mark

    def forms(self, source: str) -> Iterator[list[JsonDict]]:
        """Yield the messages as templates may want them, the likeliest form first.

        Each choice is made for all messages at once: content as parts or as text, results of tools
        and arguments of calls as objects or as JSON text, the content beside tool calls empty or
        null. A choice that makes no difference is not offered.
        """
        in_parts = [m for m in self.messages if isinstance(m["content"], list)]
        roles = sorted({str(m.get("role")) for m in in_parts})
        has_objects = any(isinstance(m["content"], _Result) for m in self.messages)
        calls = [m for m in self.messages if m.get("tool_calls")]
        has_arguments = any(isinstance(f.get("arguments"), dict) for f in _functions(calls))
        bare = any(m["content"] == "" for m in calls)
        as_parts: list[frozenset[str]] = [frozenset()]
        if in_parts:
            as_parts = [frozenset(roles), *(frozenset([r]) for r in roles if len(roles) > 1)]
            as_parts.append(frozenset())
        if _wants_parts(source):
            as_parts.append(frozenset(["*"]))
        for parts, result_text, argument_text, empty in product(
            as_parts,
            (False, True) if has_objects else (False,),
            (False, True) if has_arguments else (False,),
            ("", None) if bare else ("",),
        ):
            yield [
                _in_form(m, source, parts, result_text, argument_text, empty) for m in self.messages
            ]

    def losses(self, text: str) -> int:
        """Count what a rendered text lacks, or holds as a dump of the data around it.

        Words of an assistant are left out: templates drop its reasoning on purpose.
        """
        lost = 0
        said = "".join(str(m["content"]) for m in self.messages if isinstance(m["content"], str))
        for message in self.messages:
            content = message["content"]
            if isinstance(content, list):
                pieces = [part["text"] for part in content]
                said += "".join(pieces)
                lost += sum(not _appears(piece, text) for piece in pieces)
            elif isinstance(content, _Result):
                lost += 10 * text.count(repr(content.value))
            elif message.get("role") != "assistant":
                lost += not _appears(content, text)
        for mark in ("'type': 'text'", '"type": "text"', '"type":"text"'):
            lost += 10 * max(0, text.count(mark) - said.count(mark))
        for function in _functions(self.messages):
            name, arguments = function.get("name"), function.get("arguments")
            lost += isinstance(name, str) and name not in text
            if isinstance(arguments, dict) and arguments:
                lost += 10 * (repr(arguments) in text)
        return lost


class _Result:
    """What a tool gave back, as data."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def text(self) -> str:
        return json.dumps(self.value, ensure_ascii=False)


class _Arguments(dict[str, Any]):
    """Arguments of a call that were given as JSON text."""

    def __init__(self, values: JsonDict, text: str) -> None:
        super().__init__(values)
        self.text = text


def _shallow(message: Any) -> JsonDict:
    """Fields of a message, those inside it as they are."""
    return dict(message) if isinstance(message, Mapping) else _fields_of(message) or {}


def _without_nulls(value: JsonDict) -> JsonDict:
    return {k: v for k, v in value.items() if v is not None}


def _normalised(raw: JsonDict, index: int) -> JsonDict:
    """One message: null fields dropped, content text, parts or a result, calls in one form."""
    message = _without_nulls(raw)
    thoughts: list[str] = []
    content = _content(message.get("content", ""), message.get("role"), index, thoughts)
    calls = message.pop("tool_calls", None)
    if not calls and isinstance(message.get("function_call"), dict):
        calls = [{"type": "function", "function": message.pop("function_call")}]
    details = message.pop("reasoning_details", None)
    given = [message[n] for n in _REASONING_NAMES if isinstance(message.get(n), str)]
    thoughts = [text for text in given if text][:1] or thoughts or _details(details)
    if thoughts:
        filled = dict.fromkeys(_REASONING_NAMES, "\n".join(thoughts))
        message = {**filled, **{k: v for k, v in message.items() if k not in filled or v}}
    if calls:
        message["tool_calls"] = [_call(call, index) for call in _as_list(calls, index)]
    message["content"] = content
    return message


def _details(details: Any) -> list[str]:
    """Texts of OpenRouter's ``reasoning_details``."""
    items = details if isinstance(details, list) else []
    texts = [d.get("text", d.get("summary")) for d in items if isinstance(d, dict)]
    return [text for text in texts if isinstance(text, str) and text]


def _as_list(calls: Any, index: int) -> list[Any]:
    if isinstance(calls, list):
        return calls
    raise ArgumentError(
        f"{WHERE} messages[{index}].tool_calls: got {type(calls).__name__}, need a list of "
        '{"type": "function", "function": {"name": ..., "arguments": ...}}'
    )


def _call(call: Any, index: int) -> JsonDict:
    """One tool call, its arguments an object where they are one, however they were written."""
    if not isinstance(call, dict):
        raise ArgumentError(
            f"{WHERE} messages[{index}].tool_calls: got {type(call).__name__} among them, need "
            '{"type": "function", "function": {"name": ..., "arguments": ...}}'
        )
    call = _without_nulls(call)
    if not isinstance(call.get("function"), dict) and isinstance(call.get("name"), str):
        rest = {k: call.pop(k) for k in ("name", "arguments") if k in call}
        call = {**call, "type": "function", "function": rest}
    function = call.get("function")
    if isinstance(function, dict):
        function = _without_nulls(function)
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                parsed = json.loads(arguments) if arguments.strip() else {}
            except ValueError:
                parsed = arguments
            # What is not an object stays text, and an object keeps how it was written.
            arguments = _Arguments(parsed, arguments) if isinstance(parsed, dict) else arguments
        function = {**function, "arguments": arguments}
        return {"type": "function", **call, "function": function}
    return dict(call)


def _content(content: Any, role: Any, index: int, thoughts: list[str]) -> Any:
    """Content as text, as a list of text parts, or as what a tool gave back."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    parts = content if isinstance(content, list) else [content]
    are_parts = all(
        isinstance(p, str) or (isinstance(p, dict) and (_part_type(p) or "text" in p))
        for p in parts
    )
    if not are_parts:
        if role in _RESULT_ROLES:
            return _Result(content)
        raise ArgumentError(
            f"{WHERE} messages[{index}].content: got {type(content).__name__} that is not a list "
            'of parts, need text or [{"type": "text", "text": "..."}]'
        )
    texts = [text for p in parts if (text := _part_text(p, role, index, thoughts)) is not None]
    return [{"type": "text", "text": text} for text in texts] if texts else ""


def _part_type(part: JsonDict) -> str | None:
    kind = part.get("type")
    return kind if isinstance(kind, str) else None


def _part_text(part: Any, role: Any, index: int, thoughts: list[str]) -> str | None:
    """Text of one part; None for a part of reasoning, which goes to ``thoughts``."""
    if isinstance(part, str):
        return part
    part = _without_nulls(part)
    kind = _part_type(part) or "text"
    if kind in _TEXT_PARTS and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind == "refusal" and isinstance(part.get("refusal"), str):
        return str(part["refusal"])
    if kind in _REASONING_PARTS and role == "assistant":
        inner = part.get(kind, part.get("text", ""))
        for item in inner if isinstance(inner, list) else [inner]:
            thoughts.append(str(item.get("text", "")) if isinstance(item, dict) else str(item))
        return None
    where = f"{WHERE} messages[{index}].content"
    medium = next((name for word, name in _MEDIA.items() if word in kind), None)
    if medium is not None:
        raise ArgumentError(
            f"{where}: got a part of type {kind!r}, need text: this model and build take no "
            f"{medium}; leave the part out"
        )
    if kind in _TEXT_PARTS:
        raise ArgumentError(f"{where}: got a part of type {kind!r} without a string as its 'text'")
    raise ArgumentError(
        f'{where}: got a part of type {kind!r}, need parts {{"type": "text", "text": "..."}}'
    )


def _functions(messages: list[JsonDict]) -> Iterator[JsonDict]:
    for message in messages:
        for call in message.get("tool_calls", ()):
            if isinstance(call.get("function"), dict):
                yield call["function"]


def _wants_parts(source: str) -> bool:
    """Whether a template may take content only as parts: it goes through them."""
    return "content" in source and ("['text']" in source or ".text" in source)


def _in_form(
    message: JsonDict,
    source: str,
    parts: frozenset[str],
    result_text: bool,
    argument_text: bool,
    empty: str | None,
) -> JsonDict:
    """A copy of a message in one of the forms that templates want."""
    made = {**message, "role": _role(message.get("role"), source)}
    if "role" not in message:
        del made["role"]
    content = message["content"]
    if isinstance(content, list):
        if str(message.get("role")) not in parts and "*" not in parts:
            made["content"] = "\n".join(part["text"] for part in content)
    elif isinstance(content, _Result):
        scalar = not isinstance(content.value, dict | list)
        made["content"] = content.text() if result_text or scalar else content.value
    elif content == "" and message.get("tool_calls"):
        made["content"] = empty
    elif "*" in parts:
        made["content"] = [{"type": "text", "text": content}]
    if argument_text and "tool_calls" in made:
        made["tool_calls"] = [_with_argument_text(call) for call in made["tool_calls"]]
    return made


def _with_argument_text(call: JsonDict) -> JsonDict:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), dict):
        return call
    arguments = function["arguments"]
    text = arguments.text if isinstance(arguments, _Arguments) else ""
    text = text or json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": text}}


def _role(role: Any, source: str) -> Any:
    """The role as the template knows it."""
    others = _OTHER_ROLES.get(role, ()) if isinstance(role, str) else ()
    if not others or _names(role, source):
        return role
    return next((other for other in others if _names(other, source)), _default(role))


def _default(role: str) -> str:
    """What a template that names no roles gets: the names of the field."""
    return {"developer": "system", "function": "tool"}.get(role, role)


def _names(role: str, source: str) -> bool:
    return f'"{role}"' in source or f"'{role}'" in source


def _appears(piece: str, text: str) -> bool:
    piece = piece.strip()
    return piece in text or json.dumps(piece, ensure_ascii=False)[1:-1] in text
