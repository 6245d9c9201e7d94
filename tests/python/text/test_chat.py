"""Chat templates: what they may use, what comes out, and that no template can take more than its
budget."""

# ruff: noqa: E501 (templates and patterns read better whole)

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from moesaic import template_process
from moesaic.chat import ChatTemplate
from moesaic.errors import ArgumentError, DeadlineError, FormatError, MoesaicError

HELLO = [{"role": "user", "content": "Hello"}]

CHATML = """\
{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
        {{- '\\n' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.tool_calls %}
        {%- for call in message.tool_calls %}
            {{- '<tool_call>' ~ call.function.name ~ ':' }}
            {{- (call.function.arguments | tojson) ~ '</tool_call>' }}
        {%- endfor %}
    {%- else %}
        {{- message.content | trim }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""


def render(source: str, messages: Any = HELLO, **options: Any) -> str:
    return ChatTemplate(source).render(messages, **options)


def test_a_conversation() -> None:
    call = {
        "id": "1",
        "type": "function",
        "function": {"name": "weather", "arguments": {"city": "Köln <&>"}},
    }
    tool = {"type": "function", "function": {"name": "weather"}}
    messages = [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "yes"},
    ]
    expected = (
        '<|im_start|>system\n# Tools\n{"type": "function", "function": {"name": "weather"}}\n<|im_end|>\n'
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nRain?<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>weather:{"city": "Köln <&>"}</tool_call><|im_end|>\n'
        "<|im_start|>tool\nyes<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert ChatTemplate(CHATML).render(messages, tools=[tool], enable_thinking=False) == expected
    assert render(CHATML, add_generation_prompt=False) == "<|im_start|>user\nHello<|im_end|>\n"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            "  {% if true %}\n  a\n  {% endif %}\nb\n",
            "  a\nb",
        ),  # trim_blocks, lstrip_blocks, the last newline
        (
            "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}"
            "{% endfor %}",
            "013",
        ),
        ("{% generation %}a{{ messages[0].content }}{% endgeneration %}b", "aHellob"),
        ("{{ {'ä': '<&>\\'', 'b': 1} | tojson }}", '{"ä": "<&>\'", "b": 1}'),
        (
            "{{ {'b': [1, 2], 'a': none} | tojson(indent=1, sort_keys=true) }}",
            '{\n "a": null,\n "b": [\n  1,\n  2\n ]\n}',
        ),
        ("{{ [1, {'a': 2}] | tojson(separators=(',', ':')) }}", '[1,{"a":2}]'),
        ("{{ 'ä' | tojson(ensure_ascii=true) }}", '"\\u00e4"'),
        ("{{ messages | map(attribute='role') | tojson }}", '["user"]'),
        (
            "{% set l = [] %}{% for m in messages %}{% set _ = l.append(m.role) %}{% endfor %}{{ l[0] }}",
            "user",
        ),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "1",
        ),
        ("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(1) }}{{ '<b>' }}", "[1]<b>"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        (
            "{{ tools is none }} {{ documents is none }} {{ add_generation_prompt }}",
            "True True True",
        ),
        (
            "{{ 'a,b'.split(',')[-1].upper() }} {{ 'x'.startswith('x') }} {{ messages[0].get('z', 'no') }}",
            "B True no",
        ),
        ("{{ '{0.__class__}'.format(1) }}", ""),  # the sandbox shows nothing
        ("{{ missing }}|{{ missing is defined }}|{{ messages[0].name }}", "|False|"),
    ],
)
def test_what_templates_use(source: str, text: str) -> None:
    assert render(source) == text


def test_special_tokens_and_variables() -> None:
    template = ChatTemplate(
        "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ pad_token }}{{ style }}",
        bos_token="<s>",
        eos_token="</s>",
        special_tokens={"pad_token": "<p>"},
    )
    assert template.render(HELLO, style="!") == "<s>Hello</s><p>!"


def test_values_that_are_not_json_by_themselves() -> None:
    class Model:
        def model_dump(self, exclude_none: bool = False) -> dict[str, Any]:
            return {"role": "user", "content": "from an object"}

    @dataclass
    class Record:
        role: str
        content: str | None = None

    class Strange:
        pass

    assert render("{{ messages[0].content }}", [Model()]) == "from an object"
    assert render("{{ messages[0].role }}", [Record("user")]) == "user"
    assert render("{{ n + 1 }} {{ a[1] }}", n=np.int64(2), a=np.array([1.5, 2.5])) == "3 2.5"
    assert render("{{ messages[0].content }}", ({"role": "user", "content": "\ud83d"},)) == "\ud83d"
    with pytest.raises(ArgumentError, match="Strange"):
        render("x", x=Strange())
    with pytest.raises(ArgumentError, match="need what JSON can say"):
        render("x", x=b"bytes")


def test_arguments_of_calls_may_be_text_or_objects() -> None:
    needs_object = "{% for k, v in messages[0].tool_calls[0].function.arguments.items() %}{{ k }}={{ v }}{% endfor %}"
    needs_text = "{{ 'call ' + messages[0].tool_calls[0].function.arguments }}"
    for arguments in ({"city": "Köln"}, '{"city": "Köln"}'):
        message = {
            "role": "assistant",
            "tool_calls": [{"function": {"name": "f", "arguments": arguments}}],
        }
        assert render(needs_object, [message]) == "city=Köln"
        assert render(needs_text, [message]) == 'call {"city": "Köln"}'
        assert message["tool_calls"][0]["function"]["arguments"] == arguments  # type: ignore[index]


# -- choosing one --------------------------------------------------------------------------------


def test_from_metadata() -> None:
    metadata = {
        "tokenizer.chat_template": "{{ bos_token }}plain{{ eos_token }}{{ unk_token is defined }}",
        "tokenizer.chat_template.tool_use": "tools",
        "tokenizer.chat_template.rag": "rag",
        "tokenizer.chat_templates": ["tool_use", "rag"],
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": np.uint32(2),
        "tokenizer.ggml.padding_token_id": 99,
    }
    template = ChatTemplate.from_metadata(metadata)
    assert template.render(HELLO) == "<s>plain</s>False"
    assert template.render(HELLO, tools=[{"type": "function"}]) == "tools"
    assert ChatTemplate.from_metadata(metadata, "rag").render(HELLO, tools=[{}]) == "rag"
    with pytest.raises(
        FormatError, match=r"chat_template\.json: not in the file, which has rag, tool_use"
    ):
        ChatTemplate.from_metadata(metadata, "json")
    with pytest.raises(FormatError, match=r"no chat template\. A base model"):
        ChatTemplate.from_metadata({})
    with pytest.raises(FormatError, match="it has rag: choose by name"):
        ChatTemplate.from_metadata({"tokenizer.chat_template.rag": "rag"})
    assert ChatTemplate.from_metadata({"tokenizer.chat_template.default": "d"}).render(HELLO) == "d"


# -- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "error", "part"),
    [
        (
            "{{ raise_exception('roles must alternate') }}",
            ArgumentError,
            "refuses them: roles must alternate",
        ),
        ("a\n{{ messages[0].x.y }}", ArgumentError, "UndefinedError.*line 2 of the template"),
        ("{{ 1 + 'a' }}", ArgumentError, "TypeError"),
        ("{% for %}", FormatError, "not valid Jinja"),
        ("{{ x | nofilter }}", FormatError, "nofilter"),
        ("{{ ''.__class__.__mro__ }}", FormatError, "sandbox forbids"),
        ("{{ lipsum.__globals__['os'].getpid() }}", FormatError, "sandbox forbids"),
        (
            "{{ '%s' | format(cycler.__init__) }}{{ cycler.__init__.__globals__ }}",
            FormatError,
            "sandbox forbids",
        ),
        ("{% include 'x' %}", MoesaicError, "template"),
        ("{% import '/etc/passwd' as x %}", MoesaicError, "template"),
    ],
)
def test_templates_that_fail(source: str, error: type[MoesaicError], part: str) -> None:
    with pytest.raises(error, match=part):
        render(source)
    assert render("after") == "after"


def test_wrong_arguments_are_refused() -> None:
    template = ChatTemplate("x")
    for messages in ("Hello", {"role": "user"}, None, 3, iter([])):
        with pytest.raises(ArgumentError, match="messages: got"):
            template.render(messages)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"messages\[0\]: got str"):
        template.render(["Hello"])  # type: ignore[list-item]
    for tools in (5, "get_weather", {"type": "function"}):
        with pytest.raises(ArgumentError, match=r"tools: got .*need a list"):
            template.render([{"role": "user", "content": "Hello"}], tools=tools)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="got int"):
        ChatTemplate(3)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="limits"):
        ChatTemplate("x", max_seconds=0)
    with pytest.raises(ArgumentError, match="characters"):
        ChatTemplate("x" * (1 << 20) + "x")


# -- hostile templates ---------------------------------------------------------------------------

LONG = "{% for i in range(90000) %}{% for j in range(90000) %}{% for k in range(90000) %}"
HOSTILE = [
    "{% for i in range(10 ** 9) %}x{% endfor %}",
    LONG + "{% endfor %}{% endfor %}{% endfor %}",
    LONG + "{{ i }}{% endfor %}{% endfor %}{% endfor %}",
    "{{ 7 ** (10 ** 9) }}",
    "{% set x = 7 ** 99999999 %}{{ x % 10 }}",
    "{{ 'a' * 10 ** 9 }}",
    "{{ 'a' * 10 ** 12 }}",
    "{{ [1] * 10 ** 9 }}",
    "{{ (('a' * 20000000) | list) | join('bbbbbbbbbbbbbbbbbbbb') | length }}",
    "{{ 'a' | center(10 ** 9) }}",
    "{{ 'a'.ljust(10 ** 10) }}",
    "{{ 'a'.zfill(10 ** 10) }}",
    "{{ '\t'.expandtabs(2 ** 31 - 1) }}",
    "{{ '%0999999999d' | format(1) }}",
    "{{ '{:999999999}'.format(1) }}",
    "{{ ('a' * 30000).replace('a', 'b' * 30000) | length }}",
    "{{ 'a\nb' | indent(10 ** 9) }}",
    "{{ ('a ' * 1000000) | wordwrap(1, wrapstring='x' * 1000) | length }}",
    "{{ [1] | batch(10 ** 9, 'x') | list | length }}",
    "{{ [1] | slice(10 ** 9) | list | length }}",
    "{{ messages | tojson(indent=10 ** 9) }}",
    "{{ lipsum(n=10 ** 6) | length }}",
    "{{ 'x' | tojson | pprint | urlize(10 ** 9) }}{{ ('http://a.b ' * 999999) | urlize | length }}",
    "{% set ns = namespace(s='a') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "{% set ns = namespace(n=3) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "{% set l = [] %}{% for i in range(99999) %}{% for j in range(99999) %}{% set _ = l.append('x' * 99) %}"
    "{% endfor %}{% endfor %}",
    "{% set l = [] %}{% set _ = l.append(l) %}{% for i in range(99) %}{% set _ = l.extend(l) %}{% endfor %}",
    "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(100) }}",
    "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "{{ " + "(" * 50000 + "1" + ")" * 50000 + " }}",
    "{{ " + "1 + " * 50000 + "1 }}",
    "{% if true %}" * 20000 + "{% endif %}" * 20000,
    "{{ [" * 3000 + "1" + "] }}" * 3000,
    "{{ strftime_now('%c' * 10000000) | length }}",
    "{{ ('a' * 100000 + 'b') is in(('a' * 199999) * 100) }}" * 50,
    "{% for i in range(90000) %}{{ 'x' * 1000 }}{% endfor %}",
    "{{ 'x' * 9000000 }}",
]


@pytest.mark.parametrize("source", HOSTILE, ids=[s[:60] for s in HOSTILE])
def test_hostile_templates_end_in_time(source: str) -> None:
    template = ChatTemplate(source, max_seconds=0.5, max_memory=256 << 20)
    start = time.monotonic()
    try:
        assert len(template.render(HELLO)) <= template.max_bytes  # within the budget is an end, too
    except (FormatError, DeadlineError, ArgumentError) as error:
        assert "[ChatTemplate.render] the model's template" in str(error)
    assert time.monotonic() - start < 0.5 + 4.0  # alone it is 0.75 s; the machine may be busy
    assert render("after") == "after"


@pytest.mark.parametrize(
    "source", ["{{ 7 ** (10 ** 9) }}", LONG + "{% endfor %}{% endfor %}{% endfor %}"]
)
def test_overtime_is_a_deadline_error(source: str) -> None:
    with pytest.raises(DeadlineError, match=r"more than 0\.5 s"):
        ChatTemplate(source, max_seconds=0.5).render(HELLO)


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("{{ 'a' * 10 ** 10 }}", "bytes of memory"),
        ("{{ 'ä' * 5000000 }}", "8388608 bytes of text"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "too much"),
    ],
)
def test_oversize_is_a_format_error(source: str, part: str) -> None:
    with pytest.raises(FormatError, match=part):
        render(source)


def test_other_threads_run_while_a_template_is_stuck() -> None:
    """One power of a large number holds the interpreter's lock for its whole duration, wherever it
    runs."""
    ticks = 0
    done = threading.Event()

    def stuck() -> None:
        with pytest.raises(DeadlineError):
            ChatTemplate("{{ 7 ** (10 ** 9) }}", max_seconds=1.0).render(HELLO)
        done.set()

    thread = threading.Thread(target=stuck)
    thread.start()
    while not done.wait(0.01):
        ticks += 1
    thread.join()
    assert ticks > 20


def test_many_threads_share_the_process() -> None:
    results: list[str] = []
    template = ChatTemplate("{{ messages[0].content }}")

    def work(n: int) -> None:
        for i in range(20):
            results.append(template.render([{"role": "user", "content": f"{n}/{i}"}]))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(results) == sorted(f"{n}/{i}" for n in range(8) for i in range(20))


def test_a_killed_process_is_replaced() -> None:
    template_process.close()
    assert render("a") == "a"
    (worker,) = template_process._pool.idle
    os.kill(worker.process.pid, signal.SIGKILL)
    with pytest.raises(FormatError, match="SIGKILL"):
        render("b")
    assert render("c") == "c"


def test_long_conversations_pass() -> None:
    messages = [{"role": "user", "content": "Grüße " * 1000} for _ in range(500)]
    text = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}").render(messages)
    assert text == "Grüße " * 500_000


PROGRAM = """
import os
from moesaic import template_process
from moesaic.chat import ChatTemplate
t = ChatTemplate("{{ messages[0].content }}")
assert t.render([{"role": "user", "content": "parent"}]) == "parent"
pid = lambda: template_process._pool.idle[0].process.pid
first = pid()
child = os.fork()
if child == 0:
    text = t.render([{"role": "user", "content": "child"}])
    ok = text == "child" and pid() != first
    template_process.close()
    os._exit(0 if ok else 1)
