"""Files that change while they are in use: an error that names the file, never numbers of zeros or
the end of the process."""

from __future__ import annotations

import faulthandler
import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import moesaic

PROMPT = "It is a truth universally acknowledged"


@pytest.fixture
def path(tmp_path):
    copy = tmp_path / "model.gguf"
    shutil.copyfile(moesaic.Model.demo().path, copy)
    return copy


def cut(path, share=0.3):
    """Cut the file off and throw its pages out of memory."""
    os.truncate(path, int(path.stat().st_size * share))


@pytest.mark.parametrize("with_faulthandler", [False, True])
def test_a_model_whose_file_is_cut_off_gives_an_error(path, with_faulthandler):
    with moesaic.Model(path, n_ctx=128) as m:
        before = m.forward(PROMPT)
        if with_faulthandler and faulthandler.is_enabled():
            faulthandler.disable()
            faulthandler.enable()
        cut(path)
        for call in (
            lambda: m.forward(PROMPT),
            lambda: m.generate(PROMPT, max_tokens=4),
            lambda: m.capture("Elizabeth", ["*"]),
            lambda: m.score(["It is"], [" true"]),
        ):
            with pytest.raises(moesaic.IoError, match=r"model\.gguf"):
                call()
        assert before.shape[0] > 0
    shutil.copyfile(moesaic.Model.demo().path, path)
    with moesaic.Model(path, n_ctx=128) as m:  # the process and the path are as good as before
        np.testing.assert_array_equal(m.forward(PROMPT), before)


def test_a_model_whose_file_is_overwritten_gives_an_error(path):
    with moesaic.Model(path, n_ctx=128) as m:
        m.forward(PROMPT)
        with path.open("r+b") as file:
            file.seek(path.stat().st_size - 1000)
            file.write(b"x" * 100)
        with pytest.raises(moesaic.IoError, match="changed while it was in use"):
            m.forward(PROMPT)


def test_a_file_replaced_by_renaming_goes_on(path, tmp_path):
    with moesaic.Model(path, n_ctx=128) as m:
        before = m.forward(PROMPT)
        other = tmp_path / "other.gguf"
        other.write_bytes(b"something else")
        other.replace(path)
        np.testing.assert_array_equal(m.forward(PROMPT), before)
        path.unlink()
        np.testing.assert_array_equal(m.forward(PROMPT), before)


def test_a_stream_ends_with_the_error(path):
    with moesaic.Model(path, n_ctx=256) as m:
        stream = m.stream(PROMPT, max_tokens=200, seed=1)
        next(stream)
        cut(path, 0.1)
        with pytest.raises(moesaic.IoError, match=r"model\.gguf"):
            for _ in stream:
                pass


def test_tensors_and_keys_of_a_cut_file(path):
    file = moesaic.GGUF(path)
    name = list(file.tensors)[-1]
    size = path.stat().st_size
    cut(path)
    with pytest.raises(moesaic.IoError, match=r"cut off|could not be read|changed"):
        file.tensors[name].dequantize()
    with pytest.raises(moesaic.IoError):
        _ = dict(file.metadata)
    assert size > path.stat().st_size


def test_a_hole_of_the_reader_is_not_the_end_of_the_process(path):
    """A view that a script holds reads zeros where the file was cut off: documented, not fatal."""
    program = f"""
    import os, moesaic
    file = moesaic.GGUF({str(path)!r})
    raw = file.tensors[list(file.tensors)[-1]].raw
    os.truncate({str(path)!r}, 100_000)
    print(int(raw[-4096:].sum()))
    """
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(program)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0"


def test_a_worker_whose_file_is_cut_off_lives(path):
    with moesaic.Cluster.local(1) as cluster:
        m = cluster.load(path, n_ctx=128)
        m.forward(PROMPT)
        pid = cluster.nodes[0].pid
        # Pulled or mapped: a worker on this machine uses the coordinator's file when it may.
        cut(path)
        try:
            m.forward(PROMPT)
        except moesaic.MoesaicError as error:
            assert isinstance(error, moesaic.IoError | moesaic.WorkerLost), error
        m.close()
        os.kill(pid, 0)
        shutil.copyfile(moesaic.Model.demo().path, path)
        again = cluster.load(path, n_ctx=128)
        assert again.forward(PROMPT).shape[0] > 0
        assert cluster.nodes[0].pid == pid
