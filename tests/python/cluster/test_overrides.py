"""overrides=: as if the keys stood in the file; here, on workers, in plans, on the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from rewritten import FAMILIES, rewritten
from typer.testing import CliRunner

import moesaic
from moesaic.cli import app

PROMPT = list(range(40, 80))
OPTIONS: dict[str, Any] = {"n_ctx": 64, "deterministic": True, "progress": False}
# Family, overrides, and the same as keys of a file.
CASES = [
    ("qwen3moe_top3", {"expert_used_count": 1}),
    ("qwen3moe_top3", {"qwen3moe.expert_used_count": 7, "rope.freq_base": 5000}),
    ("qwen3moe_top3", {"expert_weights_scale": 2.5}),
    ("qwen3moe_top3", {"expert_weights_norm": False}),
    ("qwen3moe_top3", {"attention.layer_norm_rms_epsilon": 1e-3}),
    ("deepseek2_v3", {"expert_used_count": 2, "expert_weights_norm": False}),
    ("llama_gqa", {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
    (
        "llama_gqa",
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 8,
            "rope.scaling.original_context_length": 16,
            "rope.scaling.yarn_beta_fast": 8.0,
        },
    ),
    ("gptoss_f32", {"attention.sliding_window": 3}),
    ("gptoss_f32", {"attention.sliding_window_pattern": 1}),
]


def logits_of(path: Path, **options: Any) -> bytes:
    with moesaic.Model(path, **OPTIONS, **options) as m:
        return m.forward(PROMPT).tobytes()


def as_keys(path: Path, overrides: dict[str, Any]) -> dict[str, Any]:
    """Whole names, values of the types that the file has."""
    with moesaic.GGUF(path) as gguf:
        arch = gguf.metadata["general.architecture"]
        full = {k if k.startswith(arch) else f"{arch}.{k}": v for k, v in overrides.items()}
        return {
            k: float(v) if isinstance(gguf.metadata.get(k), float) else v for k, v in full.items()
        }


@pytest.mark.parametrize(("name", "overrides"), CASES)
def test_the_same_bytes_as_a_file_with_these_keys(name, overrides, tmp_path) -> None:
    plain = FAMILIES / f"{name}.gguf"
    keys = as_keys(plain, overrides)
    other = rewritten(name, tmp_path / "other.gguf", keys)
    with moesaic.Model(plain, **OPTIONS, overrides=overrides) as m:
        got = m.forward(PROMPT).tobytes()
        assert dict(m.overrides) == overrides
        for key, value in keys.items():
            assert m.metadata[key] == pytest.approx(value), key
        assert set(m.metadata) == set(moesaic.GGUF(plain).metadata) | set(keys)
        assert len(m.metadata) == len(set(m.metadata))
        config = m.config
        assert str(next(iter(keys))) in repr(m)
    assert got == logits_of(other) != logits_of(plain)
    with moesaic.Model(other, **OPTIONS) as m:
        assert m.config == config


def test_workers_apply_them_and_hold_both(pair) -> None:
    path = FAMILIES / "qwen3moe_top3.gguf"
    want = {n: logits_of(path, overrides={"expert_used_count": n}) for n in (1, 3, 5)}
    fingerprints = set()
    models = [pair.load(path, **OPTIONS, overrides={"expert_used_count": n}) for n in want]
    try:
        for m, n in zip(models, want, strict=True):
            assert m.forward(PROMPT).tobytes() == want[n]
            assert m.config.n_active == n and m.overrides == {"expert_used_count": n}
            with moesaic.Model(path, **OPTIONS, overrides={"expert_used_count": n}) as here:
                assert here.fingerprint == m.fingerprint
            fingerprints.add(m.fingerprint)
    finally:
        for m in models:
            m.close()
    assert len(fingerprints) == 3


def test_a_lost_worker_comes_back_with_them() -> None:
    path = FAMILIES / "qwen3moe_top3.gguf"
    want = logits_of(path, overrides={"expert_used_count": 1})
    with moesaic.Cluster.local(2, memory=2 * 10**9) as c:
        m = c.load(path, **OPTIONS, on_loss="replan", overrides={"expert_used_count": 1})
        with m.session() as s:
            s.forward(PROMPT[:20])
            c.launcher.kill(c.addresses[1])
            last = s.forward(PROMPT[20:])
        assert want.endswith(last.tobytes()) and last.size >= m.config.vocab


def test_fingerprints() -> None:
    with moesaic.Model.demo(progress=False) as m:
        plain, used = m.fingerprint, m.config.n_active
    for overrides, is_same in (
        ({}, True),
        (None, True),
        ({"expert_used_count": used}, True),  # what the file says anyway
        ({"expert_used_count": used - 1}, False),
        ({"expert_weights_scale": 1.75}, False),
    ):
        with moesaic.Model.demo(progress=False, overrides=overrides) as m:
            assert (m.fingerprint == plain) is is_same
            g = m.generate("In", max_tokens=2)
            assert g.fingerprint == m.fingerprint


def test_sessions_of_another_override_are_refused_by_name(tmp_path) -> None:
    path = tmp_path / "a.session"
    with moesaic.Model.demo(progress=False, overrides={"expert_used_count": 1}) as m:
        with m.session() as s:
            s.feed("In the beginning")
            s.save(path)
        assert len(m.load_session(path)) > 0
    for overrides in ({"expert_used_count": 2}, None, {"expert_weights_scale": 3.0}):
        with (
            moesaic.Model.demo(progress=False, overrides=overrides) as m,
            pytest.raises(moesaic.FormatError, match=r"deepseek2\.expert_used_count=1"),
        ):
            m.load_session(path)


@pytest.mark.parametrize(
    ("overrides", "texts"),
    [
        ({"expert_used_cout": 2}, ["expert_used_cout", "expert_used_count"]),
        ({"rope.scaling.factr": 2.0}, ["rope.scaling.factr", "rope.scaling.factor"]),
        ({"rope.scaling.yarn_beta_fst": 2.0}, ["nothing reads"]),
        ({"attention.temperature_length": 2}, ["nothing reads"]),
        ({"expert_used_count": 0}, ["expert_used_count", "got 0", "need 1 to"]),
        ({"expert_used_count": 10**6}, ["expert_used_count", "1000000"]),
        ({"expert_used_count": -1}, ["expert_used_count", "-1"]),
        ({"expert_used_count": 2.5}, ["expert_used_count", "2.5", "an integer"]),
        ({"expert_used_count": True}, ["expert_used_count", "true", "an integer"]),
        ({"expert_used_count": "2"}, ["expert_used_count", "an integer"]),
        ({"expert_used_count": [2, 2]}, ["expert_used_count", "list"]),
        ({"expert_used_count": 10**30}, ["expert_used_count", "64 bits"]),
        ({"expert_used_count": 1, "deepseek2.expert_used_count": 2}, ["once"]),
        ({"expert_weights_norm": 1}, ["expert_weights_norm", "true or false"]),
        ({"rope.freq_base": 0.5}, ["rope.freq_base", "above 1"]),
        ({"rope.freq_base": float("nan")}, ["rope.freq_base", "finite"]),
        ({"rope.freq_base": 1e300}, ["rope.freq_base"]),
        ({"attention.head_count": 7}, ["attention.head_count=7", "tensor"]),
        ({"block_count": 4}, ["block_count=4"]),
        ({"rope.scaling.type": "spiral"}, ["rope.scaling.type", "spiral"]),
        ({"llama.expert_used_count": 2}, ["llama.expert_used_count"]),
        ({"general.architecture": "llama"}, ["general.architecture"]),
        ({"tokenizer.ggml.eos_token_id": 1}, ["tokenizer.ggml.eos_token_id"]),
        ({"final_logit_softcapping": 30.0}, ["final_logit_softcapping"]),
        ({3: 4}, ["3"]),
        ({"": 4}, ["''"]),
        ("expert_used_count=2", ["str", "mapping"]),
    ],
)
def test_what_makes_no_sense_is_refused(overrides, texts) -> None:
    with pytest.raises(moesaic.ArgumentError) as error:
        moesaic.Model.demo(progress=False, overrides=overrides)
    message = str(error.value)
    assert message.startswith(("[overrides] ", "[Model] overrides: ")), message
    for text in texts:
        assert text in message


@pytest.mark.parametrize(
    ("key", "value", "neutral"),
    [
        ("logit_scale", 0.5, 1),
        ("attention.causal", False, True),
        ("attention.temperature_scale", 0.1, 0),
        ("attention.sliding_window", 16, 0),
        ("final_logit_softcapping", 30.0, 0),
    ],
)
def test_a_key_that_is_not_implemented_may_be_put_out_of_action(key, value, neutral, tmp_path):
    path = rewritten("qwen3moe_top3", tmp_path / "a.gguf", {f"qwen3moe.{key}": value})
    with pytest.raises(moesaic.FormatError) as error:
        moesaic.Model(path, progress=False)
    assert f'overrides={{"{key}": {neutral}}}' in str(error.value)
    assert logits_of(path, overrides={key: neutral}) == logits_of(FAMILIES / "qwen3moe_top3.gguf")
    with pytest.raises(moesaic.ArgumentError, match="not implemented"):
        moesaic.Model(FAMILIES / "qwen3moe_top3.gguf", progress=False, overrides={key: value})


def test_a_fault_of_the_file_stays_one(tmp_path) -> None:
    path = rewritten("qwen3moe_top3", tmp_path / "a.gguf", {"qwen3moe.logit_scale": 0.5})
    with pytest.raises(moesaic.FormatError, match="logit_scale"):
        moesaic.Model(path, progress=False, overrides={"expert_used_count": 1})
    path = rewritten("qwen3moe_top3", tmp_path / "b.gguf", {"qwen3moe.expert_used_count": 9})
    with pytest.raises(moesaic.FormatError, match="expert_used_count"):
        moesaic.Model(path, progress=False)
    with moesaic.Model(path, **OPTIONS, overrides={"expert_used_count": 3}) as m:
        assert m.forward(PROMPT).tobytes() == logits_of(FAMILIES / "qwen3moe_top3.gguf")


def test_plans_change(pair) -> None:
    paper = {"nodes": 2, "memory": "8G", "bandwidth": "20G", "matmul": "600G", "threads": 2}
    for make in (
        lambda **o: moesaic.Plan.on_paper("demo", **paper, **o),
        lambda **o: pair.plan(moesaic.Model.demo().path, **o),
    ):
        few, many = (make(overrides={"expert_used_count": n}) for n in (1, 6))
        assert (
            few.predictions[0].decode_tokens_per_s > 1.01 * many.predictions[0].decode_tokens_per_s
        )
        assert make(overrides={"context_length": 128}).n_ctx == 128
        with pytest.raises(moesaic.ArgumentError, match="expert_used_count"):
            make(overrides={"expert_used_count": 0})


def test_the_command_line(demo_path) -> None:
    def run(*args: str) -> str:
        result = CliRunner().invoke(app, [*args])
        assert result.exit_code == 0, result.output
        return result.stdout

    two = ("--override", "expert_used_count=1", "--override", "rope.freq_base=20000")
    with moesaic.Model.demo(
        progress=False, overrides={"expert_used_count": 1, "rope.freq_base": 20000}
    ) as m:
        text = m.generate("In the beginning", max_tokens=8, temperature=0).text
    arguments = ("run", demo_path, "-p", "In the beginning", "-n", "8", "--temp", "0")
    assert text in run(*arguments, "--deterministic", *two)
    assert "1 a token" in run("inspect", demo_path, *two)
    assert json.loads(run("inspect", demo_path, "--json", *two))["config"]["n_active"] == 1
    assert json.loads(run("plan", "kimi-k2.5", "--json", "--nodes", "4", "--memory", "128G",
                          "--bandwidth", "215G", "--matmul", "30T",
                          "--override", "context_length=512"))["n_ctx"] == 512  # fmt: skip
    for args in (
        ["run", demo_path, "-p", "x", "--override", "expert_used_count"],
        ["run", demo_path, "-p", "x", "--override", "expert_used_count=0"],
        ["inspect", demo_path, "--override", "expert_used_cont=2"],
        ["plan", demo_path, "--override", "expert_used_count=many"],
    ):
        result = CliRunner().invoke(app, args)
        assert result.exit_code == 2 and re.search("expert_used_cou?nt", result.stderr), args
        assert result.stderr.count("\n") == 1
