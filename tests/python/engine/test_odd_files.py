"""Files whose vocabulary does not fit the model, and arguments that are not even of a kind."""

import warnings
from pathlib import Path

import numpy as np
import pytest

import moesaic

FAMILY = Path(__file__).parents[2] / "data" / "families" / "llama_gqa.gguf"


def with_keys(path: Path, **changes: object) -> Path:
    """A copy of a tiny model with other tokenizer keys; None takes a key away."""
    with moesaic.GGUF(FAMILY) as gguf:
        metadata = dict(gguf.metadata)
        for key, value in changes.items():
            metadata[f"tokenizer.ggml.{key}"] = value
        tensors = {n: (t.raw.copy(), t.qtype, t.shape) for n, t in gguf.tensors.items()}
        kept = {k: v for k, v in metadata.items() if v is not None}
        moesaic.write_gguf(path, kept, tensors)
    return path


def load(path: Path) -> moesaic.Model:
    return moesaic.Model(path, n_ctx=64, threads=1, progress=False)


@pytest.mark.parametrize("name", ["bos_token_id", "eos_token_id"])
def test_special_ids_past_the_embedding_are_refused(tmp_path, name) -> None:
    with pytest.raises(moesaic.FormatError, match=f"{name}: got 99999"):
        load(with_keys(tmp_path / "m.gguf", **{name: 99999}))


def test_a_vocabulary_of_an_unknown_kind_is_said_and_tokens_come(tmp_path) -> None:
    with load(with_keys(tmp_path / "m.gguf", model="foo")) as m:
        with pytest.warns(UserWarning, match="no text"):
            g = m.generate([1, 2], max_tokens=3, seed=1)
        assert len(g.tokens) == 3
        assert g.text == ""


def test_more_rows_than_tokens(tmp_path) -> None:
    with moesaic.GGUF(FAMILY) as gguf:
        tokens = list(gguf.metadata["tokenizer.ggml.tokens"])
        gguf_merges = list(gguf.metadata["tokenizer.ggml.merges"])[:4]
    path = with_keys(
        tmp_path / "m.gguf",
        tokens=tokens[:260],
        token_type=np.ones(260, np.int32),
        merges=gguf_merges,
        bos_token_id=None,
        eos_token_id=None,
        padding_token_id=None,
    )
    with load(path) as m, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bias = {265: 1e6}
        g = m.generate([1, 2], max_tokens=3, temperature=0, logit_bias=bias, ignore_eos=True)
        assert g.tokens.tolist() == [265] * 3
        assert g.text == ""


def test_arguments_that_are_no_sequences() -> None:
    with load(FAMILY) as m:
        session = m.session()
        for call in (
            lambda: m.capture([1], None),
            lambda: m.forward_many(None),
            lambda: m.generate([1], capture=5),
            lambda: session.forward([1], capture=3),
        ):
            with pytest.raises(moesaic.ArgumentError, match="got"):
                call()
