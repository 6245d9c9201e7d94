"""Every public function and method says, in numpydoc sections, what it takes, gives and raises.

What is public: the names of moesaic.__all__, and the classes that their methods give back. The
examples themselves run in tests/python/test_doctests.py.
"""

from __future__ import annotations

import inspect
import re

import pytest

import moesaic
from moesaic import capture, config, generation, gguf, results

#: Reached through what is exported.
GIVEN_BACK = (
    capture.Captures,
    config.Config,
    config.Layer,
    generation.LogitsProcessor,
    gguf.Metadata,
    gguf.Tensors,
    results.Timings,
)
SECTION = re.compile(r"^(?P<title>[A-Z][A-Za-z ]+)\n-{3,}$", re.MULTILINE)
#: Inherited from Mapping and tuple: documented there.
FOREIGN = ("builtins", "collections.abc", "typing")


def public_classes():
    named = [getattr(moesaic, name) for name in moesaic.__all__]
    return [thing for thing in [*named, *GIVEN_BACK] if inspect.isclass(thing)]


def members(cls):
    """(label, function or property) of the class's own public members, inherited ones too."""
    for name, value in inspect.getmembers_static(cls):
        if name.startswith("_"):
            continue
        inner = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if isinstance(inner, property) or inspect.isfunction(inner):
            module = (inner.fget if isinstance(inner, property) else inner).__module__
            if module.startswith("moesaic"):
                yield f"{cls.__name__}.{name}", inner


def functions():
    for name in moesaic.__all__:
        thing = getattr(moesaic, name)
        if inspect.isfunction(thing):
            yield name, thing
    for cls in public_classes():
        for label, member in members(cls):
            if inspect.isfunction(member):
                yield label, member


def properties():
    for cls in public_classes():
        for label, member in members(cls):
            if isinstance(member, property):
                yield label, member


def sections(doc):
    """Title -> text of the numpydoc sections."""
    found = list(SECTION.finditer(doc))
    ends = [match.start() for match in found[1:]] + [len(doc)]
    return {m["title"]: doc[m.end() : end].strip("\n") for m, end in zip(found, ends, strict=False)}


def documented_names(text):
    """Names of a Parameters section: "a, b : type" or "a, b" or "**options" at the margin."""
    names = set()
    for line in text.split("\n"):
        if line and not line.startswith(" "):
            names.update(name.strip().lstrip("*") for name in line.split(" : ")[0].split(","))
    return names


def summary_of(doc):
    return " ".join(doc.split("\n\n")[0].split())


def problems(function):
    doc = inspect.getdoc(function) or ""
    if not doc:
        return ["no docstring"]
    out = []
    if not summary_of(doc).endswith((".", "?")):
        out.append(f"its summary is no sentence: {summary_of(doc)!r}")
    found = sections(doc)
    signature = inspect.signature(function)
    takes = {
        name
        for name, p in signature.parameters.items()
        if name not in ("self", "cls") and p.kind is not p.VAR_KEYWORD
    }
    documented = documented_names(found.get("Parameters", ""))
    if "**options" in found.get("Parameters", ""):  # those of Model.generate
        documented |= set(generation.GenerateOptions.__optional_keys__)
    missing = takes - documented
    if missing:
        out.append(f"Parameters lacks {', '.join(sorted(missing))}")
    if signature.return_annotation not in (None, "None") and not {"Returns", "Yields"} & set(found):
        out.append(f"no Returns (it gives {signature.return_annotation})")
    if takes and "Raises" not in found:
        out.append("no Raises")
    if takes and ">>>" not in doc:
        out.append("no example")
    return out


@pytest.mark.parametrize(
    ("label", "function"), [pytest.param(*row, id=row[0]) for row in dict(functions()).items()]
)
def test_a_function_is_documented_in_sections(label, function):
    assert problems(function) == [], label


@pytest.mark.parametrize(
    ("label", "member"), [pytest.param(*row, id=row[0]) for row in dict(properties()).items()]
)
def test_a_property_is_documented_by_a_sentence(label, member):
    doc = inspect.getdoc(member) or ""
    assert summary_of(doc).endswith("."), f"{label}: {summary_of(doc)!r}"


@pytest.mark.parametrize("cls", public_classes(), ids=lambda cls: cls.__name__)
def test_a_class_is_documented(cls):
    doc = inspect.getdoc(cls) or ""
    assert summary_of(doc).endswith(".")
    if "Parameters" in sections(doc):
        takes = set(inspect.signature(cls).parameters)
        assert takes <= documented_names(sections(doc)["Parameters"])


def test_the_walk_sees_what_is_there():
    """A walk that finds nothing finds no fault either."""
    labels = dict(functions())
    for name in ("Model.generate", "Model.demo", "Session.fork", "Tokenizer.encode", "quantize"):
        assert name in labels
    assert "Model.config" in dict(properties())

    def bad(text: str, *, count: int) -> str:
        """Do something

        Parameters
        ----------
        text : str
            Some.
        """
        return text * count

    assert len(problems(bad)) == 5
