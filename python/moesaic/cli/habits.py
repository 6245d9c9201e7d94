"""What people type out of habit from other programs: taken where it is clear, answered where not.

``-m FILE`` for the model, ``help COMMAND``, commands and options of Ollama, llama.cpp, vLLM and
transformers. Typer brings a click of its own, so contexts and commands are Any here.
"""

from __future__ import annotations

import difflib
import os
from typing import Any

from typer.core import TyperGroup

from moesaic.cli import terminal

__all__ = ["HabitsGroup", "rewritten"]

_TAKES_MODEL = frozenset({"run", "chat", "inspect", "plan", "bench"})
_MODEL_OPTIONS = ("-m", "--model")

_NO_DOWNLOADS = (
    "models are not downloaded in this version: hf download ORG/REPO FILE.gguf --local-dir . gets "
    "a file, and moesaic run FILE.gguf runs it"
)
_NO_LIBRARY = "there is no library of models: any GGUF file is one; moesaic inspect FILE shows it"
_NO_SERVER = (
    "there is no HTTP server in this version; use moesaic run, moesaic chat, or the Python package"
)
_COMMANDS = {
    "list": _NO_LIBRARY,
    "ls": _NO_LIBRARY,
    "models": _NO_LIBRARY,
    "show": "moesaic inspect FILE shows what a model is",
    "info": "moesaic inspect FILE shows what a model is, moesaic doctor what this machine is",
    "ps": "nothing runs in the background here; moesaic cluster status shows what workers hold",
    "status": "moesaic cluster status shows what workers hold, moesaic doctor what this machine is",
    "stop": "nothing runs in the background here: Ctrl-C ends a command",
    "pull": _NO_DOWNLOADS,
    "download": _NO_DOWNLOADS,
    "push": _NO_DOWNLOADS,
    "search": _NO_DOWNLOADS,
    "rm": "models are plain files: rm FILE",
    "cp": "models are plain files: cp FILE FILE",
    "create": "GGUF files run as they are; sampling options belong to moesaic run and moesaic chat",
    "serve": _NO_SERVER,
    "server": _NO_SERVER,
    "api": _NO_SERVER,
    "generate": "moesaic run MODEL -p TEXT generates text",
    "complete": "moesaic run MODEL -p TEXT generates text",
    "cli": "moesaic run MODEL -p TEXT generates text, moesaic chat MODEL talks",
    "talk": "moesaic chat MODEL talks",
    "benchmark": "moesaic bench MODEL measures speed",
    "convert": "GGUF files are made elsewhere: llama.cpp's convert_hf_to_gguf.py",
    "quantize": "whole files are quantised elsewhere (llama-quantize); moesaic.quantize() does one "
    "array",
    "perplexity": "in Python: Model.score_rolling(texts) gives log-likelihoods",
    "tokenize": "in Python: Model.tokenize(text)",
}

