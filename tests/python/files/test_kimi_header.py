"""A file with Kimi K2.5's own header (1,096 tensors, 163,840 tokens, 375 GB) and no weights.

The header is true, the rest a hole in a sparse file: what is promised is that looking at such a
file costs milliseconds and next to no memory, and that its numbers come out right.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gguf_bytes import ARRAY, BOOL, F32, I32, STRING, U32, file, pair, tensor, text

import moesaic
from moesaic import _core
from moesaic.cli.inspect import describe

VOCAB, D, LAYERS, EXPERTS = 163_840, 7168, 61, 384
F32_, Q8_0, Q2_K, Q3_K, Q4_K, Q6_K = 0, 8, 10, 11, 12, 14
BLOCK = {F32_: (1, 4), Q8_0: (32, 34), Q2_K: (256, 84), Q3_K: (256, 110), Q4_K: (256, 144),
         Q6_K: (256, 210)}  # fmt: skip
COUNTS = {
    "block_count": LAYERS, "context_length": 262_144, "embedding_length": D,
    "feed_forward_length": 18_432, "leading_dense_block_count": 1, "vocab_size": VOCAB,
    "attention.head_count": 64, "attention.head_count_kv": 1, "attention.q_lora_rank": 1536,
    "attention.kv_lora_rank": 512, "attention.key_length": 576, "attention.value_length": 512,
    "attention.key_length_mla": 192, "attention.value_length_mla": 128, "rope.dimension_count": 64,
    "expert_count": EXPERTS, "expert_used_count": 8, "expert_shared_count": 1,
    "expert_feed_forward_length": 2048, "expert_gating_func": 2, "expert_group_count": 1,
    "expert_group_used_count": 1, "rope.scaling.original_context_length": 4096,
}  # fmt: skip
NUMBERS = {
    "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 50_000.0,
    "expert_weights_scale": 2.827, "rope.scaling.factor": 64.0,
    "rope.scaling.yarn_log_multiplier": 0.1,
}  # fmt: skip


def strings(key: str, values: list[str]) -> bytes:
    body = b"".join(text(value.encode()) for value in values)
    return pair(key, ARRAY, struct.pack("<IQ", STRING, len(values)) + body)


def keys() -> list[bytes]:
    tokens = [f"token{i:06d}" for i in range(VOCAB)]
    types = struct.pack("<IQ", I32, VOCAB) + b"\1\0\0\0" * VOCAB
    return [
        pair("general.architecture", STRING, text(b"deepseek2")),
        *(pair(f"deepseek2.{k}", U32, struct.pack("<I", v)) for k, v in COUNTS.items()),
        *(pair(f"deepseek2.{k}", F32, struct.pack("<f", v)) for k, v in NUMBERS.items()),
        pair("deepseek2.rope.scaling.type", STRING, text(b"yarn")),
        pair("deepseek2.expert_weights_norm", BOOL, b"\1"),
        pair("tokenizer.ggml.model", STRING, text(b"gpt2")),
        pair("tokenizer.ggml.pre", STRING, text(b"kimi-k2")),
        strings("tokenizer.ggml.tokens", tokens),
        pair("tokenizer.ggml.token_type", ARRAY, types),
        strings("tokenizer.ggml.merges", [f"a{i} b{i}" for i in range(VOCAB - 512)]),
    ]  # fmt: skip


def shapes() -> dict[str, tuple[int, tuple[int, ...]]]:
    """Name -> (element type, shape in the file's order)."""
    out: dict[str, tuple[int, tuple[int, ...]]] = {
        "token_embd.weight": (Q4_K, (D, VOCAB)),
        "output.weight": (Q6_K, (D, VOCAB)),
        "output_norm.weight": (F32_, (D,)),
    }
    attention = {
        "attn_norm": (F32_, (D,)), "attn_q_a": (Q4_K, (D, 1536)), "attn_q_a_norm": (F32_, (1536,)),
        "attn_q_b": (Q4_K, (1536, 64 * 192)), "attn_kv_a_mqa": (Q4_K, (D, 576)),
        "attn_kv_a_norm": (F32_, (512,)), "attn_k_b": (Q8_0, (128, 512, 64)),
        "attn_v_b": (Q8_0, (512, 128, 64)), "attn_output": (Q4_K, (8192, D)),
        "ffn_norm": (F32_, (D,)),
    }  # fmt: skip
    dense = {
        "ffn_gate": (Q4_K, (D, 18_432)), "ffn_up": (Q4_K, (D, 18_432)),
        "ffn_down": (Q4_K, (18_432, D)),
    }  # fmt: skip
    moe = {
        "ffn_gate_inp": (F32_, (D, EXPERTS)), "ffn_gate_exps": (Q2_K, (D, 2048, EXPERTS)),
        "ffn_up_exps": (Q2_K, (D, 2048, EXPERTS)), "ffn_down_exps": (Q3_K, (2048, D, EXPERTS)),
        "ffn_gate_shexp": (Q4_K, (D, 2048)), "ffn_up_shexp": (Q4_K, (D, 2048)),
        "ffn_down_shexp": (Q4_K, (2048, D)),
    }  # fmt: skip
    for layer in range(LAYERS):
        for name, row in (attention | (moe if layer else dense)).items():
            out[f"blk.{layer}.{name}.weight"] = row
        if layer:
            out[f"blk.{layer}.exp_probs_b.bias"] = (F32_, (EXPERTS,))
    return out


@pytest.fixture(scope="module")
def kimi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kimi") / "kimi.gguf"
    tensors, offset = [], 0
    for name, (kind, ne) in shapes().items():
        tensors.append(tensor(name, ne, kind, offset))
        n_elems = 1
        for n in ne:
            n_elems *= n
        elems, n_bytes = BLOCK[kind]
        offset += -(-(n_elems // elems * n_bytes) // 32) * 32
    header = file(keys(), tensors)
    path.write_bytes(header)
    begin = -(-len(header) // 32) * 32  # of the weights
    try:
        os.truncate(path, begin + offset)
    except OSError:
        pytest.skip("the file system has no sparse files of this size")
    return path


def best_ms(call) -> float:
    times = []
    for _ in range(7):
        begin = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - begin))
    return min(times)


def test_a_look_costs_milliseconds(kimi: Path) -> None:
    """Measured: 1.0 ms to open, 1.2 ms for the configuration; the bounds are what is promised."""
    encoded = os.fsencode(kimi)
    assert best_ms(lambda: moesaic.GGUF(kimi)) < 30
    assert best_ms(lambda: _core.describe(encoded)) < 30
    assert best_ms(lambda: _core.memory_need(encoded, n_ctx=4096)) < 60


def test_a_look_costs_no_memory(kimi: Path) -> None:
    """In a process of its own, whose memory nothing else has grown."""
    script = r"""
import re, sys
from moesaic import GGUF, _core
def own_kb():  # not the file's pages, which are the page cache's
    return int(re.search(r"RssAnon:\s*(\d+)", open("/proc/self/status").read())[1])
before = own_kb()
file = GGUF(sys.argv[1])
config = _core.describe(sys.argv[1].encode())
print(own_kb() - before)
"""
    run = subprocess.run(
        [sys.executable, "-c", script, str(kimi)], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 4096, f"{run.stdout} kB for a directory of 1,096 tensors"


def test_its_numbers(kimi: Path) -> None:
    with moesaic.GGUF(kimi) as f:
        assert len(f.tensors) == 1096
        assert f.tensors["blk.60.ffn_down_exps.weight"].shape == (EXPERTS, D, 2048)
        report = describe(f)
        assert f.tokenizer().vocab_size == VOCAB
    assert report["not_runnable_because"] is None
    assert 1.02e12 < report["params"] < 1.04e12
    assert 370e9 < report["bytes"] < 380e9
    assert report["config"]["attention_scale"] == pytest.approx(0.1446796, abs=1e-6)
    need = report["memory"][0]
    assert need["n_ctx"] == 4096
    assert need["kv_bytes"] == 4096 * LAYERS * 576 * 2
