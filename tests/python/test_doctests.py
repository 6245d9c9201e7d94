"""Every example in a docstring of the package runs, and gives what it says."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

import moesaic

MODULES = [
    "moesaic",
    *sorted(
        module.name
        for module in pkgutil.walk_packages(moesaic.__path__, "moesaic.")
        if not module.name.rpartition(".")[2].startswith("_")  # private: nobody is shown them
    ),
]
SHOWN_BY_EXAMPLE = (moesaic.GGUF, moesaic.Model, moesaic.Session, moesaic.Tokenizer)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0, f"{result.failed} of {result.attempted} examples; see the output"


@pytest.mark.parametrize("cls", SHOWN_BY_EXAMPLE, ids=lambda cls: cls.__name__)
def test_a_public_class_has_an_example(cls):
    assert ">>>" in (inspect.getdoc(cls) or "")


def test_everything_public_is_documented():
    missing = []
    for name in moesaic.__all__:
        thing = getattr(moesaic, name)
        if not (inspect.isclass(thing) or callable(thing)):
            continue
        members = vars(thing).items() if inspect.isclass(thing) else ()
        public = [(f"{name}.{k}", v) for k, v in members if not k.startswith("_")]
        for label, value in [(name, thing), *public]:
            described = isinstance(value, property | classmethod) or callable(value)
            if described and not inspect.getdoc(value):
                missing.append(label)
    assert not missing
