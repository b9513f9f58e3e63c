"""A graph draws itself in a notebook."""

from __future__ import annotations

import nbformat
import pytest
from nbclient import NotebookClient

CELLS = (
    "import pullback as pb",
    "graph = pb.attribute(pb.zoo.load('tiny-mix'), pb.zoo.transcoders('tiny-mix'), 'dallas is in')",
    "graph.prune()",
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what the kernel client says about sockets and event loops is its own affair
def test_the_last_value_of_a_cell_is_the_page() -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    (output,) = notebook.cells[-1].outputs
    assert output.data["text/plain"].startswith("Graph(")
    assert "<iframe" in output.data["text/html"]
    assert "texas" in output.data["text/html"]
