"""Names that people give in place of a file: what is meant, and the command that gets the file.

``demo`` is the model that ships in the package. Names of hubs, Ollama's names and URLs are not
downloaded in this version: they are recognised, and the error says what to run, or which file of
another program's store it is. Nothing here reaches a network.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
from importlib import resources
from pathlib import Path

from moesaic.errors import ArgumentError, IoError

__all__ = ["DEMO", "located"]

#: The name of the model that ships in the package.
DEMO = "demo"

_WORD = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_URL = re.compile(r"([a-z][a-z0-9+.-]*):/{1,3}(.+)", re.IGNORECASE | re.DOTALL)
_HUB_HOSTS = ("huggingface.co/", "www.huggingface.co/", "hf.co/")
_OLLAMA_HOSTS = ("ollama.com/", "www.ollama.com/", "registry.ollama.ai/")
_REPO = re.compile(rf"({_WORD}/{_WORD})(?::({_WORD}))?")
_REPO_FILE = re.compile(rf"({_WORD}/{_WORD})/((?:[^/]+/)*[^/]+\.gguf)", re.IGNORECASE)
_OLLAMA = re.compile(rf"((?:{_WORD}/)?{_WORD}):({_WORD})")
_QUANTISATION = re.compile(r"(UD-)?(I?Q\d|B?F16|F32|MXFP4|NVFP4|TQ\d)", re.IGNORECASE)
_LARGEST_MANIFEST = 1 << 20
_MOST_LISTED = 1000


def located(path: str | os.PathLike[str], where: str, *, on_workers: bool = False) -> str:
    """Return the path of a file that a caller names.

    Parameters
    ----------
    path : str or os.PathLike
        A file, ``"demo"``, or what people write elsewhere.
    where : str
        For errors: who asks.
    on_workers : bool
        A bare name may be that of a file which workers have: it is returned as it is.

    Returns
    -------
    str
        What was given, unless it is ``"demo"`` and no such file is here. That a file is there is
        not said: opening it tells.

    Raises
    ------
    IoError
        There is no such file, and what was given looks like the name of a hub, Ollama's, or a URL.
    ArgumentError
        Not a str or os.PathLike.

    Examples
    --------
    >>> located("demo", "Model").endswith("demo.gguf")
    True
    """
    try:
        name = os.fsdecode(path)
    except TypeError:
        raise ArgumentError(
            f"[{where}] path: got {type(path).__name__}, need str or os.PathLike"
        ) from None
    if not name or "\0" in name or os.path.lexists(name):
        return name
    if name == DEMO:
        return str(resources.files("moesaic") / "data" / "demo.gguf")
    hint = _hint(name, on_workers)
    if hint:
        raise IoError(f"[{where}] {name}: there is no such file here; {hint}")
    return name


def _hint(name: str, on_workers: bool) -> str:
    """What to do about a name that is not that of a file here; "" where nothing is known."""
    url = _URL.fullmatch(name)
    if url is not None:
        return _url_hint(name, url[1].lower(), url[2])
    lower = name.lower()
    for prefixes, explain in ((_HUB_HOSTS, _hub_hint), (_OLLAMA_HOSTS, _ollama_hint)):
        for prefix in prefixes:
            if lower.startswith(prefix):
                return explain(name[len(prefix) :])
    for prefix in ("hf:", "huggingface:"):
        if lower.startswith(prefix):
            return _hub_hint(name[len(prefix) :])
    for prefix in ("ollama:", "ollama/", "ollama run ", "library/"):
        if lower.startswith(prefix):
            return _ollama_hint(name[len(prefix) :])
    return _bare_hint(name, on_workers)


def _bare_hint(name: str, on_workers: bool) -> str:
    """Of names without the mark of where they are from."""
    tagged = _OLLAMA.fullmatch(name)
    if tagged is not None and ("/" not in name or not _QUANTISATION.match(tagged[2])):
        return _ollama_hint(name)
    within = _REPO_FILE.fullmatch(name)
    folder_is_here = Path(name).parts[:1] and Path(Path(name).parts[0]).exists()
    if within is not None and not folder_is_here:
        return f"if it is in a Hugging Face repository: {_hub_file(within[1], within[2])}"
    is_file_name = name.lower().endswith((".gguf", ".json", ".json.gz", ".bin", ".safetensors"))
    if _REPO.fullmatch(name) and not is_file_name and not folder_is_here:
        return _hub_hint(name)
    near = _near_files(name)
    if near:
        return f"the nearest here: {', '.join(near)}"
    if "/" not in name and not is_file_name and not on_workers:
        return (
            "need the path of a GGUF file, or demo for the model that ships in the package; models "
            "are not downloaded by name in this version: hf download ORG/REPO FILE.gguf "
            "--local-dir . gets one"
        )
    return ""


def _url_hint(name: str, scheme: str, rest: str) -> str:
    lower = rest.lower()
    if scheme in ("hf", "huggingface"):
        return _hub_hint(rest.removeprefix("models/"))
    if scheme == "ollama":
        return _ollama_hint(rest)
    if scheme == "file":
        return f"need a path and not a URL: {shlex.quote('/' + rest.lstrip('/'))}"
    for prefix in _HUB_HOSTS:
        if lower.startswith(prefix):
            return _hub_hint(rest[len(prefix) :])
    for prefix in _OLLAMA_HOSTS:
        if lower.startswith(prefix):
            return _ollama_hint(rest[len(prefix) :])
    if scheme in ("http", "https"):
        whole = f"{scheme}://{rest}"  # a Path has made one slash of two
        return f"URLs are not downloaded in this version: curl -fLO {shlex.quote(whole)}"
    return f"{scheme}: addresses are not read; need the path of a GGUF file on this machine"


def _hub_hint(text: str) -> str:
    """Of ``org/repo``, ``org/repo:QUANT``, ``org/repo/file.gguf``, or a page of such a one."""
    text = text.partition("?")[0].partition("#")[0].strip("/")
    parts = text.split("/")
    if len(parts) > 3 and parts[2] in ("resolve", "blob", "tree", "raw"):
        repo, revision, inside = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        if inside.lower().endswith(".gguf"):
            return _not_downloaded(_hub_file(repo, inside, revision))
        return _hub_repo(repo, None)
    within = _REPO_FILE.fullmatch(text)
    if within is not None:
        return _not_downloaded(_hub_file(within[1], within[2]))
    repo_only = _REPO.fullmatch(text)
    if repo_only is None:
        return _not_downloaded("hf download ORG/REPO FILE.gguf --local-dir .")
    return _hub_repo(repo_only[1], repo_only[2])


def _hub_repo(repo: str, quantisation: str | None) -> str:
    held = _in_hub_cache(repo, quantisation)
    if held:
        return f"the copy that was downloaded is {held}"
    pattern = f"*{quantisation}*.gguf" if quantisation else "*Q4_K_M*.gguf"
    command = f"hf download {shlex.quote(repo)} --include {shlex.quote(pattern)} --local-dir ."
    return _not_downloaded(command) + ("" if quantisation else " (or another quantisation)")


def _hub_file(repo: str, file: str, revision: str = "main") -> str:
    command = f"hf download {shlex.quote(repo)} {shlex.quote(file)}"
    if revision != "main":
        command += f" --revision {shlex.quote(revision)}"
    return f"{command} --local-dir ."


def _not_downloaded(command: str) -> str:
    return (
        f"it looks like a Hugging Face repository, which this version does not download: {command} "
        "and give the file"
    )


def _in_hub_cache(repo: str, quantisation: str | None) -> str | None:
    """The first file that ``hf download`` without a folder has left, if there is one."""
    home = os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")  # noqa: PTH111
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
    folder = hub / f"models--{repo.replace('/', '--')}" / "snapshots"
    wanted = (quantisation or "").lower()
    try:
        files = sorted(folder.rglob("*.gguf"))[:_MOST_LISTED]
    except OSError:
        return None
    return next((str(f) for f in files if wanted in f.name.lower()), None)


def _ollama_hint(text: str) -> str:
    """Of ``qwen3``, ``qwen3:30b``, ``user/model:tag``, or their page in Ollama's library."""
    name = text.strip("/ ").removeprefix("library/")
    model, _, tag = name.partition(":")
    held = _in_ollama_store(model, tag or "latest")
    if held:
        return f"Ollama's copy of it is {held}"
    shown = shlex.quote(name)
    return (
        "it looks like a name of Ollama's, which this version does not download: ollama pull "
        f"{shown}, then ollama show {shown} --modelfile | grep ^FROM says which file it is"
    )


