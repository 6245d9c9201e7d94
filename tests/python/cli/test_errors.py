"""Wrong usage, bad files: one line on stderr that says what to do, and the right exit code."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from cli_process import FAMILIES, start


def assert_one_line(result, code: int, *texts: str) -> None:
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith("moesaic: ") and result.stderr.count("\n") == 1
    for text in texts:
        assert text in result.stderr


@pytest.mark.parametrize("command", ["run", "chat", "inspect"])
def test_files_that_are_not_models(cli, command, demo_path, tmp_path):
    options = ["-p", "x"] if command == "run" else []
    (tmp_path / "text.gguf").write_text("not a model at all, just a text of some length")
    (tmp_path / "cut.gguf").write_bytes(Path(demo_path).read_bytes()[:5000])
    (tmp_path / "empty.gguf").write_bytes(b"")
    cases = {
        "nope.gguf": "No such file",
        "text.gguf": "not a GGUF file",
        "cut.gguf": "damaged or cut off",
        "empty.gguf": "",
        "": "folder",
    }
    for name, text in cases.items():
        path = tmp_path / name
        assert_one_line(cli(command, path, *options), 1, str(path), text)


@pytest.mark.parametrize(
    "options",
    [
        ["--seed=-1"],
        ["--temp=-1"],
        ["--temp=nan"],
        ["-n", "-1"],
        ["-c", "0"],
        ["-t", "0"],
        ["-t", "10000"],
        ["--top-p", "2"],
        ["--stop", ""],
    ],
)
def test_options_out_of_range_are_wrong_usage_and_print_no_text(cli, demo_path, options):
    assert_one_line(cli("run", demo_path, "-p", "hi", *options), 2, "got", "need")


@pytest.mark.parametrize(
    "args",
    [
        ["run"],
        ["run", "x.gguf"],
        ["inspect"],
        ["bogus"],
        ["run", "x.gguf", "-p", "hi", "--temp", "abc"],
        ["run", "x.gguf", "-p", "hi", "--no-such-option"],
        ["demo", "extra"],
    ],
)
def test_usage(cli, args):
    result = cli(*args)
    assert result.exit_code == 2 and result.stdout == ""
    assert "Usage:" in result.stderr and "Traceback" not in result.stderr


def test_help(cli):
    for args in (
        ["--help"],
        *([c, "--help"] for c in ("run", "chat", "inspect", "demo", "doctor")),
    ):
        result = cli(*args)
        assert result.exit_code == 0 and "Usage:" in result.stdout
    assert cli("run", "--help").stdout.count("[default:") >= 8


def test_too_long_a_prompt_and_too_little_memory(cli, demo_path):
    assert_one_line(
        cli("run", demo_path, "-p", "word " * 2000), 2, "--n-ctx = 512", "--n-ctx 2003 or"
    )
    result = cli("run", demo_path, "-p", "x", "-c", "1000000000")
    assert_one_line(result, 1, "need", "free", "would fit")


def test_stdin_that_is_no_text(cli, demo_path):
    assert_one_line(cli("run", demo_path, "-p", "-", stdin=b"ab\xff"), 2, "UTF-8", "place 2")


def test_a_model_without_a_chat_template(cli):
    path = FAMILIES / "gptoss_mxfp4.gguf"
    assert_one_line(cli("chat", path, stdin="hi\n"), 1, "no chat template", "moesaic run")


def test_warnings_are_one_line_without_source(demo_path):
    p = start("run", demo_path, "-p", "hi", "-n", "1", "-c", "600")
    _, err = p.communicate(timeout=60)
    lines = err.decode().splitlines()
    assert p.returncode == 0 and len(lines) == 2
    assert lines[0].startswith("moesaic: warning: ") and "512" in lines[0]


def test_a_full_disk_and_a_closed_stdout(demo_path):
    with open("/dev/full", "w") as full:
        p = start("inspect", demo_path, stdout=full)
        _, err = p.communicate(timeout=60)
    assert p.returncode == 1 and err.decode().count("\n") == 1 and b"No space" in err
    p = start("inspect", demo_path, stdout=None, preexec_fn=lambda: os.close(1))
    _, err = p.communicate(timeout=60)
    assert p.returncode == 0 and err == b""


def test_an_output_that_cannot_write_every_character(demo_path):
    p = start("run", demo_path, "-p", "é", "-n", "1", env={"PYTHONIOENCODING": "ascii"})
    out, err = p.communicate(timeout=60)
    assert p.returncode == 0 and out.startswith(b"?") and b"Traceback" not in err


def test_a_reader_that_leaves_early_ends_it_quietly(endless_path):
    p = start("run", endless_path, "-p", "x", "-n", "400")
    assert p.stdout is not None and p.stderr is not None
    p.stdout.close()
    err = p.stderr.read()
    p.stderr.close()
    assert p.wait(timeout=60) == 141 and err == b""


def test_names_that_are_not_utf8(demo_path, tmp_path):
    path = os.fsencode(tmp_path) + b"/m\xff.gguf"
    os.symlink(demo_path, path)
    for args in (["inspect", path, "--json"], ["run", path, "-p", "x", "-n", "1"]):
        p = start(*args)
        _, err = p.communicate(timeout=60)
        assert p.returncode == 0 and b"Traceback" not in err


def test_json_goes_to_stdout_alone(demo_path):
    p = start("run", demo_path, "-p", "x", "-n", "1", "--json", stderr=subprocess.STDOUT)
    out, _ = p.communicate(timeout=60)
    assert p.returncode == 0 and out.startswith(b"{") and out.count(b"\n") == 1