assert os.waitpid(child, 0)[1] == 0
assert t.render([{"role": "user", "content": "again"}]) == "again"
assert pid() == first
print(first)
"""


def test_forks_and_ends_cleanly() -> None:
    """A forked child starts a process of its own; none outlives the program."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0 and result.stderr == "", result.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(result.stdout), 0)


# -- a process that does not read ----------------------------------------------------------------


def test_a_process_that_does_not_read_is_given_up_in_time() -> None:
    """More than a pipe holds, and nothing reads it: writing has the deadline, and others render."""
    template_process.close()
    assert render("a") == "a"
    (worker,) = template_process._pool.idle
    os.kill(worker.process.pid, signal.SIGSTOP)
    errors: list[BaseException] = []

    def stuck() -> None:
        try:
            ChatTemplate("x", max_seconds=1.5).render([{"role": "user", "content": "x" * 300_000}])
        except DeadlineError as error:
            errors.append(error)

    thread = threading.Thread(target=stuck)
    thread.start()
    while worker in template_process._pool.idle:
        time.sleep(0.01)
    assert render("b") == "b"  # in a process of its own, while the other stands still
    assert thread.is_alive() or errors
    thread.join(timeout=30)
    assert len(errors) == 1 and "more than 1.5 s" in str(errors[0])
    assert render("c") == "c"


def test_messages_have_a_largest_size() -> None:
    template = ChatTemplate("x", max_memory=64 << 20)
    with pytest.raises(ArgumentError, match="bytes of JSON"):
        template.render([{"role": "user", "content": "x" * (9 << 20)}])
