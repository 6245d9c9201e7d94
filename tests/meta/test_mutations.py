"""The table of mutations cannot rot: each text is in its file exactly once, and says something
else afterwards."""

import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
_spec = importlib.util.spec_from_file_location("mutate", HERE / "mutate.py")
assert _spec is not None and _spec.loader is not None
mutate = importlib.util.module_from_spec(_spec)
sys.modules["mutate"] = mutate  # dataclasses look their module up
_spec.loader.exec_module(mutate)


@pytest.mark.parametrize("mutation", mutate.load(), ids=lambda m: m.name)
def test_texts_occur_once(mutation) -> None:
    for edit in mutation.edits:
        assert edit.count(mutate.ROOT) == 1, f"{edit.file}: {edit.text!r}"
        assert edit.replacement != edit.text
    for test in mutation.tests:
        kind, _, rest = test.partition(":")
        assert kind in {"ctest", "pytest"}
        if kind == "pytest":
            assert (mutate.ROOT / rest.split("::")[0]).exists()
