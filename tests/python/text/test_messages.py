"""Messages in the forms that clients send, through templates with the habits that models' have."""

# ruff: noqa: E501 (templates read better whole)

from __future__ import annotations

import warnings
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from moesaic.chat import ChatTemplate
from moesaic.errors import ArgumentError

ASK = {"role": "user", "content": "Rain?"}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "yes"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}

# One habit of published templates each; {C} is where a message's text goes.
STRINGS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
CONCATENATES = "{% for m in messages %}{{ '[' + m.role + ']' + m['content'] }}{% endfor %}"
TRIMS = "{% for m in messages %}[{{ m.role }}]{{ m['content'] | trim }}{% endfor %}"
TO_JSON = "{% for m in messages %}[{{ m.role }}]{{ m.content | tojson }}{% endfor %}"
PARTS = "{% for m in messages %}[{{ m.role }}]{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}{% endfor %}"
BOTH = "{% for m in messages %}[{{ m.role }}]{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}<{{ p['text'] }}>{% endfor %}{% endif %}{% endfor %}"
NULL_IS_CALL = "{% for m in messages %}{% if m.role == 'assistant' and m['content'] is none %}{% for c in m.tool_calls %}<{{ c.function.name }} {{ c.function.arguments | tojson }}>{% endfor %}{% else %}[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}"


def render(source: str, messages: Any, **options: Any) -> str:
    return str(ChatTemplate(source).render(messages, **options))


def calls(arguments: Any, **more: Any) -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    return {
        "role": "assistant",
        "tool_calls": [{"id": "1", "type": "function", "function": function}],
        **more,
    }


# -- content -------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [STRINGS, CONCATENATES, TRIMS, TO_JSON, PARTS])
@pytest.mark.parametrize(
    "content",
    [
        "Rain?",
        [{"type": "text", "text": "Rain?"}],
        [{"type": "input_text", "text": "Rain?", "image": None}],
        ["Rain?"],
        {"type": "text", "text": "Rain?"},
    ],
)
@pytest.mark.parametrize("role", ["user", "system", "assistant", "tool"])
def test_one_text_in_any_form(source: str, content: Any, role: str) -> None:
    first = [] if role == "user" else [ASK]
    want = f'[{role}]"Rain?"' if source is TO_JSON else f"[{role}]Rain?"
    assert render(source, [*first, {"role": role, "content": content}]).endswith(want)


def test_parts_are_joined_unless_the_template_takes_them() -> None:
    two = [{"role": "user", "content": [{"type": "text", "text": t} for t in ("One", "Two")]}]
    assert render(STRINGS, two) == render(CONCATENATES, two) == "[user]One\nTwo"
    assert render(BOTH, two) == "[user]<One><Two>"
    assert render(PARTS, two) == "[user]OneTwo"
    said = "'type': 'text'"
    assert (
        render(BOTH, [{"role": "user", "content": [{"type": "text", "text": said}]}])
        == f"[user]<{said}>"
    )
    assert render(STRINGS, [{"role": "user", "content": []}]) == "[user]"


@pytest.mark.parametrize(
    ("part", "what"),
    [
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, "no images"),
        ({"type": "image", "image": "x.png"}, "no images"),
        ({"type": "input_image", "image_url": "x"}, "no images"),
        ({"type": "input_audio", "input_audio": {"data": "AAAA"}}, "no audio"),
        ({"type": "video_url", "video_url": {"url": "x"}}, "no videos"),
        ({"type": "file", "file": {"file_id": "x"}}, "no files"),
        ({"type": "tool_result", "content": "x"}, "'tool_result'"),
        ({"type": "text"}, "without a string"),
    ],
)
@pytest.mark.parametrize("source", [STRINGS, PARTS])
def test_parts_that_are_not_text_are_refused(source: str, part: Any, what: str) -> None:
    content = [{"type": "text", "text": "What is it?"}, part]
    with pytest.raises(ArgumentError, match=rf"messages\[1\]\.content.*{what}") as caught:
        render(source, [ASK, {"role": "user", "content": content}])
    assert "AAAA" not in str(caught.value)


@pytest.mark.parametrize(
    "fields", [{}, {"content": None}, {"content": "", "refusal": None, "audio": None}]
)
@pytest.mark.parametrize("source", [STRINGS, CONCATENATES, TRIMS])
def test_null_fields_are_absent(source: str, fields: dict[str, Any]) -> None:
    assert (
        render(source, [ASK, {"role": "assistant", "tool_calls": None, **fields}])
        == "[user]Rain?[assistant]"
    )
    keys = "{% for m in messages %}{{ m.keys() | sort | join(' ') }};{% endfor %}"
    assert render(keys, [{**ASK, "name": None, "tool_calls": None}]) == "content role;"


