"""run, demo, inspect and doctor: what they print, and where."""

from __future__ import annotations

import json

import numpy as np
import pytest
from cli_process import FAMILIES

import moesaic
from moesaic.cli.terminal import human_bytes, plain, table


@pytest.fixture(scope="module")
def wanted():
    with moesaic.Model.demo(progress=False) as m:
        yield m.generate("It was", max_tokens=12, seed=5)


def test_run_prints_the_prompt_and_the_text_on_stdout_and_figures_on_stderr(cli, demo_path, wanted):
    result = cli("run", demo_path, "-p", "It was", "-n", "12", "--seed", "5")
    assert result.exit_code == 0
    assert result.stdout == f"It was{wanted.text}\n"
    assert "generated 12" in result.stderr and "tok/s" in result.stderr
    assert "seed 5]" in result.stderr
    assert "warning" not in result.stderr  # the context was chosen to fit the model


def test_run_json_is_one_object_with_all_of_it(cli, demo_path, wanted):
    result = cli("run", demo_path, "-p", "It was", "-n", "12", "--seed", "5", "--json")
    assert result.exit_code == 0 and result.stderr == ""
    said = json.loads(result.stdout)
    assert said["prompt"] == "It was" and said["text"] == wanted.text
    assert said["tokens"] == wanted.tokens.tolist()
    assert said["finish_reason"] == "length" and said["stop"] is None and said["seed"] == 5
    assert said["timings"]["generated_tokens"] == 12


def test_run_reads_the_prompt_from_stdin(cli, demo_path, wanted):
    result = cli("run", demo_path, "-p", "-", "-n", "12", "--seed", "5", stdin="It was")
    assert result.stdout == f"It was{wanted.text}\n"


def test_run_without_a_seed_shows_the_one_it_took(cli, demo_path):
    first = json.loads(cli("run", demo_path, "-p", "It", "-n", "8", "--json").stdout)
    again = cli("run", demo_path, "-p", "It", "-n", "8", "--json", "--seed", str(first["seed"]))
    assert json.loads(again.stdout)["tokens"] == first["tokens"]


def test_run_options_reach_the_sampler(cli, demo_path):
    greedy = [cli("run", demo_path, "-p", "It", "-n", "8", "--temp", "0").stdout for _ in "12"]
    one_choice = cli("run", demo_path, "-p", "It", "-n", "8", "--top-k", "1").stdout
    assert greedy[0] == greedy[1] == one_choice
    words = greedy[0].split()
    stop = cli("run", demo_path, "-p", "It", "-n", "8", "--temp", "0", "--stop", words[2], "--json")
    assert json.loads(stop.stdout)["stop"] == words[2]
    assert words[2] not in json.loads(stop.stdout)["text"]


def test_demo(cli):
    result = cli("demo", "-n", "6")
    assert result.exit_code == 0
    assert result.stdout.startswith("It is a truth universally")
    assert "8 experts of which 2 work on a token" in result.stderr
    said = json.loads(cli("demo", "-n", "6", "--json").stdout)
    assert result.stdout == 2 * (said["prompt"] + said["text"] + "\n")  # on one, then on workers
    assert len(said["tokens"]) == 6


def test_doctor(cli):
    said = json.loads(cli("doctor", "--json").stdout)
    assert said["moesaic"] == moesaic.__version__
    assert said["isa"] in said["isa_available"] and said["backends"] == ["cpu"]
    assert said["memory_free_bytes"] > 0 and said["cpus"] >= 1
    text = cli("doctor").stdout
    assert said["isa"] in text and np.__version__ in text


def test_version(cli):
    assert cli("--version").stdout == f"moesaic {moesaic.__version__}\n"


# -- inspect ---------------------------------------------------------------------------------------


def test_inspect_says_what_the_file_holds(cli, demo_path):
    result = cli("inspect", demo_path)
    assert result.exit_code == 0 and result.stderr == ""
    for text in (
        "deepseek2",
        "9,998,368",
        "8, 2 a token, 1 shared",
        "Q4_K",
        "chat template",
        "512",
    ):
        assert text in result.stdout
    assert "metadata" not in result.stdout and "\ntensors\n" not in result.stdout


