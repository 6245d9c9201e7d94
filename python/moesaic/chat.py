"""Chat templates: Jinja text in a model file that turns messages into a prompt.

Templates are programs from files that anybody may have made. They run in jinja2's immutable
sandbox, and that runs in small processes of its own (template_process.py, _chat_worker.py) with
bounded time, memory and output: a single operation such as ``10 ** 10 ** 9`` cannot be interrupted
inside this process, and holds its lock on all Python threads. The first template starts one (about
0.2 s), which serves later ones (about a millisecond each). What templates expect follows
``apply_chat_template`` of Hugging Face transformers; which form of messages a template takes is
found by rendering them (messages.py). Not here: tokenizing the result.
"""

from __future__ import annotations

import datetime
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Any

import numpy as np

from moesaic import template_process
from moesaic.errors import ArgumentError, DeadlineError, FormatError
from moesaic.messages import Conversation, checked_tools, to_json, tool_names
from moesaic.rendered import FindControl, Marks, RenderedChat

WHERE = "[ChatTemplate.render]"
_MAX_SOURCE_BYTES = 1 << 20
_MOST_FORMS = 32  # forms of messages that are tried with one template
_FAILED = ("refused", "error")  # what another form of the messages may mend
# Put behind the message that is continued; a template that trims takes the blank off.
_HERE = "\ue8b0continue here\ue8b0 "


