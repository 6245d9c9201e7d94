"""Names of other programs for what is inside a model: our name, or that it is not here."""

from __future__ import annotations

import pytest

import moesaic
from moesaic.foreign_taps import explain


@pytest.fixture(scope="module")
def demo():
    with moesaic.Model.demo(progress=False) as m:
        yield m


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("blocks.3.hook_resid_post", "blocks.3.resid_post"),
        ("blocks.0.hook_resid_pre", "blocks.0.resid_pre"),
        ("blocks.2.hook_mlp_out", "blocks.2.mlp_out"),
        ("blocks.*.hook_attn_out", "blocks.*.attn_out"),
        ("hook_embed", "embed"),
        ("ln_final.hook_normalized", "final_norm"),
        ("model.layers.3", "blocks.3.resid_post"),
        ("model.layers.3.output[0]", "blocks.3.resid_post"),
        ("model.layers.3.mlp.gate", "blocks.3.router.logits"),
        ("model.layers.3.self_attn", "blocks.3.attn_out"),
        ("transformer.h[3].mlp", "blocks.3.mlp_out"),
        ("model.embed_tokens", "embed"),
        ("model.norm", "final_norm"),
        ("lm_head", "logits"),
        ("blocks.1.mlp.hook_expert_indices", "blocks.1.router.experts"),
    ],
)
def test_what_we_have_under_another_name(demo, name, ours):
    with pytest.raises(moesaic.ArgumentError, match="is called") as error:
        demo.capture([1], name)
    assert f"it is called {ours} here" in str(error.value)
    if ours not in demo.capture_names and "*" not in ours:
        pytest.fail(f"{ours} is no name")
    assert len(demo.capture([1], ours)) >= 1


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("blocks.3.attn.hook_pattern", "attention patterns are"),
        ("blocks.3.attn.hook_attn_scores", "attention scores are"),
        ("blocks.3.attn.hook_q", "queries are"),
        ("blocks.3.attn.hook_rot_k", "keys are"),
        ("blocks.3.attn.hook_v", "values are"),
        ("blocks.3.attn.hook_z", "single heads' outputs are"),
        ("blocks.3.attn.hook_result", "single heads' results are"),
        ("blocks.3.ln1.hook_normalized", "a block's norms are"),
        ("blocks.3.mlp.hook_pre", "the inside of a feed-forward block is"),
        ("blocks.3.mlp.hook_post", "the inside of a feed-forward block is"),
        ("model.layers.3.self_attn.q_proj", "queries are"),
        ("model.layers.3.mlp.experts.7", "single experts' outputs are"),
        ("blocks.3.experts.out", "single experts' outputs are"),
        ("blocks.3.shared_out", "the shared expert's output is"),
        ("blocks.3.router.probs", "the router's probabilities are"),
        ("attentions", "attention patterns are"),
    ],
)
def test_what_is_not_captured(demo, name, what):
    with pytest.raises(moesaic.ArgumentError, match="not captured in this version") as error:
        demo.generate("x", max_tokens=1, capture=name)
    assert what in str(error.value) and "nearest" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["blocks.3.resid_pots", "blocks.99.resid_post", "nonsense", "", "*x"]
)
def test_other_names_get_the_nearest(demo, name):
    with pytest.raises(moesaic.ArgumentError, match="the nearest are"):
        demo.capture([1], name)


def test_no_name_of_ours_is_foreign(demo):
    for name in demo.capture_names:
        demo.capture([1], name)
        assert explain(name) is None or "is called" in str(explain(name))