def test_inspect_json_agrees_with_the_file(cli, demo_path):
    said = json.loads(cli("inspect", demo_path, "--json").stdout)
    with moesaic.GGUF(demo_path) as file:
        assert said["bytes"] == sum(t.nbytes for t in file.tensors.values())
        assert said["params"] == sum(int(np.prod(t.shape)) for t in file.tensors.values())
        rows = {t["name"]: t for t in said["tensors"]}
        assert list(rows) == list(file.tensors)
        for name, t in file.tensors.items():
            assert rows[name]["shape"] == list(t.shape) and rows[name]["qtype"] == t.qtype
        assert said["tokenizer"]["vocab"] == len(file.metadata["tokenizer.ggml.tokens"])
    assert sum(t["bytes"] for t in said["types"].values()) == said["bytes"]
    assert [(r["first"], r["last"]) for r in said["layers"]] == [(0, 0), (1, 4)]
    assert said["not_runnable_because"] is None


@pytest.mark.parametrize("name", ["deepseek2_kimi_kvb", "gptoss_mxfp4", "llama_gqa"])
def test_the_memory_that_inspect_foretells_is_what_loading_takes(cli, name):
    path = FAMILIES / f"{name}.gguf"
    for need in json.loads(cli("inspect", path, "--json").stdout)["memory"]:
        n_ctx = need.pop("n_ctx")
        with moesaic.Model(path, n_ctx=n_ctx, kv_tokens=n_ctx, progress=False) as m:
            taken = m.memory
        for part in ("weights_bytes", "derived_bytes", "kv_bytes"):
            assert need[part] == taken[part], part
        # Scratch is for the threads there are; the foretold one for those of this process.
        assert need["scratch_bytes"] >= taken["scratch_bytes"] > 0


def test_inspect_of_a_layer_cache_by_hand(cli, demo_path):
    """MLA: one latent row (128 + 32 halves) per layer and token."""
    (need,) = json.loads(cli("inspect", demo_path, "--json").stdout)["memory"]
    assert need["n_ctx"] == 512
    assert need["kv_bytes"] == 5 * (128 + 32) * 2 * 512


def test_inspect_lists_on_request(cli, demo_path):
    text = cli("inspect", demo_path, "--metadata", "--tensors", "--template").stdout
    assert "deepseek2.block_count" in text and "2048 values: " in text
    assert "blk.4.ffn_down_exps.weight" in text and "8 x 256 x 256" in text
    assert "{% for message in messages %}" in text


def test_inspect_of_what_cannot_run(cli, tmp_path):
    vocabulary = tmp_path / "vocabulary.gguf"
    moesaic.write_gguf(
        vocabulary,
        {"general.architecture": "bert", "tokenizer.ggml.tokens": ["a", "b"]},
        {},
    )
    result = cli("inspect", vocabulary)
    assert result.exit_code == 0
    assert "no tensors" in result.stdout and "2 tokens" in result.stdout
    other = tmp_path / "other.gguf"
    moesaic.write_gguf(
        other, {"general.architecture": "bert"}, {"x.weight": np.ones((2, 3), np.float32)}
    )
    result = cli("inspect", other)
    assert result.exit_code == 0 and "need one of: deepseek2" in result.stdout
    assert json.loads(cli("inspect", other, "--json").stdout)["memory"] == []


def test_a_file_cannot_drive_the_terminal(cli, tmp_path):
    path = tmp_path / "x.gguf"
    moesaic.write_gguf(
        path,
        {
            "general.architecture": "a\x1b[31mb",
            "general.name": "n\x07\u202e",
            "tokenizer.chat_template": "line\n\x1b]0;title\x07",
            "tokenizer.ggml.tokens": 7,
        },
        {"t\x1b[2J": np.ones((1, 2), np.float32)},
    )
    result = cli("inspect", path, "--metadata", "--tensors", "--template")
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout + result.stderr and "\x07" not in result.stdout
    assert "\u202e" not in result.stdout
    assert "t\\x1b[2J" in result.stdout
    json.loads(cli("inspect", path, "--json").stdout)


# -- the parts -------------------------------------------------------------------------------------


def test_human_bytes():
    assert [human_bytes(n) for n in (0, 999, 1000, 1_550_000, 375e9, 1.2e12)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "1.6 MB",
        "375.0 GB",
        "1.20 TB",
    ]


def test_table_and_plain():
    assert table([("a", "bb"), ("ccc", "d")], right=frozenset({1})) == "a    bb\nccc   d"
    assert table([]) == "(none)"
    assert plain("é 字\t\x00", keep="\t") == "é 字\t\\x00"