class ChatTemplate:
    """A chat template, ready to render.

    Parameters
    ----------
    source
        The template in Jinja.
    bos_token, eos_token
        Texts of the special tokens, as templates name them.
    special_tokens
        Further ones: ``{"pad_token": ..., "unk_token": ...}``.
    named
        Templates for special uses, name -> source. ``tool_use`` takes the place of ``source`` when
        tools are given.
    max_seconds
        Time one rendering may take.
    max_bytes
        Size of the text, in UTF-8, that one rendering may give.
    max_memory
        Address space of the process that renders, in bytes.

    Raises
    ------
    ArgumentError
        A parameter has the wrong type or range.

    Examples
    --------
    >>> template = ChatTemplate("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    >>> template.render([{"role": "user", "content": "Hello"}])
    '<user>Hello'
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str = "",
        eos_token: str = "",
        special_tokens: Mapping[str, str] | None = None,
        named: Mapping[str, str] | None = None,
        max_seconds: float = 5.0,
        max_bytes: int = 8 << 20,
        max_memory: int = 512 << 20,
    ) -> None:
        sources = {"default": source, **(named or {})}
        for name, text in sources.items():
            if not isinstance(text, str):
                raise ArgumentError(
                    f"[ChatTemplate] {name}: got {type(text).__name__}, need a string"
                )
            if len(text) > _MAX_SOURCE_BYTES:
                raise ArgumentError(
                    f"[ChatTemplate] {name}: got {len(text)} characters,"
                    f" need at most {_MAX_SOURCE_BYTES}"
                )
        if not 0 < max_seconds <= 3600 or max_bytes < 1 or max_memory < 64 << 20:
            raise ArgumentError(
                f"[ChatTemplate] limits: got max_seconds={max_seconds}, max_bytes={max_bytes},"
                f" max_memory={max_memory}, need 0 < max_seconds <= 3600, max_bytes >= 1,"
                f" max_memory >= {64 << 20}"
            )
        self.source = source
        self.named: Mapping[str, str] = MappingProxyType(dict(named or {}))
        self.special_tokens: Mapping[str, str] = MappingProxyType(
            {"bos_token": bos_token, "eos_token": eos_token, **(special_tokens or {})}
        )
        self.max_seconds = max_seconds
        self.max_bytes = max_bytes
        self.max_memory = max_memory

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], name: str | None = None) -> ChatTemplate:
        """Take the template of a GGUF file.

        Parameters
        ----------
        metadata
            GGUF key -> value: ``tokenizer.chat_template`` and ``tokenizer.chat_template.<name>``.
        name
            Which of several templates; the default one, and ``tool_use`` for calls with tools, when
            not given.

        Raises
        ------
        FormatError
            The file has no chat template, or none of that name.
        """
        key = "tokenizer.chat_template"
        named = {
            k[len(key) + 1 :]: v
            for k, v in metadata.items()
            if k.startswith(key + ".") and isinstance(v, str)
        }
        default = metadata.get(key)
        if name is not None and name != "default":
            if name not in named:
                have = ", ".join(sorted(named)) or "no named ones"
                raise FormatError(f"[ChatTemplate] {key}.{name}: not in the file, which has {have}")
            default, named = named[name], {}
        if not isinstance(default, str):
            if "default" in named:
                default = named.pop("default")
            else:
                have = f"; it has {', '.join(sorted(named))}: choose by name" if named else ""
                raise FormatError(
                    f"[ChatTemplate] {key}: the file has no chat template{have}. A base model"
                    " continues text: use generate(), or give a template by ChatTemplate(source)"
                )
        tokens = {
            f"{short}_token": text
            for short, long in (
                ("bos", "bos"),
                ("eos", "eos"),
                ("pad", "padding"),
                ("unk", "unknown"),
                ("sep", "seperator"),
            )
            if (text := _token_text(metadata, long)) is not None
        }
        return cls(
            _readable(default),
            bos_token=tokens.pop("bos_token", ""),
            eos_token=tokens.pop("eos_token", ""),
            special_tokens=tokens,
            named={_readable(name): _readable(text) for name, text in named.items()},
        )

    def render(
        self,
        messages: Sequence[Any],
        *,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **template_vars: Any,
    ) -> str:
        """Render messages to the text that the model continues.

        Parameters
        ----------
        messages
            ``{"role": ..., "content": ...}`` and what else the template knows: mappings, objects of
            pydantic, or dataclasses. Null fields count as absent, absent content as empty. Content
            is text or a list of text parts; parts go to templates that know them, and joined by
            newlines to the others. Arguments of calls may be objects or JSON text: the template
            gets the form that it takes. Reasoning may be called ``reasoning_content``,
            ``reasoning`` or ``thinking``. A role ``developer`` is ``system`` where the template
            does not name it, and ``function``, ``tool`` and ``ipython`` stand for each other.
        tools
            Tool declarations in OpenAI's form. A template that shows none of them gives a warning.
        add_generation_prompt
            End with the beginning of an assistant turn.
        continue_final_message
            End inside the last message, which the model continues; no new turn begins.
        **template_vars
            Further variables of the template, for example ``enable_thinking=False``.

        Returns
        -------
        str

        Raises
        ------
        ArgumentError
            The template refuses the messages, a part is not text, or there are values that JSON
            cannot say.
        FormatError
            The template is broken, or asks for more memory or output than allowed.
        DeadlineError
            The template took longer than ``max_seconds``.
        """
        return self._render(
            messages,
            tools,
            bool(add_generation_prompt),
            bool(continue_final_message),
            template_vars,
            None,
        )

    def _render(
        self,
        messages: Any,
        tools: Any,
        add_generation_prompt: bool,
        continue_final: bool,
        template_vars: Mapping[str, Any],
        find_control: FindControl | None,
    ) -> RenderedChat:
        """Render; where ``find_control`` is given, what messages spell is marked as plain text."""
        conversation = Conversation(messages)
        declared = checked_tools(tools)
        if continue_final:
            conversation.mark_end(_HERE)
        given = to_json(
            {"documents": None, **self.special_tokens, **template_vars},
            "messages, tools or template_vars",
        )
        source = self.named.get("tool_use", self.source) if declared else self.source
        call = _Call(self, source, given, add_generation_prompt and not continue_final)
        text, form, shown = call.best(conversation, declared)
        if declared:
            _warn_of_lost_tools(declared, text)
        literal = call.literal(find_control, form, shown, text) if find_control else []
        if not continue_final:
            return RenderedChat(text, literal)
        if _HERE.strip() not in text:  # the template leaves a last answer out, or apart
            begun = conversation.messages.pop()
            text = _Call(self, source, given, True).best(conversation, declared)[0]
            return RenderedChat(text + _last_text(begun).removesuffix(_HERE))
        end = text.rindex(_HERE.strip())
        cut = text[:end] if text.startswith(_HERE, end) else text[:end].rstrip()
        return RenderedChat(cut, (i for i in literal if i < len(cut)))

    def _text_of(self, answer: dict[str, Any]) -> str:
        kind = answer.get("error")
        if kind is None:
            return str(answer["text"])
        line = f" (line {answer['line']} of the template)" if answer.get("line") else ""
        message = f"{answer.get('message', '')}{line}"
        if kind == "refused":
            raise ArgumentError(f"{WHERE} messages: the model's template refuses them: {message}")
        if kind == "error":
            raise ArgumentError(
                f"{WHERE} the model's template failed on these messages: {message}; look for a"
                " missing field, or a role or content form that this model does not know"
            )
        if kind == "busy":
            raise DeadlineError(
                f"{WHERE} no process was free to run the model's template for"
                f" {self.max_seconds:g} s; try again when fewer chats begin at once"
            )
        if kind == "time":
            raise DeadlineError(
                f"{WHERE} the model's template took more than {self.max_seconds:g} s;"
                " it was stopped"
            )
        what = {
            "syntax": f"is not valid Jinja: {message}",
            "security": f"does what the sandbox forbids: {message}",
            "size": f"gave more than {self.max_bytes} bytes of text",
            "memory": f"needs more than {self.max_memory} bytes of memory",
            "limit": f"asks for too much: {message}",
            "crash": f"ended the process that renders it: {message}",
        }.get(kind, f"failed: {kind} {message}")
        raise FormatError(f"{WHERE} the model's template {what}")


def _token_text(metadata: Mapping[str, Any], name: str) -> str | None:
    token_id = metadata.get(f"tokenizer.ggml.{name}_token_id")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if (
        tokens is None
        or not isinstance(token_id, int | np.integer)
        or not 0 <= token_id < len(tokens)
    ):
        return None
    token = tokens[int(token_id)]
    return _readable(token) if isinstance(token, str) else None


def _readable(text: str) -> str:
    """Text of a file: bytes that are not UTF-8 become U+FFFD."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _last_text(message: dict[str, Any]) -> str:
    content = message["content"]
    return "\n".join(p["text"] for p in content) if isinstance(content, list) else str(content)


