"""Users' code under mypy --strict: what runs passes, what is misspelt does not; and completion."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import moesaic
from moesaic._signatures import DEFAULTS
from moesaic.generation import GenerateOptions

SCRIPT = Path(__file__).with_name("user_script.py")
PACKAGE = Path(moesaic.__file__).parents[1]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("mypy")


def mypy(path: Path, cache: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={cache}",
         "--ignore-missing-imports", "--follow-imports=silent", str(path)],
        capture_output=True, text=True, env=os.environ | {"MYPYPATH": str(PACKAGE)},
    )  # fmt: skip
    return done.stdout + done.stderr


def test_a_users_script_runs():
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "IoError"


def test_a_users_script_passes_mypy_strict(cache):
    assert mypy(SCRIPT, cache) == "Success: no issues found in 1 source file\n"


def test_sessions_pass_mypy_strict(cache, tmp_path):
    script = tmp_path / "sessions.py"
    script.write_text(
        "import moesaic\n"
        'with moesaic.Model("demo").session() as s:\n'
        "    s.forward([1, 2], logits=None)\n"
        '    n = s.forward([3]).shape + s.forward((4, 5), logits="all").shape\n'
        '    c = s.forward([6], capture=("final_norm",))["final_norm"].shape\n'
    )
    assert mypy(script, cache) == "Success: no issues found in 1 source file\n"


def test_what_is_misspelt_does_not(cache, tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import moesaic\n"
        "from moesaic import Capture\n"
        "moesaic.Modle\n"
        "m = moesaic.Model.demo()\n"
        'm.generate("x", max_token=4)\n'
        'g: list[moesaic.Generation] = m.generate("x")\n'
        'm.generate(("a", "b")).text\n'
    )
    said = mypy(wrong, cache)
    for line in (2, 3, 5, 6, 7):
        assert f"wrong.py:{line}: error:" in said, said


@pytest.mark.parametrize(
    "method",
    [moesaic.Model.generate, moesaic.Model.stream, moesaic.Model.chat,
     moesaic.Session.generate, moesaic.Session.stream],
    ids=lambda method: method.__qualname__,
)  # fmt: skip
def test_every_option_is_in_the_signature(method):
    parameters = inspect.signature(method).parameters
    assert set(GenerateOptions.__optional_keys__) <= set(parameters)
    assert not any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    assert parameters["max_tokens"].default == 128 and parameters["seed"].default is None
    assert str(parameters["top_k"]) == "top_k: 'int' = 40"


def test_the_defaults_are_those_documented():
    doc = inspect.getdoc(moesaic.Model.generate) or ""
    found = 0
    for names, values in re.findall(r"^([\w, ]+) : [^\n]*?default ([^\n]+)$", doc, re.MULTILINE):
        for name, value in zip(names.split(", "), values.split(", "), strict=True):
            assert DEFAULTS[name] == eval(value), name
            found += 1
    assert found >= 10
    assert set(DEFAULTS) <= set(GenerateOptions.__optional_keys__)


def test_the_defaults_are_what_is_done():
    with moesaic.Model.demo(progress=False, deterministic=True) as m:
        plain = m.generate("It was", seed=3)
        spelled = m.generate("It was", seed=3, **DEFAULTS)
    assert plain.tokens.tolist() == spelled.tokens.tolist()


def test_a_notebook_completes_the_options():
    shells = pytest.importorskip("IPython.core.interactiveshell")
    from IPython.core.completer import provisionalcompleter

    shell = shells.InteractiveShell()
    with moesaic.Model.demo(progress=False) as m:
        shell.user_ns["m"] = m
        shell.Completer.use_jedi = False
        for line, wanted in (
            ("m.generate(temp", "temperature="),
            ("m.chat([], max_", "max_tokens="),
        ):
            with provisionalcompleter():
                assert wanted in {c.text for c in shell.Completer.completions(line, len(line))}


def test_what_is_exported_is_there():
    for name in moesaic.__all__:
        assert getattr(moesaic, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Capture'"):
        moesaic.Capture  # noqa: B018
