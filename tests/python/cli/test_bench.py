"""moesaic bench: figures for each prompt length, the ceilings beside them, and clear refusals."""

from __future__ import annotations

import json

import pytest

import moesaic


def test_json_has_a_row_for_each_prompt_and_the_ceilings(cli, demo_path):
    result = cli("bench", demo_path, "--prompt", "16,48", "-n", "4", "-r", "1", "-t", "1", "--json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert [row["prompt_tokens"] for row in said["rows"]] == [16, 48]
    for row in said["rows"]:
        assert row["time_to_first_token"] > 0
        assert row["prefill_tokens_per_s"] > 0 and row["decode_tokens_per_s"] > 0
    assert said["ceilings"]["read_bytes_per_s"] > 1e8
    assert said["ceilings"]["matmul_ops_per_s"] > 1e8
    with moesaic.Model.demo(progress=False) as m:
        every = sum(tensor.nbytes for tensor in m.tensors.values())
        expert_share = m.config.n_active / m.config.n_experts
    assert expert_share * every < said["weights_read_per_token"] < every


def test_the_table_has_a_line_for_each_prompt(cli, demo_path):
    result = cli("bench", demo_path, "-p", "16", "-n", "3", "-r", "2", "-t", "1")
    assert result.exit_code == 0, result.stderr
    assert "first token" in result.stdout and "GB/s" in result.stdout
    assert any(line.split()[:1] == ["16"] for line in result.stdout.splitlines())


def test_it_runs_on_workers(cli, demo_path):
    result = cli("bench", demo_path, "-p", "16", "-n", "3", "-r", "1", "--local", "2", "--json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["device"] == "cluster: 2 workers" and "ceilings" not in said


@pytest.mark.parametrize("text", ["", "12,", "a", "0", "-4", "1.5"])
def test_lengths_that_are_none_are_refused(cli, demo_path, text):
    result = cli("bench", demo_path, f"--prompt={text}")
    assert result.exit_code != 0
    assert "need lengths like" in result.stderr
