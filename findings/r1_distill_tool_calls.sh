#!/usr/bin/env bash
# The chat template of DeepSeek-R1-Distill-Llama-8B, as it ships in the sources of llama-cpp-python
# 0.3.36 (vendor/llama.cpp/models/templates), rendered with jinja2 3.1.6.
#
# Behaviour: the assistant's tool calls are in the prompt only when the turn's content is null. With
# content "" (what many clients and servers make of an absent content) the calls vanish without an
# error, and the tool's answer stands there without a question. The template of
# DeepSeek-R1-Distill-Qwen-32B beside it shows the calls with both.
#
# Seen: Llama-8B: null: calls shown; "": calls lost, answer shown. Qwen-32B: both shown.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check jinja2==3.1.6 scikit-build-core==0.11.6
# The source package holds the templates; nothing of it is built.
"$work/venv/bin/pip" download -q --disable-pip-version-check --no-deps --no-build-isolation \
  --no-binary llama-cpp-python -d "$work" llama-cpp-python==0.3.36
tar -xzf "$work"/llama_cpp_python-0.3.36.tar.gz -C "$work" --wildcards '*/models/templates/*R1-Distill*'
cat >"$work/check.py" <<'PYTHON'
import pathlib
import sys

from jinja2.sandbox import ImmutableSandboxedEnvironment

call = {"name": "get_time", "arguments": '{"city": "Oslo"}'}
expected = {
    ("deepseek-ai-DeepSeek-R1-Distill-Llama-8B", None): (True, True),
    ("deepseek-ai-DeepSeek-R1-Distill-Llama-8B", ""): (False, True),
    ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", None): (True, True),
    ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", ""): (True, True),
}
seen = {}
for path in sorted(pathlib.Path(sys.argv[1]).rglob("*R1-Distill*.jinja")):
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(path.read_text())
    for content in (None, ""):
        prompt = template.render(
            messages=[
                {"role": "user", "content": "What time is it in Oslo?"},
                {"role": "assistant", "content": content,
                 "tool_calls": [{"type": "function", "id": "1", "function": call}]},
                {"role": "tool", "tool_call_id": "1", "content": "12:00"},
            ],
            bos_token="<s>", eos_token="</s>", add_generation_prompt=True,
        )
        seen[path.stem, content] = ("get_time" in prompt, "12:00" in prompt)
        print(f"{path.stem}, content {content!r}: call {'shown' if 'get_time' in prompt else 'lost'}, "
              f"answer {'shown' if '12:00' in prompt else 'lost'}")
if seen != expected:
    sys.exit(f"the behaviour has changed: got {seen}, had {expected}")
PYTHON
"$work/venv/bin/python" "$work/check.py" "$work"
