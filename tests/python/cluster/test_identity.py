"""Whose weights answer: fingerprints, and files with equal headers and other weights."""

from __future__ import annotations

import os
import pickle
import shutil

import fault_identity
import pytest
from fault_rig import DEMO, dice

import moesaic


@pytest.mark.parametrize("kind", fault_identity.KINDS)
def test_equal_headers_other_weights(kind):
    fault_identity.other_weights(None, 1, kind)


@pytest.fixture
def other(tmp_path):
    """The demo's file with some other weights."""
    path = tmp_path / "other.gguf"
    fault_identity.variant(DEMO, path, dice(7, "other"))
    return path


def test_the_fingerprint_of_a_model_and_its_results(exact, sharded, other):
    assert len(exact.fingerprint) == 64 and int(exact.fingerprint, 16)
    assert sharded.fingerprint == exact.fingerprint
    with moesaic.Model(other, n_ctx=64, progress=False) as m:
        assert m.fingerprint != exact.fingerprint
        results = [
            m.generate([1, 2, 3], max_tokens=2, temperature=0, capture="final_norm"),
            m.capture([1, 2, 3], "final_norm"),
        ]
        results.append(results[0].captures)
        with m.session() as s:
            results.append(s.forward([1, 2, 3], capture="final_norm"))
    for result in results:  # also after close
        assert result.fingerprint == m.fingerprint
        assert pickle.loads(pickle.dumps(result._fingerprint))() == m.fingerprint


def test_it_is_made_when_asked_for_and_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with moesaic.Model(DEMO, n_ctx=64, progress=False) as m:
        assert m.generate([1], max_tokens=1).text is not None
        assert not list(tmp_path.rglob("*.digests"))
        want = m.fingerprint
    assert len(list(tmp_path.rglob("*.digests"))) == 1
    with moesaic.Model(DEMO, n_ctx=64, progress=False) as m:
        assert m.fingerprint == want


@pytest.mark.parametrize("how", ["replaced", "written over", "gone"])
def test_a_file_that_changes_has_no_fingerprint(tmp_path, other, how):
    path = tmp_path / "m.gguf"
    shutil.copyfile(DEMO, path)
    with moesaic.Model(path, n_ctx=64, progress=False) as m:
        if how == "replaced":
            os.replace(other, path)
        elif how == "written over":
            with path.open("r+b") as file:
                file.write(other.read_bytes())
        else:
            path.unlink()
        with pytest.raises((moesaic.FormatError, moesaic.IoError), match=r"m\.gguf"):
            m.fingerprint  # noqa: B018


def test_sessions_of_other_weights_are_refused(tmp_path, other):
    saved = tmp_path / "s.session"
    with moesaic.Model(DEMO, n_ctx=64, progress=False) as m, m.session() as s:
        s.forward([1, 2, 3])
        s.save(saved)
        name = m.fingerprint
        with m.load_session(saved) as again:
            assert again.tokens.tolist() == [1, 2, 3]
    with (
        moesaic.Model(other, n_ctx=64, progress=False) as m,
        pytest.raises(moesaic.FormatError, match=name),
    ):
        m.load_session(saved)


def test_metadata_and_weights_are_of_one_file(tmp_path, other, monkeypatch):
    """The file is replaced between its opening and the loading of its weights."""
    path = tmp_path / "m.gguf"
    shutil.copyfile(DEMO, path)
    load = moesaic._core.load_model

    def replaced(**options):
        if other.exists():
            os.replace(other, path)
        return load(**options)

    monkeypatch.setattr(moesaic._core, "load_model", replaced)
    with moesaic.Model(path, n_ctx=64, deterministic=True, progress=False) as m:
        got = m.forward([1, 2, 3])
    with moesaic.Model(DEMO, n_ctx=64, deterministic=True, progress=False) as m:
        assert (m.forward([1, 2, 3]) == got).all()


def test_a_file_is_identified_once_for_all_local_clusters(tmp_path):
    path = tmp_path / "m.gguf"
    shutil.copyfile(DEMO, path)
    stages: list[str] = []
    for _ in range(2):
        with (
            moesaic.Cluster.local(1, memory=10**9) as c,
            c.load(path, n_ctx=64, progress=lambda stage, done, total: stages.append(stage)),
        ):
            stages.append("loaded")
    assert "identify this machine" in stages[: stages.index("loaded")]
    assert "identify this machine" not in stages[stages.index("loaded") :]
