"""GGUF files beside a model that are not one: named in one line by whatever would run them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import moesaic
from moesaic.cli import app

ROWS = np.ones((4, 32), np.float32)
KINDS = {
    "adapter": (
        {"general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora"},
        {"blk.0.attn_q.weight.lora_a": ROWS, "blk.0.attn_q.weight.lora_b": ROWS},
        "a LoRA adapter",
    ),
    "mmproj": (
        {"general.type": "mmproj", "general.architecture": "clip", "clip.use_gelu": True},
        {"v.patch_embd.weight": ROWS},
        "a projector that turns images or sound into rows (mmproj)",
    ),
    "imatrix": (
        {"general.type": "imatrix", "imatrix.chunk_count": 10},
        {"blk.0.attn_q.weight.in_sum2": ROWS, "blk.0.attn_q.weight.counts": ROWS},
        "an importance matrix",
    ),
    "control": (
        {"general.architecture": "controlvector", "controlvector.model_hint": "llama"},
        {"direction.1": ROWS},
        "a control vector",
    ),
    "vocabulary": (
        {"general.architecture": "llama", "tokenizer.ggml.model": "gpt2", "llama.block_count": 2},
        {},
        "a vocabulary without weights",
    ),
}


@pytest.fixture(params=KINDS)
def other(request, tmp_path) -> tuple[Path, str]:
    metadata, tensors, what = KINDS[request.param]
    path = tmp_path / f"{request.param}.gguf"
    moesaic.write_gguf(path, metadata, tensors)
    return path, what


def check(message: str, path: Path, what: str) -> None:
    assert str(path) in message and what in message and "not a model" in message
    assert "load " in message and "\n" not in message.strip()


def test_model_plan_and_cluster_say_what_the_file_is(other) -> None:
    path, what = other
    with pytest.raises(moesaic.FormatError) as error:
        moesaic.Model(path)
    check(str(error.value), path, what)
    with pytest.raises(moesaic.FormatError) as error:
        moesaic.Plan.on_paper(path, memory="8G", bandwidth="20G", matmul="600G", threads=2)
    check(str(error.value), path, what)
    with moesaic.GGUF(path) as gguf:
        assert set(gguf.tensors) == set(KINDS[path.stem][1])


def test_commands_say_it_in_one_line(other) -> None:
    path, what = other
    for args in (["run", path, "-p", "x"], ["bench", path], ["plan", path]):
        result = CliRunner().invoke(app, [str(a) for a in args])
        assert result.exit_code == 1 and result.stdout == "", result.output
        check(result.stderr, path, what)
    result = CliRunner().invoke(app, ["inspect", str(path)])
    assert result.exit_code == 0 and "Moesaic cannot run this file" in result.stdout