def test_messages_may_be_objects() -> None:
    @dataclass
    class Data:
        role: str
        content: str | None = None
        name: str | None = None

    class Pydantic:
        def model_dump(self) -> dict[str, Any]:
            return {"role": "user", "content": "Rain?", "tool_calls": None}

    for message in (
        Data("user", "Rain?"),
        Pydantic(),
        SimpleNamespace(role="user", content="Rain?"),
    ):
        assert render(CONCATENATES, [message]) == "[user]Rain?"
    for wrong in (3, "Rain?", None, b"x"):
        with pytest.raises(ArgumentError, match=r"messages\[0\]: got"):
            render(STRINGS, [wrong])


# -- tools ---------------------------------------------------------------------------------------

OBJECTS = "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
ITEMS = "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.name }}{{ '{' }}{% for k, v in c.function.arguments.items() %}\"{{ k }}\":{{ v | tojson }}{% endfor %}{{ '}' }}{% endfor %}{% endfor %}"
TEXTS = "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.name + c.function.arguments }}{% endfor %}{% endfor %}"
PRINTS = "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments }}{% endfor %}{% endfor %}"


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}])
@pytest.mark.parametrize("source", [OBJECTS, ITEMS, TEXTS, PRINTS])
def test_arguments_as_text_or_as_objects(source: str, content: dict[str, Any]) -> None:
    spaced, tight = '{"city": "Köln"}', '{"city":"Köln"}'
    for arguments, texts in (({"city": "Köln"}, spaced), (spaced, spaced), (tight, tight)):
        want = {OBJECTS: spaced, ITEMS: tight}.get(source, texts)
        assert render(source, [ASK, calls(arguments, **content), RESULT]) == "weather" + want


@pytest.mark.parametrize("arguments", ["", None, {}, "{}"])
def test_calls_without_arguments(arguments: Any) -> None:
    assert render(OBJECTS, [ASK, calls(arguments), RESULT]) == "weather{}"


def test_other_forms_of_calls() -> None:
    flat = {"role": "assistant", "tool_calls": [{"name": "weather", "arguments": {"a": 1}}]}
    old = {
        "role": "assistant",
        "content": None,
        "function_call": {"name": "weather", "arguments": '{"a": 1}'},
    }
    for message in (flat, old):
        assert render(OBJECTS, [ASK, message]) == 'weather{"a": 1}'
    assert render(OBJECTS, [ASK, calls("not JSON")]) == 'weather"not JSON"'
    assert (
        render(NULL_IS_CALL, [ASK, calls({"a": 1}), RESULT])
        == '[user]Rain?<weather {"a": 1}>[tool]yes'
    )
    with pytest.raises(ArgumentError, match="tool_calls: got str"):
        render(OBJECTS, [ASK, {"role": "assistant", "tool_calls": "weather"}])


@pytest.mark.parametrize("source", [STRINGS, CONCATENATES])
def test_results_as_data(source: str) -> None:
    for content, text in (({"rain": True}, '{"rain": true}'), ([1, 2], "[1, 2]"), (22.5, "22.5")):
        message = {"role": "tool", "content": content}
        assert render(source, [ASK, message]) == f"[user]Rain?[tool]{text}"
    assert render(TO_JSON, [ASK, {"role": "tool", "content": {"rain": True}}]).endswith(
        '[tool]{"rain": true}'
    )


def test_tools_that_the_template_ignores_are_said() -> None:
    shows = "{% if tools %}{{ tools | tojson }}{% endif %}" + STRINGS
    with pytest.warns(RuntimeWarning, match="shows none of them"):
        render(STRINGS, [ASK], tools=[TOOL])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "weather" in render(shows, [ASK], tools=[{**TOOL, "strict": None}])
        for none in (None, [], ()):
            assert render("{{ tools is none }}" + STRINGS, [ASK], tools=none).startswith("True")
    loops = "{% for t in tools %}{{ t.function.name }}{% endfor %}" + STRINGS
    assert render(loops, [ASK]) == "[user]Rain?"
    assert render(loops, [ASK], tools=[TOOL]) == "weather[user]Rain?"
    with pytest.raises(ArgumentError, match="the function 'weather'"):

        def weather() -> None: ...

        render(shows, [ASK], tools=[weather])


# -- reasoning and roles -------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.parametrize(
    "given",
    [
        {"reasoning_content": "why"},
        {"reasoning": "why", "reasoning_content": None},
        {"thinking": "why"},
        {"reasoning_details": [{"type": "reasoning.text", "text": "why"}]},
        {"content": [{"type": "thinking", "thinking": "why"}, {"type": "text", "text": "so"}]},
    ],
)
def test_reasoning_has_every_name(wanted: str, given: dict[str, Any]) -> None:
    source = (
        "{% for m in messages %}({{ m." + wanted + " }})[{{ m.role }}]{{ m.content }}{% endfor %}"
    )
    got = render(source, [ASK, {"role": "assistant", "content": "so", **given}])
    assert got == "()[user]Rain?(why)[assistant]so"