_ON_CPUS = "this version computes on CPUs: leave it out"
_CALLED = {
    "max_tokens": "it is called --max-tokens (-n) here",
    "n_ctx": "it is called --n-ctx (-c) here",
    "prompt": "it is called --prompt (-p) here; - reads stdin: moesaic run MODEL -p - < FILE",
}
_OPTIONS = {
    "-ngl": _ON_CPUS,
    "--n-gpu-layers": _ON_CPUS,
    "--gpu-layers": _ON_CPUS,
    "--num-gpu": _ON_CPUS,
    "--gpu": _ON_CPUS,
    "--device": _ON_CPUS,
    "-dev": _ON_CPUS,
    "--n-predict": _CALLED["max_tokens"],
    "--predict": _CALLED["max_tokens"],
    "--num-predict": _CALLED["max_tokens"],
    "--max-new-tokens": _CALLED["max_tokens"],
    "--ctx-size": _CALLED["n_ctx"],
    "--num-ctx": _CALLED["n_ctx"],
    "--context": _CALLED["n_ctx"],
    "--context-length": _CALLED["n_ctx"],
    "--max-model-len": _CALLED["n_ctx"],
    "--file": _CALLED["prompt"],
    "-f": _CALLED["prompt"],
    "--system-prompt": "it is called --system (-s), of moesaic chat",
    "-sys": "it is called --system (-s), of moesaic chat",
    "-hf": _NO_DOWNLOADS,
    "-hfr": _NO_DOWNLOADS,
    "--hf-repo": _NO_DOWNLOADS,
    "-hff": _NO_DOWNLOADS,
    "--hf-file": _NO_DOWNLOADS,
    "-mu": _NO_DOWNLOADS,
    "--model-url": _NO_DOWNLOADS,
    "-cnv": "moesaic chat MODEL holds a conversation",
    "--conversation": "moesaic chat MODEL holds a conversation",
    "-i": "moesaic chat MODEL holds a conversation",
    "--interactive": "moesaic chat MODEL holds a conversation",
    "--jinja": "moesaic chat always uses the model's own template: leave it out",
    "--verbose": "figures come on stderr anyway: leave it out",
    "--tensor-parallel-size": "moesaic plan and --cluster cut a model by layers",
    "-tp": "moesaic plan and --cluster cut a model by layers",
    "--rpc": "it is called --cluster HOST:PORT,HOST:PORT here, of machines that run moesaic worker",
    "--do-sample": "--temperature 0 is greedy, anything above samples",
    "--repeat-penalty": "it is an option of the Python package: Model.generate(repeat_penalty=...)",
    "--grammar": "there are no grammars in this version",
    "--format": "there is no structured output in this version",
}
#: After these comes text, whatever it looks like.
_TEXT_OPTIONS = frozenset({"-p", "--prompt", "-s", "--system", "--stop"})


def rewritten(args: list[str]) -> list[str]:
    """Return a command line with what is clear put as this program has it."""
    if not args:
        return args
    if args[0] == "help":
        return [*args[1:], "--help"]
    if args[0] not in _TAKES_MODEL:
        return args
    rest = args[1:]
    for i, arg in enumerate(rest):
        if arg == "--" or (i and rest[i - 1] in _TEXT_OPTIONS):
            if arg == "--":
                break
            continue
        if arg in _MODEL_OPTIONS and i + 1 < len(rest):
            return [args[0], rest[i + 1], *rest[:i], *rest[i + 2 :]]
        if arg.startswith("--model="):
            return [args[0], arg.removeprefix("--model="), *rest[:i], *rest[i + 1 :]]
    return args


class HabitsGroup(TyperGroup):
    """The group of all commands, which knows what other programs have."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Rewrite what is clear before anything is parsed."""
        return super().parse_args(ctx, rewritten(args))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command, or say what to use instead."""
        name = args[0]
        command: Any = self.get_command(ctx, name)
        if command is None:
            ctx.fail(f"No such command {name!r}: {_instead(name, self.list_commands(ctx))}")
        _refuse_foreign(ctx, command, args[1:])
        terminal.say_flags(name, command.params)
        return super().resolve_command(ctx, args)


def _instead(name: str, known: list[str]) -> str:
    if name in _COMMANDS:
        return _COMMANDS[name]
    if os.path.lexists(name) or name.lower().endswith(".gguf"):
        return f"moesaic run {name} runs a file, moesaic inspect {name} shows what it is"
    near = difflib.get_close_matches(name, known, n=2)
    return f"did you mean {' or '.join(near)}?" if near else "moesaic --help lists them"


def _refuse_foreign(ctx: Any, command: Any, args: list[str]) -> None:
    """Answer options of other programs that this command does not have."""
    own = {opt for p in command.params for opt in (*p.opts, *p.secondary_opts)}
    before = ""
    for arg in args:
        if arg == "--":
            return
        if before not in _TEXT_OPTIONS:
            name = arg.partition("=")[0].replace("_", "-") if arg.startswith("-") else ""
            if name in _OPTIONS and name not in own:
                ctx.fail(f"No such option {name}: {_OPTIONS[name]}")
        before = arg
