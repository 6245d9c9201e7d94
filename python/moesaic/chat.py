"""Chat templates: Jinja text in a model file that turns messages into a prompt.

Templates are programs from files that anybody may have made. They run in jinja2's immutable
sandbox, and that runs in a small process of its own (_chat_worker.py) with bounded time, memory and
output: a single operation such as ``10 ** 10 ** 9`` cannot be interrupted inside this process, and
holds its lock on all Python threads. The process starts with the first template that is rendered
(about 0.2 s) and serves all later ones (about a millisecond each). What templates expect follows
``apply_chat_template`` of Hugging Face transformers. Not here: tokenizing the result.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import numpy as np

from moesaic.errors import ArgumentError, DeadlineError, FormatError, InternalError

WHERE = "[ChatTemplate.render]"
_MAX_SOURCE_BYTES = 1 << 20
_START_SECONDS = 60.0
_GRACE_SECONDS = 0.25  # the worker reports an overrun itself when it can, which says more


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
            default,
            bos_token=tokens.pop("bos_token", ""),
            eos_token=tokens.pop("eos_token", ""),
            special_tokens=tokens,
            named=named,
        )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **template_vars: Any,
    ) -> str:
        """Render messages to the text that the model continues.

        Parameters
        ----------
        messages
            ``{"role": ..., "content": ...}`` and what else the template knows. Values are what JSON
            can say; NumPy scalars and arrays, and objects with ``model_dump`` (pydantic), are
            converted. Arguments of tool calls may be objects or JSON text: where the template fails
            on one, the other is tried.
        tools
            Tool declarations in OpenAI's form.
        add_generation_prompt
            End with the beginning of an assistant turn.
        **template_vars
            Further variables of the template, for example ``enable_thinking=False``.

        Returns
        -------
        str

        Raises
        ------
        ArgumentError
            The template refuses the messages, or they hold values that JSON cannot say.
        FormatError
            The template is broken, or asks for more memory or output than allowed.
        DeadlineError
            The template took longer than ``max_seconds``.
        """
        if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
            raise ArgumentError(
                f"{WHERE} messages: got {type(messages).__name__}, need a list of"
                ' {"role": "user", "content": "..."}'
            )
        for i, message in enumerate(messages):
            if not isinstance(message, Mapping) and not hasattr(message, "model_dump"):
                raise ArgumentError(
                    f"{WHERE} messages[{i}]: got {type(message).__name__}, need a mapping such as"
                    ' {"role": "user", "content": "..."}'
                )
        if tools is not None and (isinstance(tools, str) or not isinstance(tools, Sequence)):
            raise ArgumentError(
                f"{WHERE} tools: got {type(tools).__name__}, need a list of tool declarations such"
                ' as {"type": "function", "function": {...}}'
            )
        variables = {
            "documents": None,
            **self.special_tokens,
            **template_vars,
            "messages": list(messages),
            "tools": list(tools) if tools else None,
            "add_generation_prompt": bool(add_generation_prompt),
        }
        try:
            plain = json.loads(json.dumps(variables, default=_plain))
        except (TypeError, ValueError, RecursionError) as error:
            raise ArgumentError(
                f"{WHERE} messages, tools or template_vars: {error}; need what JSON can say"
            ) from None
        answer = self._ask(plain)
        if answer.get("error") in ("refused", "error") and _turn_arguments(plain["messages"]):
            second = self._ask(plain)
            answer = answer if "error" in second else second
        return self._text_of(answer)

    def _ask(self, variables: dict[str, Any]) -> dict[str, Any]:
        source = (
            self.named["tool_use"]
            if variables["tools"] and "tool_use" in self.named
            else self.source
        )
        request = {
            "source": source,
            "variables": variables,
            "max_seconds": self.max_seconds,
            "max_bytes": self.max_bytes,
        }
        return _call(json.dumps(request).encode(), self.max_seconds, self.max_memory)

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
    return token if isinstance(token, str) else None


def _turn_arguments(messages: list[Any]) -> bool:
    """Turn the arguments of tool calls from JSON text into objects, or back; say if any.

    OpenAI's interface says text, most templates want objects, some want text.
    """
    turned = False
    for message in messages:
        calls = message.get("tool_calls") if isinstance(message, dict) else None
        for call in calls if isinstance(calls, list) else ():
            function = call.get("function", call) if isinstance(call, dict) else None
            if not isinstance(function, dict):
                continue
            arguments = function.get("arguments")
            if isinstance(arguments, str):
                with contextlib.suppress(ValueError):
                    function["arguments"] = json.loads(arguments)
                    turned = True
            elif isinstance(arguments, dict):
                function["arguments"] = json.dumps(arguments, ensure_ascii=False)
                turned = True
    return turned


def _plain(value: Any) -> Any:
    """What JSON does not know by itself, as something it knows."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if hasattr(value, "model_dump"):
        return value.model_dump(exclude_none=True)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return list(value)
    raise TypeError(f"got a value of type {type(value).__name__}")


