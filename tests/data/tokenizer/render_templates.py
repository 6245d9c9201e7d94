"""Renders every chat template of a llama.cpp source tree and counts: rendered, and equal to
transformers' text.

Not a test: it needs that source tree (it comes inside the source package of llama-cpp-python) and,
for the second count, transformers. The templates belong to their models, under many licences, and
are not copied here.

    python tests/data/tokenizer/render_templates.py VENDOR/llama.cpp/models/templates
    [--against-transformers]
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

from moesaic.chat import ChatTemplate
from moesaic.errors import MoesaicError

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "Name of the city."}},
                "required": ["city"],
            },
        },
    }
]
# One template wants its own variables; transformers' users have to know that too.
EXTRA = {"functions": "[]", "datetime": "2026-01-01 00:00:00"}
CALL = {
    "id": "abcde1234",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Köln <&>"}},
}


def conversations() -> dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]] | None]]:
    """Name -> (messages, tools), from the simplest to the richest."""
    system = {"role": "system", "content": "Be brief."}
    user = {"role": "user", "content": "Weather in Köln?"}
    answer = {"role": "assistant", "content": "Rain."}
    again = {"role": "user", "content": "And tomorrow?"}
    call = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    result = {"role": "tool", "tool_call_id": CALL["id"], "name": "get_weather", "content": "rain"}
    text_call = copy.deepcopy(call)
    text_call["tool_calls"][0]["function"]["arguments"] = '{"city": "Köln"}'
    return {
        "user": ([user], None),
        "system, user": ([system, user], None),
        "turns": ([user, answer, again], None),
        "system, turns": ([system, user, answer, again], None),
        "tools": ([user], TOOLS),
        "tool call": ([user, call, result], TOOLS),
        "tool call, JSON": ([user, text_call, result], TOOLS),
        "all": ([system, user, call, result, answer, again], TOOLS),
    }


def transformers_text(
    source: str, messages: list[dict[str, Any]], tools: Any, tokens: dict[str, str]
) -> str:
    """The same conversation by Hugging Face's own environment."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    template = _compile_jinja_template(source)
    return str(
        template.render(
            messages=messages,
            tools=tools,
            documents=None,
            add_generation_prompt=True,
            **tokens,
            **EXTRA,
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("templates", type=Path)
    parser.add_argument("--against-transformers", action="store_true")
    args = parser.parse_args()
    names = list(conversations())
    tokens = {"bos_token": "<BOS>", "eos_token": "<EOS>"}
    total = rendered = equal = compared = more = 0
    for path in sorted(args.templates.glob("*.jinja")):
        source = path.read_text(encoding="utf-8")
        good, bad = [], {}
        for name, (messages, tools) in conversations().items():
            try:
                text = ChatTemplate(source, **tokens).render(
                    copy.deepcopy(messages), tools=tools, **EXTRA
                )
            except MoesaicError as error:
                text = ""
                bad[name] = str(error).removeprefix("[ChatTemplate.render] ")[:150]
            else:
                good.append(name)
            if args.against_transformers:
                try:
                    theirs: str | None = transformers_text(
                        source, copy.deepcopy(messages), tools, tokens
                    )
                except Exception:
                    theirs = None
                compared += theirs is not None
                more += theirs is None and name not in bad
                equal += theirs is not None and theirs == text
                if theirs is not None and theirs != text:
                    print(
                        f"DIFFERS {path.name}: {name}: {text[-200:]!r} / {(theirs or '')[-200:]!r}"
                    )
        total += 1
        rendered += bool(good)
        print(f"{path.name:62} {len(good)}/{len(names)}")
        for name, why in bad.items():
            print(f"    {name}: {why}")
    print(f"{rendered} of {total} templates render")
    if compared:
        print(f"{equal} of {compared} texts of transformers equal; {more} more where it refuses")


if __name__ == "__main__":
    main()