@pytest.mark.parametrize(
    ("role", "names", "want"),
    [
        ("developer", "", "system"),
        ("developer", "{% if m.role == 'developer' %}{% endif %}", "developer"),
        ("function", "", "tool"),
        ("ipython", "{% if m.role == 'tool' %}{% endif %}", "tool"),
        ("tool", "{% if m.role == 'ipython' %}{% endif %}", "ipython"),
        ("function", '{% if m["role"] == "function" %}{% endif %}', "function"),
        ("critic", "", "critic"),
    ],
)
def test_roles_that_the_template_does_not_name(role: str, names: str, want: str) -> None:
    source = "{% for m in messages %}" + names + "[{{ m.role }}]{{ m.content }}{% endfor %}"
    assert render(source, [{"role": role, "content": "x"}]) == f"[{want}]x"


# -- an answer that is continued -----------------------------------------------------------------

ENDS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}[/]{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
ENDS_TRIMMED = ENDS.replace("m.content", "m.content | trim")
LEFT_OUT = ENDS.replace("{% for m in messages %}", "{% for m in messages if m.role == 'user' %}")


@pytest.mark.parametrize("content", ["It is ", [{"type": "text", "text": "It is "}]])
def test_a_last_message_is_continued(content: Any) -> None:
    messages = [ASK, {"role": "assistant", "content": content}]
    options = {"continue_final_message": True}
    assert render(ENDS, messages, **options) == "[user]Rain?[/][assistant]It is "
    assert render(ENDS_TRIMMED, messages, **options) == "[user]Rain?[/][assistant]It is"
    assert render(LEFT_OUT, messages, **options) == "[user]Rain?[/][assistant]It is "
    again = [*messages, ASK, {"role": "assistant", "content": "It is "}]
    assert render(ENDS, again, **options).endswith("Rain?[/][assistant]It is ")
    assert messages == [ASK, {"role": "assistant", "content": content}]
    with pytest.raises(
        ArgumentError, match="continue_final_message: got a last message of role 'user'"
    ):
        render(ENDS, [ASK], **options)


def test_reasoning_is_continued() -> None:
    source = "{% for m in messages %}[{{ m.role }}]{% if m.reasoning %}<t>{{ m.reasoning }}</t>{% endif %}{{ m.content }}{% endfor %}"
    messages = [ASK, {"role": "assistant", "content": "", "thinking": "Hm, "}]
    assert render(source, messages, continue_final_message=True) == "[user]Rain?[assistant]<t>Hm, "


# -- control tokens that texts spell -------------------------------------------------------------


def literal(source: str, messages: Any, tools: Any = None) -> tuple[str, list[str]]:
    """The text, and what begins at the places that are marked as plain."""

    def find(text: str) -> list[int]:
        return [i for i in range(len(text)) if text.startswith(("<end>", "</t>", "\n\n"), i)]

    got = ChatTemplate(source)._render(messages, tools, False, False, {}, find)
    return str(got), [got[i : i + 5] for i in sorted(got.literal)]


@pytest.mark.parametrize("source", [STRINGS, TRIMS, TO_JSON, CONCATENATES])
def test_marks_leave_no_trace(source: str) -> None:
    messages = [{"role": "user", "content": " <end> a <end>\ue8c0<end>"}, ASK]
    text, marked = literal(source, messages)
    assert text == render(source, messages, add_generation_prompt=False)
    assert marked == ["<end>"] * 3
    escaped = STRINGS.replace("m.content", "m.content | tojson(ensure_ascii=true)")
    assert literal(escaped, messages)[1] == ["<end>"] * 3


def test_marks_in_tools_and_arguments_and_where_the_template_looks() -> None:
    source = "{{ tools | tojson }}" + OBJECTS
    tool = {"type": "function", "function": {"name": "weather", "description": "<end>"}}
    assert literal(source, [calls({"<end>": "<end>"})], [tool])[1] == ["<end>"] * 3
    loops = "{% for t in tools %}{% endfor %}" + STRINGS
    assert literal(loops, [{"role": "user", "content": "a<end>"}])[1] == ["<end>"]
    # A template that cuts an answer at the end of its reasoning still does.
    cuts = "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}{{ m.content.split('</t>')[-1] }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    messages = [
        {"role": "user", "content": "a</t>b<end>"},
        {"role": "assistant", "content": "x</t>y<end>"},
    ]
    text, marked = literal(cuts, messages)
    assert text == "[user]a</t>b<end>[assistant]y<end>"
    assert marked == ["</t>b", "<end>", "<end>"]
