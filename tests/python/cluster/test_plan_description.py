"""Descriptions: what `moesaic inspect FILE --json` says of a file plans like the file itself."""

from __future__ import annotations

import functools
import gzip
import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import moesaic
from moesaic import _core, description
from moesaic.cli import app
from moesaic.gguf import Typed
from moesaic.plan import Plan

FAMILIES = sorted((Path(__file__).parents[2] / "data" / "families").glob("*.gguf"))
DEMO = Path(str(resources.files("moesaic") / "data" / "demo.gguf"))
ROOM = {"nodes": 2, "memory": "8G", "bandwidth": "20G", "matmul": "600G", "threads": 2}


@functools.cache
def inspected(path: Path) -> str:
    result = CliRunner().invoke(app, ["inspect", str(path), "--json"])
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("path", [DEMO, *FAMILIES], ids=lambda path: path.stem)
def test_a_description_plans_like_its_file(path, tmp_path):
    (tmp_path / "d.json").write_text(inspected(path))
    from_file = Plan.on_paper(path, n_ctx=300, **ROOM)
    assert Plan.on_paper(tmp_path / "d.json", n_ctx=300, **ROOM) == from_file
    (tmp_path / "d.json.gz").write_bytes(gzip.compress(inspected(path).encode()))
    assert Plan.on_paper(tmp_path / "d.json.gz", n_ctx=300, **ROOM) == from_file


def test_a_description_is_small():
    """Vocabularies and long texts stay out of it."""
    assert len(inspected(DEMO)) < 30_000
    said = json.loads(inspected(DEMO))["metadata"]
    with moesaic.GGUF(DEMO) as gguf:
        assert said["tokenizer.ggml.tokens"] == {
            "type": "array[string]",
            "count": len(gguf.metadata["tokenizer.ggml.tokens"]),
        }
        assert said.keys() == set(gguf.metadata)


def test_every_type_of_value_comes_back_as_it_was(tmp_path):
    values = {
        "u8": 200, "i8": -100, "u16": 60000, "i16": -30000, "u32": 2**32 - 1, "i32": -(2**31),
        "u64": 2**64 - 1, "i64": -(2**63), "f32": 0.1, "f64": 0.1, "bool": True, "string": "zwölf",
    }  # fmt: skip
    metadata = {"general.architecture": "odd"}
    metadata |= {f"x.{kind}": Typed(value, kind) for kind, value in values.items()}
    metadata |= {
        f"x.a.{kind}": Typed([value, value], kind) for kind, value in values.items()
        if kind not in ("bool", "string")
    }  # fmt: skip
    metadata |= {"x.inf": Typed(float("inf"), "f32"), "x.nan": Typed(float("nan"), "f64")}
    metadata |= {"x.bools": [True, False], "x.strings": ["a", "b", "c"]}
    metadata |= {"x.long": np.arange(5000, dtype=np.int32), "x.text": "t" * 1000}
    path = tmp_path / "odd.gguf"
    moesaic.write_gguf(path, metadata, {"w": np.ones((3, 64), np.float32)}, alignment=64)
    described = json.loads(inspected(path))
    back = tmp_path / "back.gguf"
    back.write_bytes(description.header_bytes(described, "odd") + bytes(4096))
    with moesaic.GGUF(path) as was, moesaic.GGUF(back) as now:
        assert list(now.metadata) == list(was.metadata)
        left_out = {"x.strings": ["", "", ""], "x.text": ""}
        for key in was.metadata:
            assert now.metadata.type_of(key) == was.metadata.type_of(key)
            wanted = left_out.get(key, was.metadata[key])
            if key == "x.long":
                wanted = np.zeros(5000, np.int32)
            np.testing.assert_array_equal(now.metadata[key], wanted)
        assert now.tensors["w"].shape == (3, 64)


def test_tensors_lie_where_a_file_has_them():
    """The core checks offsets, sizes and blocks."""
    header = description.header_bytes(description.load("kimi-k2.5"), "kimi")
    model = _core.PlanModel.from_headers(header, "kimi")
    assert model.n_layers == 61
    assert model.n_ctx_train == 262144


def test_rope_frequencies_are_not_missed(tmp_path):
    """Their values would be read, and a description has none; they cost a plan nothing."""
    described = json.loads(inspected(next(p for p in FAMILIES if p.stem == "llama_gqa")))
    described["tensors"].append({"name": "rope_freqs.weight", "shape": [4], "qtype": "F32"})
    path = tmp_path / "d.json"
    path.write_text(json.dumps(described))
    assert Plan.on_paper(path, n_ctx=300, **ROOM).nodes[0].weights > 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no JSON"),
        ("[1]", "no description"),
        ('{"metadata": {}}', "no description"),
        ('{"metadata": [], "tensors": {}}', "metadata must be"),
        ('{"metadata": {"a": 7}, "tensors": []}', 'key "a"'),
        ('{"metadata": {"a": {"type": "u8", "value": 256}}, "tensors": []}', 'key "a"'),
        ('{"metadata": {"a": {"type": "u9", "value": 2}}, "tensors": []}', 'key "a"'),
        ('{"metadata": {"a": {"type": "array[u8]", "count": -1}}, "tensors": []}', 'key "a"'),
        ('{"metadata": {"a": {"type": "array[u8]", "count": 1e99}}, "tensors": []}', 'key "a"'),
        ('{"metadata": {"a": {"type": "string", "value": 5}}, "tensors": []}', 'key "a"'),
        (
            '{"metadata": {"general.alignment": {"type": "u32", "value": 0}}, "tensors": []}',
            "align",
        ),
        ('{"metadata": {}, "tensors": [{"name": "w"}]}', "tensor"),
        ('{"metadata": {}, "tensors": [{"name": "w", "shape": [3], "qtype": "Q4_K"}]}', "blocks"),
        ('{"metadata": {}, "tensors": [{"name": "w", "shape": [], "qtype": "F32"}]}', "tensor"),
        ('{"metadata": {}, "tensors": [{"name": "w", "shape": [1e30], "qtype": "F32"}]}', "tensor"),
        ('{"metadata": {}, "tensors": [{"name": 3, "shape": [1], "qtype": "F32"}]}', "tensor"),
        ('{"metadata": {}, "tensors": [7]}', "tensor"),
    ],
)
def test_what_is_no_description_is_said(tmp_path, text, said):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(moesaic.FormatError, match=said):
        Plan.on_paper(path, **ROOM)


def test_a_gzip_bomb_is_refused(tmp_path):
    path = tmp_path / "bomb.json.gz"
    path.write_bytes(gzip.compress(b" " * (100 << 20)))
    with pytest.raises(moesaic.FormatError, match="more than 64 MiB"):
        description.load(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(moesaic.IoError):
        description.load(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_spoilt_description_does_worse_than_an_error(data):
    """One value anywhere becomes another one: a plan, or an error of ours."""
    described = json.loads(inspected(FAMILIES[0]))
    described = {k: described[k] for k in ("metadata", "tensors")}
    if data.draw(st.booleans()):
        entry = described["metadata"][data.draw(st.sampled_from(sorted(described["metadata"])))]
    else:
        entry = data.draw(st.sampled_from(described["tensors"]))
    entry[data.draw(st.sampled_from(sorted(entry)))] = data.draw(JSON)
    try:
        header = description.header_bytes(described, "spoilt")
        model = _core.PlanModel.from_headers(header, "spoilt")
        assert model.n_layers > 0
    except moesaic.FormatError:
        pass