# -- the process that renders --------------------------------------------------------------------


class _Worker:
    """One rendering process; answers one request at a time."""

    def __init__(self, max_memory: int) -> None:
        self.max_memory = max_memory
        setup = {"path": sys.path, "max_memory": max_memory}
        script = Path(__file__).with_name("_chat_worker.py")
        # Preloaded libraries (sanitizers, allocators) reserve more address space than the limit.
        environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
        try:
            self._process = subprocess.Popen(
                [
                    sys.executable or "python3",
                    "-I",
                    "-S",
                    "-X",
                    "utf8",
                    str(script),
                    json.dumps(setup),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the caller
            )
        except OSError as error:
            raise InternalError(
                f"{WHERE} cannot start {sys.executable!r} to render templates: {error}"
            ) from error
        self.call(b"null", _START_SECONDS)

    def call(self, data: bytes, seconds: float) -> dict[str, Any]:
        """Send a request and wait for its answer, at most ``seconds``."""
        deadline = time.monotonic() + seconds
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # why it ended is told below
                stdin.write(struct.pack("<Q", len(data)) + data)
                stdin.flush()
            size = struct.unpack("<Q", self._read(stdout, 8, deadline))[0]
            return json.loads(self._read(stdout, size, deadline))  # type: ignore[no-any-return]
        except TimeoutError:
            self.close()
            return {"error": "time"}
        except EOFError:
            self.close()
            code = self._process.returncode
            how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            return {"error": "time"} if how == "SIGXCPU" else {"error": "crash", "message": how}
        except BaseException:
            self.close()
            raise

    def _read(self, stream: IO[bytes], size: int, deadline: float) -> bytes:
        chunks: list[bytes] = []
        while size:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([stream], [], [], left)[0]:
                raise TimeoutError
            chunk = os.read(stream.fileno(), min(size, 1 << 20))
            if not chunk:
                raise EOFError
            chunks.append(chunk)
            size -= len(chunk)
        return b"".join(chunks)

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._close_pipes()
        self._process.wait()

    def forget(self) -> None:
        """Let go of a process that belongs to somebody else."""
        self._close_pipes()
        self._process.returncode = 0

    def _close_pipes(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


_lock = threading.Lock()
_worker: _Worker | None = None


def _call(data: bytes, max_seconds: float, max_memory: int) -> dict[str, Any]:
    """Render in the shared process; start it when there is none, replace it after an overrun."""
    global _worker
    with _lock:
        if _worker is not None and _worker.max_memory != max_memory:
            _close_worker()
        if _worker is None:
            _worker = _Worker(max_memory)
        try:
            answer = _worker.call(data, max_seconds + _GRACE_SECONDS)
        except BaseException:
            _worker = None
            raise
        if answer.get("error") in ("time", "size", "memory", "crash"):
            _close_worker()
        return answer


def _close_worker() -> None:
    global _worker
    if _worker is not None:
        _worker.close()
        _worker = None


def _forget_worker() -> None:
    """After a fork the process is the parent's, and a lost thread may hold the lock."""
    global _lock, _worker
    _lock = threading.Lock()
    if _worker is not None:
        _worker.forget()
        _worker = None


atexit.register(_close_worker)
os.register_at_fork(after_in_child=_forget_worker)