def _warn_of_lost_tools(tools: list[Any], text: str) -> None:
    names = tool_names(tools)
    if names and not any(name in text for name in names):
        warnings.warn(
            f"{WHERE} tools: got {len(names)}, but the model's template shows none of them to the "
            "model; describe them in a system message, or take a model that knows tools",
            RuntimeWarning,
            stacklevel=5,
        )


class _Call:
    """One call of render: the renderings of it share a clock and a deadline."""

    def __init__(
        self, template: ChatTemplate, source: str, given: dict[str, Any], generation_prompt: bool
    ) -> None:
        self._template = template
        self._source = source
        self._given = {**given, "add_generation_prompt": generation_prompt}
        self._now = datetime.datetime.now().isoformat()
        self._deadline: float | None = None  # from when the first request is sent

    def ask(self, messages: list[dict[str, Any]], tools: list[Any] | None) -> dict[str, Any]:
        """Render once, in what is left of the time."""
        t = self._template
        now = time.monotonic()
        first = self._deadline is None
        if self._deadline is None:
            self._deadline = now + t.max_seconds
        left = t.max_seconds if first else self._deadline - now
        if left <= 0:
            return {"error": "time"}
        request = {
            "source": self._source,
            "variables": {**self._given, "messages": messages, "tools": tools},
            "max_seconds": left,
            "max_bytes": t.max_bytes,
            "now": self._now,
        }
        data = json.dumps(request).encode()
        if len(data) > t.max_memory // 8:
            raise ArgumentError(
                f"{WHERE} messages: got {len(data)} bytes of JSON, need at most"
                f" {t.max_memory // 8}; shorten them"
            )
        answer = template_process.call(data, left, t.max_memory)
        if first and "error" not in answer:
            # A process that had to be started does not count.
            self._deadline = max(self._deadline, time.monotonic() + t.max_seconds / 2)
        return answer

    def best(
        self, conversation: Conversation, tools: list[Any] | None
    ) -> tuple[str, list[dict[str, Any]], list[Any] | None]:
        """The text that loses least of the messages, and the form they and the tools had for it."""
        best: tuple[str, list[dict[str, Any]], list[Any] | None] | None = None
        least = 0
        failed: dict[str, Any] | None = None
        forms = [(form, tools) for form in islice(conversation.forms(self._source), _MOST_FORMS)]
        if tools is None:  # a template made for tools alone may go through them unasked
            forms.append((forms[0][0], []))
        for form, declared in forms:
            if declared == [] and best is not None:
                break
            answer = self.ask(form, declared)
            if "error" not in answer:
                lost = conversation.losses(answer["text"])
                if best is None or lost < least:
                    least, best = lost, (str(answer["text"]), form, declared)
                if lost == 0:
                    break
            elif answer["error"] not in _FAILED:
                self._template._text_of(answer)  # raises
            elif failed is None or failed["error"] != "refused":
                failed = answer
        if best is None:
            assert failed is not None
            self._template._text_of(failed)  # raises
            raise AssertionError
        return best

    def literal(
        self,
        find: FindControl,
        form: list[dict[str, Any]],
        tools: list[Any] | None,
        text: str,
    ) -> list[int]:
        """Indices in ``text`` where messages and tools spell control tokens.

        A spelling that the template itself looks for, such as the end of reasoning in an earlier
        answer, changes the text when it is marked: it keeps its meaning.
        """
        values = [form, tools]
        marks = Marks(find, values)
        found: list[int] = []

        def same(keys: list[tuple[str, str]]) -> bool:
            nonlocal found
            marked = marks.put(values, keys)
            answer = self.ask(marked[0], marked[1])
            if answer.get("error") in _FAILED:
                return False
            marked_text = self._template._text_of(answer)
            plain, found = marks.take(marked_text)
            return plain == text

        def harmless(keys: list[tuple[str, str]]) -> list[tuple[str, str]]:
            if not keys or same(keys):
                return keys
            if len(keys) == 1:
                return []
            half = len(keys) // 2
            return harmless(keys[:half]) + harmless(keys[half:])

        keys = marks.keys(values) if marks.mark else []
        if not keys or same(keys):
            return found
        half = len(keys) // 2
        kept = harmless(keys[:half]) + harmless(keys[half:]) if half else []
        if kept and not same(kept):
            raise ArgumentError(
                f"{WHERE} messages: they spell control tokens that the model's template takes "
                "apart; leave them out, or let them count by parse_special=True"
            )
        return found if kept else []
