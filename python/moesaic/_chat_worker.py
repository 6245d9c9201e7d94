"""Renders chat templates in a process of its own: a program, never imported by the package.

A template comes from a model file that anybody may have made. jinja2's sandbox keeps it from files
and attributes, but not from ``10 ** 10 ** 9`` or ``"a" * 10 ** 12``, and one such operation inside
the interpreter cannot be interrupted. Here the kernel holds the limits (address space, processor
time) and the parent kills what overruns the clock. Requests and answers are JSON behind an 8-byte
length, over stdin and stdout. Source of what templates expect: ``apply_chat_template`` of Hugging
Face transformers. Not here: choosing a template, errors as classes (chat.py).
"""

from __future__ import annotations

import datetime
import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any, BinaryIO


class OverTime(BaseException):
    """The clock ran out between two instructions of the interpreter."""


class OverSizeError(Exception):
    """More output than allowed."""


class RefusedError(Exception):
    """The template called raise_exception."""


def _raise_over_time(signum: int, frame: FrameType | None) -> None:
    raise OverTime


#: The time that templates are told, ISO 8601: one for all renderings of a call.
_now = ""


def _make_environment() -> Any:
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment

    class Environment(ImmutableSandboxedEnvironment):
        """Immutable but for lists, dicts and sets, as Kimi K2's templates append to lists.

        What a template can reach here are copies that nobody reads afterwards.
        """

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            return SandboxedEnvironment.is_safe_attribute(self, obj, attr, value)

    class GenerationTag(Extension):
        """``{% generation %}`` marks what the model wrote; the text passes unchanged."""

        tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def written_out(value: Any) -> list[Any]:
        if isinstance(value, Iterator):  # what filters such as map leave
            return list(value)
        raise TypeError(f"{type(value).__name__} cannot be written as JSON")

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
            default=written_out,
        )

    def raise_exception(message: object = "") -> None:
        raise RefusedError(str(message))

    def strftime_now(form: str) -> str:
        return datetime.datetime.fromisoformat(_now).strftime(form)

    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment


def _render(environment: Any, compiled: dict[str, Any], request: dict[str, Any]) -> str:
    source = request["source"]
    template = compiled.get(source)
    if template is None:
        template = environment.from_string(source)
        while len(compiled) >= 16:
            compiled.pop(next(iter(compiled)))
        compiled[source] = template
    parts: list[str] = []
    size, limit = 0, request["max_bytes"]
    for part in template.generate(**request["variables"]):
        size += len(part.encode("utf-8", "surrogatepass"))
        if size > limit:
            raise OverSizeError
        parts.append(part)
    return "".join(parts)


def _line_of(error: BaseException) -> int:
    """Line of the template where ``error`` was raised, 0 when it was not inside one."""
    line = getattr(error, "lineno", None) or 0
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return int(line)


def _answer(environment: Any, compiled: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    from jinja2 import TemplateSyntaxError
    from jinja2.exceptions import SecurityError

    # The kernel's limit stands even when the parent is gone and the interpreter is stuck in one
    # operation.
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime + request["max_seconds"]) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    try:
        global _now
        _now = request["now"]
        signal.setitimer(signal.ITIMER_REAL, request["max_seconds"])
        try:
            return {"text": _render(environment, compiled, request)}
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except OverTime:
        kind, message, line = "time", "", 0
    except OverSizeError:
        kind, message, line = "size", "", 0
    except MemoryError:
        kind, message, line = "memory", "", 0
    except (RecursionError, OverflowError) as error:
        kind, message, line = "limit", str(error), _line_of(error)
    except RefusedError as error:
        kind, message, line = "refused", str(error), 0
    except TemplateSyntaxError as error:
        kind, message, line = "syntax", str(error.message), error.lineno
    except SecurityError as error:
        kind, message, line = "security", str(error), _line_of(error)
    except Exception as error:  # whatever a template can provoke is reported, never fatal
        kind, message, line = "error", f"{type(error).__name__}: {error}", _line_of(error)
    return {"error": kind, "message": message[:2000], "line": line}


def _read(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        os._exit(0)  # the parent is gone
    return data


def main() -> None:
    """Answer requests until stdin ends."""
    setup = json.loads(sys.argv[1])
    sys.path[:] = setup["path"]
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # nothing but answers goes to stdout
    signal.signal(signal.SIGALRM, _raise_over_time)
    environment = _make_environment()
    compiled: dict[str, Any] = {}
    limit = setup["max_memory"]
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        request = json.loads(_read(stdin, struct.unpack("<Q", _read(stdin, 8))[0]))
        if request is None:
            answer: dict[str, Any] = {"ready": True}
        else:
            answer = _answer(environment, compiled, request)
        data = json.dumps(answer).encode()
        stdout.write(struct.pack("<Q", len(data)) + data)
        stdout.flush()


if __name__ == "__main__":
    main()
