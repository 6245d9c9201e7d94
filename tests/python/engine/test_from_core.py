"""A Model of an engine and a header that come from elsewhere, as a cluster makes it."""

from __future__ import annotations

import os

import numpy as np
import pytest

import moesaic
from moesaic import _core


class Header:
    """Metadata without a file: all that a coordinator without a copy has."""

    def __init__(self, metadata):
        self.metadata = metadata
        self.tensors = {}
        self.closed = False

    def tokenizer(self):
        return moesaic.Tokenizer.from_metadata(self.metadata)

    def close(self):
        self.closed = True


@pytest.fixture(scope="module")
def demo():
    with moesaic.Model.demo(progress=False, deterministic=True) as model:
        yield model


def engine(path, n_ctx=64):
    return _core.load_model(
        file=_core.GGUFFile(os.fsencode(path)),
        n_ctx=n_ctx,
        kv_tokens=0,
        threads=1,
        backend="auto",
        deterministic=True,
        kv_type="f16",
        progress=None,
    )


def test_it_behaves_as_the_model_of_a_file(demo):
    header = Header(dict(demo.metadata))
    core = engine(demo.path)
    made = moesaic.Model._from_core(core, header, path="nowhere/demo.gguf", deterministic=True)
    with made as m:
        assert type(m) is moesaic.Model
        assert m.path == "nowhere/demo.gguf" and m.deterministic and m.n_ctx == 64
        assert m.config == demo.config
        np.testing.assert_array_equal(m.forward([1, 2, 3]), demo.forward([1, 2, 3]))
        options = {"max_tokens": 6, "temperature": 0}
        assert m.generate("In the", **options).text == demo.generate("In the", **options).text
        assert m.score(["In the"], [" beginning"]) == demo.score(["In the"], [" beginning"])
        with m.session() as s:
            assert s.forward([1, 2]).shape == (m.config.vocab,)
    assert m.closed and core.closed and header.closed


def test_a_header_that_does_not_fit_closes_the_engine(demo):
    header = Header({**demo.metadata, "tokenizer.ggml.eos_token_id": demo.config.vocab})
    core = engine(demo.path)
    with pytest.raises(moesaic.FormatError, match="eos_token_id"):
        moesaic.Model._from_core(core, header, path="demo.gguf")
    assert core.closed and header.closed


def test_the_warning_about_n_ctx_points_at_the_caller(demo):
    core = engine(demo.path, n_ctx=demo.config.n_ctx_train + 1)
    with pytest.warns(UserWarning, match="trained for") as caught:
        header = Header(dict(demo.metadata))
        moesaic.Model._from_core(core, header, path="demo.gguf", stacklevel=1).close()
    assert caught[0].filename == __file__
