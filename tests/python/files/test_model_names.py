"""What people write in place of a file: recognised, with the command that helps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import moesaic
from moesaic.model_names import located


@pytest.fixture(autouse=True)
def no_stores(tmp_path, monkeypatch):
    """Nothing of this machine's own stores of models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)


HUB = "hf download unsloth/Qwen3-GGUF "
KNOWN = {
    "hf.co/unsloth/Qwen3-GGUF:Q4_K_M": HUB + "--include '*Q4_K_M*.gguf' --local-dir .",
    "huggingface.co/unsloth/Qwen3-GGUF": HUB + "--include '*Q4_K_M*.gguf'",
    "unsloth/Qwen3-GGUF": HUB + "--include '*Q4_K_M*.gguf' --local-dir . and give the file (or",
    "unsloth/Qwen3-GGUF:UD-Q2_K_XL": HUB + "--include '*UD-Q2_K_XL*.gguf'",
    "unsloth/Qwen3-GGUF/Qwen3-Q8_0.gguf": HUB + "Qwen3-Q8_0.gguf --local-dir .",
    "unsloth/Qwen3-GGUF/Q8_0/x-00001-of-00002.gguf": HUB + "Q8_0/x-00001-of-00002.gguf",
    "hf:unsloth/Qwen3-GGUF": HUB,
    "hf://unsloth/Qwen3-GGUF/a.gguf": HUB + "a.gguf",
    "https://huggingface.co/unsloth/Qwen3-GGUF": HUB,
    "https://huggingface.co/unsloth/Qwen3-GGUF/tree/main": HUB,
    "https://huggingface.co/unsloth/Qwen3-GGUF/resolve/main/a/b.gguf?download=true": HUB
    + "a/b.gguf --local-dir",
    "https://hf.co/unsloth/Qwen3-GGUF/blob/v2/b.gguf": HUB + "b.gguf --revision v2",
    "https://example.org/models/a b.gguf": "curl -fLO 'https://example.org/models/a b.gguf'",
    "http://10.0.0.2:8000/x.gguf": "curl -fLO http://10.0.0.2:8000/x.gguf",
    "https://ollama.com/library/qwen3:30b": "ollama show qwen3:30b --modelfile",
    "ollama:llama3": "ollama pull llama3",
    "ollama/llama3": "ollama pull llama3",
    "ollama://llama3": "ollama pull llama3",
    "qwen3:30b": "ollama pull qwen3:30b",
    "deepseek-r1:8b-0528-qwen3-q8_0": "ollama pull deepseek-r1:8b-0528-qwen3-q8_0",
    "someone/llama3:latest": "ollama pull someone/llama3:latest",
    "llama3.2": "need the path of a GGUF file",
    "gpt-oss-20b": "models are not downloaded by name",
    "file:///srv/models/x.gguf": "need a path and not a URL: /srv/models/x.gguf",
    "s3://bucket/x.gguf": "s3: addresses are not read",
}


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("opens", [moesaic.Model, moesaic.GGUF, moesaic.Plan.on_paper])
def test_a_foreign_name_is_answered_with_what_helps(name, opens):
    with pytest.raises(moesaic.IoError) as error:
        opens(name)
    said = str(error.value)
    assert name in said and "there is no such file here" in said and KNOWN[name] in said
    assert "\n" not in said


def test_a_path_object_that_has_lost_a_slash():
    with pytest.raises(moesaic.IoError, match="hf download unsloth/Qwen3-GGUF a"):
        moesaic.GGUF(Path("https://huggingface.co/unsloth/Qwen3-GGUF/resolve/main/a.gguf"))
    with pytest.raises(moesaic.IoError, match=r"curl -fLO https://example\.org/x\.gguf"):
        moesaic.GGUF(Path("https://example.org/x.gguf"))


