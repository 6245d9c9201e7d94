"""What a KV cache cannot hold: heads that q8_0 does not divide, numbers beyond f16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import moesaic
from moesaic.gguf import GGUF

FAMILIES = Path(__file__).parents[2] / "data" / "families"
D_MODEL, N_HEADS, FF, LAYERS = 64, 4, 96, 2


def write(path: Path, *, head: int = 16, kv_heads: int = 2, scale: dict[str, float] | None = None):
    """A random llama of two layers; ``scale`` multiplies tensors by name."""
    rng = np.random.default_rng(0)
    tokens = [f"<0x{i:02X}>" for i in range(256)] + ["<s>", "</s>"]
    arch = "llama"
    meta = {
        "general.architecture": arch, f"{arch}.context_length": 256,
        f"{arch}.embedding_length": D_MODEL, f"{arch}.block_count": LAYERS,
        f"{arch}.feed_forward_length": FF, f"{arch}.attention.head_count": N_HEADS,
        f"{arch}.attention.head_count_kv": kv_heads, f"{arch}.attention.key_length": head,
        f"{arch}.attention.value_length": head, f"{arch}.rope.dimension_count": head,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5, f"{arch}.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.zeros(len(tokens), np.float32),
        "tokenizer.ggml.token_type": np.array([6] * 256 + [3, 3], np.int32),
        "tokenizer.ggml.bos_token_id": 256, "tokenizer.ggml.eos_token_id": 257,
    }  # fmt: skip

    def draw(*shape: int) -> np.ndarray:
        return (0.1 * rng.standard_normal(shape)).astype(np.float32)

    ones = np.ones(D_MODEL, np.float32)
    tensors = {
        "token_embd.weight": 5 * draw(len(tokens), D_MODEL), "output_norm.weight": ones,
        "output.weight": draw(len(tokens), D_MODEL),
    }  # fmt: skip
    for i in range(LAYERS):
        tensors |= {
            f"blk.{i}.{name}.weight": x
            for name, x in {
                "attn_norm": ones, "attn_q": draw(N_HEADS * head, D_MODEL),
                "attn_k": draw(kv_heads * head, D_MODEL), "attn_v": draw(kv_heads * head, D_MODEL),
                "attn_output": draw(D_MODEL, N_HEADS * head), "ffn_norm": ones,
                "ffn_gate": draw(FF, D_MODEL), "ffn_up": draw(FF, D_MODEL),
                "ffn_down": draw(D_MODEL, FF),
            }.items()
        }  # fmt: skip
    for name, factor in (scale or {}).items():
        tensors[name] = tensors[name] * np.float32(factor)
    moesaic.write_gguf(path, meta, tensors)
    return path


def load(path: Path, **options):
    return moesaic.Model(path, n_ctx=256, threads=1, progress=False, **options)


@pytest.mark.parametrize(("head", "kv_heads"), [(48, 2), (16, 2), (80, 2), (24, 4), (40, 4)])
def test_heads_that_q8_0_does_not_divide_are_refused_at_load(tmp_path, head, kv_heads):
    path = write(tmp_path / "m.gguf", head=head, kv_heads=kv_heads)
    with pytest.raises(moesaic.ArgumentError, match=rf'kv_type: got "q8_0".*heads of {head}\b'):
        load(path, kv_type="q8_0")
    with moesaic.Cluster.local(1) as cluster, pytest.raises(moesaic.ArgumentError, match="kv_type"):
        cluster.load(path, n_ctx=256, kv_type="q8_0")


@pytest.mark.parametrize(("head", "kv_heads"), [(32, 1), (64, 2), (96, 2)])
def test_heads_that_it_divides_work(tmp_path, head, kv_heads):
    path = write(tmp_path / "m.gguf", head=head, kv_heads=kv_heads)
    ids = list(range(40, 60))
    with load(path, kv_type="f32") as m, load(path, kv_type="q8_0") as q:
        want = m.forward(ids)
        assert float(np.abs(q.forward(ids) - want).max()) < want.std()


@pytest.mark.parametrize(
    ("kv_type", "name", "factor", "what"),
    [
        ("f16", "blk.1.attn_k.weight", 3e5, "layer 1, position 0: a key of "),
        ("f16", "blk.0.attn_v.weight", 3e5, "layer 0, position 0: a value of "),
        ("q8_0", "blk.1.attn_v.weight", 3e8, "layer 1, position 0: a value of "),
    ],
)
def test_an_overflow_is_named(tmp_path, kv_type, name, factor, what):
    path = write(tmp_path / "m.gguf", head=32, scale={name: factor})
    ids = list(range(40, 60))
    with load(path, kv_type="f32") as m:
        assert np.isfinite(m.forward(ids)).all()
    with load(path, kv_type=kv_type) as m:
        calls = (
            lambda: m.forward(ids),
            lambda: m.score([ids], [[5, 6]]),
            lambda: m.generate(ids, max_tokens=2),
        )
        for call in calls:
            with pytest.raises(moesaic.ArgumentError, match=r"\[kv\] " + what) as error:
                call()
            assert f"the {kv_type} cache" in str(error.value)
            assert 'kv_type="f32"' in str(error.value)


def test_an_overflow_on_a_cluster_is_the_requests_own(tmp_path):
    path = write(tmp_path / "m.gguf", scale={"blk.1.attn_k.weight": 3e5})
    with moesaic.Cluster.local(2) as cluster, cluster.load(path, n_ctx=256) as m:
        for _ in range(2):  # nothing is lost: the next call gives the same
            with pytest.raises(moesaic.ArgumentError, match=r"\[kv\] layer 1, position 0: a key"):
                m.forward([40, 41])


def test_an_overflow_of_mla_is_named(tmp_path):
    source = FAMILIES / "deepseek2_v2lite.gguf"
    with GGUF(source) as g:
        meta = dict(g.metadata)
        tensors = {n: np.array(t.dequantize()) for n, t in g.tensors.items()}
    name = next(n for n in tensors if n.endswith("attn_kv_a_norm.weight"))
    tensors[name] = tensors[name] * np.float32(1e6)
    path = tmp_path / "mla.gguf"
    moesaic.write_gguf(path, meta, tensors)
    layer = int(name.split(".")[1])
    with load(path) as m, pytest.raises(moesaic.ArgumentError) as error:
        m.forward([1, 2, 3])
    assert f"[kv] layer {layer}, position 0: a key of" in str(error.value)


def test_weights_that_give_nan_are_not_called_an_overflow(tmp_path):
    path = write(tmp_path / "m.gguf", scale={"blk.0.attn_k.weight": np.nan})
    with load(path) as m:
        assert np.isnan(m.forward([40, 41])).all()
