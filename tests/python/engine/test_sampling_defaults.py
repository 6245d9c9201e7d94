"""Options of generate that come from the file, from the caller, or from other engines' habits."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from small_models import small_model

import moesaic

FREE = {"temperature": 2.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "ignore_eos": True}


def load(path):
    return moesaic.Model(path, n_ctx=256, threads=1, progress=False)


def test_suppressed_tokens_are_never_written(tmp_path):
    keys = {"tokenizer.ggml.suppress_tokens": np.arange(200, dtype=np.int32)}
    with load(small_model(tmp_path / "m.gguf", keys=keys)) as m:
        for bias in (None, {5: 50.0}):
            got = m.generate([210], max_tokens=60, seed=1, logit_bias=bias, **FREE)
            assert len(got.tokens) == 60 and got.tokens.min() >= 200
        chunks = m.stream([210], max_tokens=20, seed=2, **FREE)
        assert min(t for chunk in chunks for t in chunk.tokens) >= 200
        assert np.isfinite(m.forward([210])).all()


def test_the_files_own_sampling(tmp_path):
    keys = {
        "general.sampling.temp": 0.25,
        "general.sampling.top_k": 7,
        "general.sampling.top_p": 0.5,
        "general.sampling.penalty_repeat": 1.25,
    }
    with load(small_model(tmp_path / "m.gguf", keys=keys)) as m:
        g = m.generate([97], max_tokens=8, seed=1)
        assert g.sampling_from_file == ("temperature", "top_k", "top_p", "repeat_penalty")
        assert (g.sampling["temperature"], g.sampling["top_k"], g.sampling["min_p"]) == (
            0.25,
            7,
            0.05,
        )
        assert "from the file: temperature=0.25, top_k=7" in repr(g)
        told = {"temperature": 0.25, "top_k": 7, "top_p": 0.5, "repeat_penalty": 1.25}
        same = m.generate([97], max_tokens=8, seed=1, **told)
        assert same.tokens.tolist() == g.tokens.tolist() and same.sampling_from_file == ()
        assert "from the file" not in repr(same)
        other = m.generate([97], max_tokens=1, temperature=0)
        assert other.sampling["temperature"] == 0.0 and other.sampling["top_k"] == 7


def test_sampling_that_cannot_be_is_said(tmp_path):
    keys = {"general.sampling.top_p": 3.0, "general.sampling.top_k": 5.0}
    with load(small_model(tmp_path / "m.gguf", keys=keys)) as m:
        with pytest.warns(UserWarning, match=r"general\.sampling\.top_p: got 3\.0"):
            g = m.generate([97], max_tokens=1)
        assert g.sampling["top_p"] == 0.95 and g.sampling["top_k"] == 5


def test_none_is_not_given(demo):
    options = dict.fromkeys(("stop", "stop_tokens", "capture", "seed"))
    assert len(demo.generate([5], max_tokens=2, ignore_eos=True, **options).tokens) == 2


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("max_new_tokens", "max_tokens"),
        ("stream", r"stream\(\)"),
        ("n", r"\[prompt\] \* n"),
        ("response_format", "no structured output"),
        ("grammar", "no grammars"),
        ("repetition_penalty", "repeat_penalty"),
        ("do_sample", "temperature=0"),
        ("chat_template_kwargs", "template_vars"),
        ("nonsense", "need one of"),
    ],
)
def test_options_of_other_engines(demo, option, hint):
    with pytest.raises(moesaic.ArgumentError, match=hint):
        demo.generate([5], **{option: 1})


def test_lists_where_one_is_needed(demo):
    assert demo.generate([]) == []
    assert demo.generate(()) == []
    for call in (demo.forward, lambda x: demo.capture(x, "embed")):
        for batch in (["a", "b"], [[1], [2]], np.ones((2, 3), int)):
            with pytest.raises(moesaic.ArgumentError, match=r"got 2 prompts, need one .*loop"):
                call(batch)
    for call in (demo.generate, demo.forward, demo.stream):
        with pytest.raises(moesaic.ArgumentError, match=r"got messages.*chat\(messages\)"):
            call([{"role": "user", "content": "hi"}])


def test_results_go_through_pickle():
    m = moesaic.Model.demo()
    for made in (
        m.generate("It is", max_tokens=2, logprobs=1, capture="final_norm"),
        m.chat([{"role": "user", "content": "Hi"}], max_tokens=2),
        m.capture("It is", ["final_norm"]),
    ):
        copy = pickle.loads(pickle.dumps(made))
        assert copy.fingerprint == made.fingerprint
        assert repr(copy) == repr(made)