@pytest.mark.parametrize(
    "name", ["x.gguf", "models/x.gguf", "/srv/none/x.gguf", "a/b/c/d", "C:\\x.gguf", "../x.gguf"]
)
def test_a_file_that_is_not_there_is_only_that(name):
    assert located(name, "Model") == name
    with pytest.raises(moesaic.IoError, match="No such file"):
        moesaic.GGUF(name)


def test_what_is_there_wins(tmp_path):
    for name in ("demo", "qwen3:30b", "llama3.2"):
        Path(name).write_text("not a model, but a file of that name and of some length")
        with pytest.raises(moesaic.FormatError, match="not a GGUF file"):
            moesaic.GGUF(name)
    Path("unsloth").mkdir()
    assert located("unsloth/Qwen3-GGUF", "Model") == "unsloth/Qwen3-GGUF"


def test_demo_is_the_model_of_the_package():
    with moesaic.Model("demo", n_ctx=64, progress=False) as m, moesaic.GGUF(Path("demo")) as file:
        assert m.path == file.paths[0] and m.path.endswith("demo.gguf")
    assert moesaic.Plan.on_paper("demo", memory="1G", bandwidth="1G", matmul="1T").n_ctx == 512


def test_the_nearest_files_are_named():
    for name in ("qwen3-30b-Q4_K_M.gguf", "kimi.gguf", "notes.txt"):
        Path(name).write_text("x")
    with pytest.raises(moesaic.IoError, match=r"nearest here: qwen3-30b-Q4_K_M\.gguf$"):
        moesaic.GGUF("qwen3-30B-Q4_K.gguf")
    with pytest.raises(moesaic.IoError, match=r"nearest here: kimi\.gguf$"):
        moesaic.GGUF("kimi")


def test_what_ollama_holds_is_named(tmp_path):
    store = tmp_path / "ollama"
    manifest = store / "manifests/registry.ollama.ai/library/qwen3/30b"
    manifest.parent.mkdir(parents=True)
    layers = [
        {"mediaType": "application/vnd.ollama.image.license", "digest": "sha256:00"},
        {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:ab12"},
    ]
    manifest.write_text(json.dumps({"layers": layers}))
    (store / "blobs").mkdir()
    blob = store / "blobs" / "sha256-ab12"
    with pytest.raises(moesaic.IoError, match="ollama pull"):  # named, but not there
        moesaic.GGUF("qwen3:30b")
    blob.write_text("x")
    with pytest.raises(moesaic.IoError, match=f"Ollama's copy of it is {blob}"):
        moesaic.GGUF("qwen3:30b")
    for broken in ("[", "7", "{}", '{"layers": [{}]}', '{"layers": 3}', "[" * 100_000):
        manifest.write_text(broken)
        with pytest.raises(moesaic.IoError, match="ollama pull qwen3:30b"):
            moesaic.GGUF("qwen3:30b")
    with pytest.raises(moesaic.IoError):
        moesaic.GGUF("ollama:../../../etc")


def test_what_the_hub_has_left_is_named(tmp_path):
    folder = tmp_path / "hf/hub/models--unsloth--Qwen3-GGUF/snapshots/abc"
    folder.mkdir(parents=True)
    (folder / "Qwen3-Q8_0.gguf").write_text("x")
    with pytest.raises(moesaic.IoError, match=f"downloaded is {folder}/Qwen3-Q8_0.gguf"):
        moesaic.GGUF("unsloth/Qwen3-GGUF:Q8_0")
    with pytest.raises(moesaic.IoError, match="hf download"):
        moesaic.GGUF("unsloth/Qwen3-GGUF:Q4_K_M")


@pytest.mark.parametrize("name", ["kimi", "kimi-k2", "Kimi-K2.5", "kimi2.5", "kimi-k2.5.gguf"])
def test_plan_knows_what_was_nearly_said(name):
    with pytest.raises(moesaic.IoError, match=r"did you mean kimi-k2\.5\?"):
        moesaic.Plan.on_paper(name, memory="1T", bandwidth="1G", matmul="1T")
