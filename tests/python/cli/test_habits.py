"""What people type out of habit: short help, a prompt behind the model, other programs' words."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cli_process import FAMILIES, start

import moesaic
from moesaic import _core
from moesaic.cli import COMMANDS
from moesaic.cli.habits import rewritten

SMALL = ["-n", "8", "--seed", "5"]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_in_short_and_by_word(cli, command):
    words = [command] if command else []
    long = cli(*words, "--help")
    assert long.exit_code == 0
    assert cli(*words, "-h").stdout == long.stdout == cli("help", *words).stdout


def test_version_as_a_command(cli):
    assert cli("version").stdout == cli("--version").stdout == f"moesaic {moesaic.__version__}\n"
    assert "  version" not in cli("--help").stdout


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("list", "moesaic inspect FILE"), ("ls", "moesaic inspect FILE"),
        ("ps", "moesaic cluster status"), ("stop", "Ctrl-C"), ("show", "moesaic inspect"),
        ("pull", "hf download"), ("rm", "rm FILE"), ("serve", "no HTTP server"),
        ("server", "no HTTP server"), ("generate", "moesaic run MODEL"), ("quantize", "quantize"),
        ("rum", "did you mean run?"), ("inspct", "did you mean inspect?"),
        ("x.gguf", "moesaic run x.gguf"), ("frobnicate", "moesaic --help"),
    ],
)  # fmt: skip
def test_commands_of_other_programs_are_answered(cli, command, said):
    for args in ([command], [command, "something", "--else"]):
        result = cli(*args)
        assert result.exit_code == 2 and result.stdout == ""
        assert f"No such command '{command}': " in result.stderr and said in result.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-ngl", "99"], "computes on CPUs"), (["--n-gpu-layers=99"], "computes on CPUs"),
        (["--n_gpu_layers", "9"], "computes on CPUs"), (["--n-predict", "5"], "--max-tokens"),
        (["--max-new-tokens", "5"], "--max-tokens"), (["--ctx-size", "99"], "--n-ctx"),
        (["--num-ctx", "9"], "--n-ctx"), (["-hf", "a/b"], "hf download"), (["-f", "x"], "--prompt"),
        (["-cnv"], "moesaic chat"), (["--grammar", "x"], "no grammars"), (["--rpc", "x"], "--clus"),
    ],
)  # fmt: skip
def test_options_of_other_programs_are_answered(cli, demo_path, options, said):
    for command in ("run", "chat"):
        result = cli(command, demo_path, *options)
        assert result.exit_code == 2 and result.stdout == ""
        assert f"No such option {options[0].partition('=')[0].replace('_', '-')}: " in result.stderr
        assert said in result.stderr


def test_texts_that_look_like_options_stay_texts(cli, demo_path):
    result = cli("run", demo_path, "-p", "-ngl", *SMALL)
    assert result.exit_code == 0 and result.stdout.startswith("-ngl")
    assert cli("run", demo_path, *SMALL, "--", "-m", "it").stdout.startswith("-m it")
    assert cli("run", demo_path, "-p", "--model", *SMALL).stdout.startswith("--model")


def test_the_model_by_an_option(cli, demo_path):
    want = cli("run", demo_path, "-p", "It was", *SMALL).stdout
    for args in (
        ["-m", demo_path, "-p", "It was", *SMALL],
        ["-p", "It was", *SMALL, "--model", demo_path],
        [f"--model={demo_path}", *SMALL, "It was"],
        [*SMALL, "-m", demo_path, "It", "was"],
    ):
        assert cli("run", *args).stdout == want
    assert "deepseek2" in cli("inspect", "-m", demo_path).stdout
    assert rewritten(["worker", "-m", "folder"]) == ["worker", "-m", "folder"]  # has its own -m
    assert rewritten(["run", "-m"]) == ["run", "-m"] and rewritten([]) == []


def test_a_prompt_behind_the_model(cli, demo_path):
    want = cli("run", demo_path, "-p", "It was the", *SMALL).stdout
    assert cli("run", demo_path, "It was the", *SMALL).stdout == want
    assert cli("run", demo_path, *SMALL, "It", "was", "the").stdout == want
    assert cli("run", demo_path, *SMALL, stdin="It was the").stdout == want  # piped in
    assert cli("run", demo_path, "-", *SMALL, stdin="It was the").stdout == want
    twice = cli("run", demo_path, "It", "-p", "was", *SMALL)
    assert twice.exit_code == 2 and "need one of them" in twice.stderr
    none = cli("run", demo_path)
    assert none.exit_code == 2 and "Usage:" in none.stderr and "none given" in none.stderr


def test_demo_is_a_name(cli, demo_path):
    want = cli("run", demo_path, "It was", *SMALL).stdout
    assert cli("run", "demo", "It was", *SMALL).stdout == want
    assert cli("inspect", "demo").stdout == cli("inspect", demo_path).stdout
    assert cli("chat", "demo", "-n", "4", stdin="Hello.\n").exit_code == 0


@pytest.mark.parametrize("command", ["run", "chat", "inspect", "bench", "plan"])
def test_a_name_of_a_hub_is_shown_whole(cli, command):
    url = "https://huggingface.co/unsloth/Qwen3-GGUF/resolve/main/a.gguf"
    result = cli(command, url, *(["hello"] if command == "run" else []))
    assert result.exit_code == 1 and result.stdout == "" and result.stderr.count("\n") == 1
    assert url in result.stderr and "hf download unsloth/Qwen3-GGUF a.gguf" in result.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--top-p", "2"], "[run] --top-p: got 2"),
        (["--min-p", "-1"], "[run] --min-p: got -1"),
        (["--temp", "-1"], "[run] --temperature: got -1"),
        (["-n", "-5"], "[run] --max-tokens: got -5, need an integer >= 0"),
        (["-c", "3"], "--n-ctx"),
        (["-c", "0"], "[run] --n-ctx: got 0"),
        (["-t", "0"], "[run] --threads: got 0"),
        (["--seed", "-3"], "[run] --seed: got -3"),
        (["-c", "900000000"], "--n-ctx "),
        (["--stop", ""], "[run] --stop: got an empty string"),
    ],
)
def test_messages_name_flags(cli, demo_path, args, said):
    result = cli("run", demo_path, "It was the best of times", *args)
    assert result.exit_code in (1, 2) and result.stdout == ""
    assert said in result.stderr
    for python in ("Model.", "n_ctx", "max_tokens", "4611686018427387904"):
        assert python not in result.stderr


def test_a_text_that_the_context_cuts_says_so(cli, demo_path):
    n = len(moesaic.Model.demo(progress=False).tokenize("It was the best"))
    full = cli("run", demo_path, "It was the best", "-c", str(n), "--temp", "0")
    assert full.exit_code == 0 and full.stdout == "It was the best\n"
    cut = cli("run", demo_path, "It was the best", "-c", str(n + 3), "--seed", "1")
    for result in (full, cut):
        assert "cut where the context of" in result.stderr and "--n-ctx" in result.stderr
    assert "cut where" not in cli("run", demo_path, "It was the best", *SMALL).stderr


def test_keygen_says_what_comes_next(cli, tmp_path):
    said = cli("keygen", tmp_path / "my key").stderr
    assert f"moesaic worker --listen 0.0.0.0:9777 --key '{tmp_path}/my key'" in said
    assert "moesaic cluster status --cluster" in said


def test_shells_can_complete(demo_path):
    env = {"_MOESAIC_COMPLETE": "complete_bash", "COMP_CWORD": "1", "COMP_WORDS": "moesaic in"}
    out, err = start(env=env).communicate(timeout=60)
    assert out.decode().split() == ["inspect"], err
    folder = str(Path(demo_path).parent)
    env |= {"COMP_CWORD": "2", "COMP_WORDS": f"moesaic run {folder}/"}
    out, err = start(env=env).communicate(timeout=60)
    assert out.decode().split() == [demo_path], err


# -- a terminal, and its Ctrl-C --------------------------------------------------------------------


def on_a_terminal(*args: str) -> tuple[int, int]:
    pid, fd = pty.fork()
    if pid == 0:
        try:
            os.environ["TERM"] = "dumb"
            os.execv(sys.executable, [sys.executable, "-m", "moesaic", *args])
        finally:
            os._exit(127)
    return pid, fd


def until(fd: int, text: bytes) -> bytes:
    seen, end = b"", time.monotonic() + 60
    while text not in seen and time.monotonic() < end:
        if not select.select([fd], [], [], 0.2)[0]:
            continue
        try:
            seen += os.read(fd, 65536)
        except OSError:
            break
    assert text in seen, seen
    return seen


def test_run_without_a_prompt_on_a_terminal_is_a_conversation(demo_path):
    pid, fd = on_a_terminal("run", demo_path, "-n", "4")
    try:
        assert b"context of 512 tokens" in until(fd, b"> ")
        os.write(fd, b"Hello.\r")
        until(fd, b"tok/s")
        os.write(fd, b"exit\r")
        until(fd, b"exit")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        os.close(fd)


def test_run_without_a_prompt_and_a_template_says_what_to_do():
    pid, fd = on_a_terminal("run", str(FAMILIES / "gptoss_mxfp4.gguf"))
    try:
        until(fd, b'use moesaic run MODEL "text"')
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    finally:
        os.close(fd)


def test_ctrl_c_while_modules_are_imported_is_one_line():
    """At whatever moment after the first line of ours; before it is the interpreter's."""
    code = (
        "import os, signal, sys\n"
        "at, sys.argv = sys.argv[1], ['/usr/bin/moesaic', 'run', 'demo', 'x', '-n', '1']\n"
        "class Kill:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == at: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Kill())\n"
        "import moesaic._starting\n"
        "moesaic._starting.main()\n"
    )
    modules = "moesaic._version moesaic.errors moesaic.cli typer moesaic.cli.terminal numpy"
    for module in (*modules.split(), "moesaic.cli.run", "moesaic.model", "tokenizers"):
        p = subprocess.run(
            [sys.executable, "-c", code, module],
            capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert p.returncode in (0, 130), (module, p.stderr)
        assert "Traceback" not in p.stderr, (module, p.stderr)
        if p.returncode == 130:
            assert p.stderr == "moesaic: interrupted\n", module


def test_ctrl_c_outside_a_command_is_said_too():
    """Typer itself ends without a word."""
    code = (
        "import os, signal, sys, moesaic.cli as c\n"
        "from moesaic.cli import habits\n"
        "habits.rewritten = lambda args: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.argv = ['moesaic', 'run']\n"
        "c.main()\n"
    )
    p = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (p.returncode, p.stderr) == (130, "moesaic: interrupted\n")


def test_the_package_leaves_a_programs_ctrl_c_alone():
    code = "import moesaic, signal; print(signal.getsignal(signal.SIGINT).__name__)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert out.stdout == "default_int_handler\n", out.stderr


def test_an_ignored_ctrl_c_stays_ignored():
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nimport moesaic._starting"
    code += " as s; s.begin(); print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert out.stdout == "True\n", out.stderr


def test_ctrl_c_while_this_machine_is_measured():
    sent: list[float] = []

    def send() -> None:
        time.sleep(0.1)
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=send)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        for _ in range(100):
            _core.measure(1)
    heard = time.monotonic()
    thread.join()
    assert heard - sent[0] < 0.5  # promised are 100 ms; the rest is for a loaded machine
