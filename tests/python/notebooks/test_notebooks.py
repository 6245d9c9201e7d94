"""The notebooks run from the first cell to the last, and what is committed of them is what ran.

The kernel is this interpreter, with folders of its own; nothing is fetched. To run them again after
a change and keep the outputs: python tests/python/notebooks/test_notebooks.py
"""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[3] / "notebooks").glob("*.ipynb"))
MOST_BYTES = 150_000


def run(path: Path) -> nbformat.NotebookNode:
    """Execute a notebook; an error in a cell raises."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=240, kernel_name="python3", record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()  # fmt: skip
    return notebook


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(notebook: nbformat.NotebookNode) -> int:
    return sum(
        "image/png" in output.get("data", {})
        for cell in code_cells(notebook)
        for output in cell.outputs
    )


def test_there_are_notebooks():
    assert [path.name for path in NOTEBOOKS] == [
        "01_first_minute.ipynb",
        "02_inside_a_moe.ipynb",
        "03_cluster.ipynb",
    ]


@pytest.mark.filterwarnings("default")  # what Jupyter's own packages warn of is not ours
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    fresh = run(path)
    committed = nbformat.read(path, as_version=4)
    assert pictures(fresh) == pictures(committed) > 0
    for new, old in zip(code_cells(fresh), code_cells(committed), strict=True):
        for output in new.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text
        assert bool(new.outputs) == bool(old.outputs), new.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed(path):
    assert path.stat().st_size < MOST_BYTES
    text = path.read_text()
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1)), "run all cells in order before committing"
    for place in (os.path.expanduser("~/"), "/tmp/", "/home/", "/work/"):
        assert place not in text, "a path of one machine"


if __name__ == "__main__":
    for file in NOTEBOOKS:
        nbformat.write(run(file), file)
        print(file.name, file.stat().st_size)
