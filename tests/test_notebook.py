"""Notebooks run from an empty kernel without a network, and a graph draws itself in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
SECONDS = 120  # for one cell
# Nothing of a notebook may ask a hub, and several kernels share the machine.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
CELLS = (
    "import pullback as pb",
    "graph = pb.attribute(pb.zoo.load('tiny-mix'), pb.zoo.transcoders('tiny-mix'), 'dallas is in')",
    "graph.prune()",
)


def executed(notebook: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The notebook with its outputs, after one fresh kernel has run all of it inside `folder`."""
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)
    client = NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    return client.execute()


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_what_running_adds(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for number, cell in enumerate(notebook.cells):
        assert cell.metadata == {}, f"cell {number} of {path.name} has metadata: clear it"
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), f"cell {number} of {path.name}: clear its output"
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert notebook.cells[0].cell_type == "markdown", f"{path.name} does not say what it is about"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what the kernel client says about sockets and event loops is its own affair
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = executed(nbformat.read(path, as_version=4), tmp_path, monkeypatch)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    said = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "Warning" not in said, said  # no widgets here, for one: bars are plain then, and nobody is told off for it


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_last_value_of_a_cell_is_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    (output,) = executed(notebook, tmp_path, monkeypatch).cells[-1].outputs
    assert output.data["text/plain"].startswith("Graph(")
    assert "<iframe" in output.data["text/html"]
    assert "texas" in output.data["text/html"]