def _in_ollama_store(model: str, tag: str) -> str | None:
    """The file of weights that Ollama's manifest names, if Ollama has the model here."""
    store = Path(os.environ.get("OLLAMA_MODELS") or os.path.expanduser("~/.ollama/models"))  # noqa: PTH111
    parts = model.split("/") if "/" in model else ["library", model]
    if any(part in ("", ".", "..") for part in (*parts, tag)):
        return None
    manifest = store.joinpath("manifests", "registry.ollama.ai", *parts, tag)
    try:
        if not manifest.is_file() or manifest.stat().st_size > _LARGEST_MANIFEST:
            return None
        layers = json.loads(manifest.read_bytes())["layers"]
        digest = next(
            layer["digest"]
            for layer in layers
            if layer["mediaType"] == "application/vnd.ollama.image.model"
        )
        blob = store / "blobs" / str(digest).replace(":", "-")
        return str(blob) if blob.is_file() else None
    except (OSError, ValueError, KeyError, TypeError, StopIteration, RecursionError):
        return None


def _near_files(name: str) -> list[str]:
    """GGUF files beside the one that is not there, with names like its own."""
    wanted = Path(name)
    try:
        with os.scandir(wanted.parent) as entries:
            names = [e.name for _, e in zip(range(_MOST_LISTED), entries, strict=False)]
    except OSError:
        return []
    files = sorted(n for n in names if n.lower().endswith(".gguf"))
    lower = {n.lower().removesuffix(".gguf"): n for n in files}
    stem = wanted.name.lower().removesuffix(".gguf")
    near = difflib.get_close_matches(stem, lower, n=3, cutoff=0.6)
    near += [n for n in lower if stem and n.startswith(stem) and n not in near][: 3 - len(near)]
    return [str(wanted.parent / lower[n]) for n in near]
