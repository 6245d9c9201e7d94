"""What other programs call the insides of a model: its name here, or that it is not captured.

TransformerLens' hooks, module names of transformers (as nnsight and forward hooks use them), and
GGUF's names of tensors. Only for messages.
"""

from __future__ import annotations

import re

__all__ = ["explain"]

_LAYER = re.compile(
    r"^(?:(?:model|transformer|language_model|base_model)\.)*(?:blocks|layers|h|blk)"
    r"[.\[](\d+|\*)\]?(?:\.|$)"
)
_NOISE = re.compile(r"(?<![a-z])hook_|(?:^|\.)(?:input|output|weight|inputs|outputs)$|\[0\]$")

#: Of a layer: what other programs call it, and what it is called here.
_OF_LAYER = {
    "resid_pre": r"resid_pre|residual_pre|input_layernorm_in",
    "resid_mid": r"resid_mid|residual_mid|ffn_inp",
    "resid_post": r"|resid_post|residual_post|l_out|hidden_states?|residual|resid",
    "attn_out": r"attn_out|(?:self_)?attn(?:ention)?|attn\.out|(?:self_)?attn\.o_proj|attn_output",
    "mlp_out": r"mlp_out|mlp|ffn|ffn_out|feed_forward|block_sparse_moe|mlp\.down_proj",
    "router.logits": r"(?:mlp|block_sparse_moe|ffn)\.(?:gate|router)|router|gate|ffn_moe_logits"
    r"|router_logits|ffn_gate_inp|mlp\.w_gate",
    "router.experts": r"(?:mlp\.)?expert_indices|experts_chosen|ffn_moe_topk|topk_idx"
    r"|router\.indices|router\.topk",
    "router.weights": r"(?:mlp\.)?expert_weights|ffn_moe_weights|topk_weights?|router\.scores",
}
_OF_MODEL = {
    "embed": r"embed|embed_tokens|wte|token_embd|embeddings?|inp_embd|model\.embed_tokens",
    "final_norm": r"ln_final(?:\.normalized)?|final_norm|(?:model\.)?norm|ln_f|output_norm"
    r"|result_norm|last_hidden_state",
    "logits": r"lm_head|output|result_output|unembed|logits",
}
#: What no name here stands for.
_NOT_CAPTURED = (
    (r"pattern|attentions?|attn_weights|attn_probs|kq_soft_max|softmax", "attention patterns"),
    (r"attn_scores|scores|kq", "attention scores"),
    (r"(?:rot_)?q|q_proj|attn_q|query|qcur|wq|rot_q|q_a_proj|q_b_proj", "queries"),
    (r"(?:rot_)?k|k_proj|attn_k|key|kcur|wk|rot_k", "keys"),
    (r"v|v_proj|attn_v|value|vcur|wv", "values"),
    (r"qkv|qkv_proj|attn_qkv|c_attn|kv_a_proj_with_mqa|kv_b_proj", "queries, keys and values"),
    (r"z|kqv|kqv_out", "single heads' outputs"),
    (r"result", "single heads' results"),
    (r"ln1|ln2|ln[12]\.(?:normalized|scale)|normalized|scale|attn_norm|ffn_norm|input_layernorm"
     r"|post_attention_layernorm", "a block's norms"),
    (r"mlp_in|attn_in|mlp\.pre|pre|pre_linear|up_proj|gate_proj|act_fn|post|ffn_up|ffn_gate"
     r"|neurons?", "the inside of a feed-forward block"),
    (r"(?:(?:mlp|ffn|block_sparse_moe)\.)?experts?(?:\.\d+)?(?:\.out|_out|s?\.w[123])?|experts?\.out|ffn_moe_out|moe_out|expert_out\w*",
     "single experts' outputs"),
    (r"shared_experts?(?:_out|\.out)?|shared_out|shexp|ffn_shexp", "the shared expert's output"),
    (r"probs?|router_probs?|router\.probs?|ffn_moe_probs", "the router's probabilities"),
    (r"pos_embed|rotary_emb|wpe", "positions"),
)  # fmt: skip


def explain(name: str) -> str | None:
    """Return what is to be said of a name that is another program's, or None.

    Parameters
    ----------
    name : str
        As somebody gave it to ``capture``.

    Examples
    --------
    >>> explain("blocks.3.attn.hook_pattern")
    'attention patterns are not captured in this version'
    >>> explain("blocks.3.hook_resid_post")
    'it is called blocks.3.resid_post here'
    >>> explain("nonsense") is None
    True
    """
    layer = _LAYER.match(name)
    rest = name[layer.end() :] if layer is not None else name
    before = None
    while rest != before:  # each pass may lay another piece of noise bare
        before, rest = rest, _NOISE.sub("", rest)
    rest = rest.lower().strip(".")
    if layer is not None and name == f"blocks.{layer[1]}.{rest}" and rest in _OF_LAYER:
        return None  # ours
    if layer is not None:
        for known, names in _OF_LAYER.items():
            if re.fullmatch(names, rest):
                return f"it is called blocks.{layer[1]}.{known} here"
    else:
        for known, names in _OF_MODEL.items():
            if re.fullmatch(names, rest) and known != name:
                return f"it is called {known} here"
    last = rest.rpartition(".")[2]
    for names, what in _NOT_CAPTURED:
        if re.fullmatch(names, rest) or re.fullmatch(names, last):
            return f"{what} are not captured in this version".replace(
                "output are", "output is"
            ).replace("block are", "block is")
    return None
