"""docs/tutorial.ipynb runs from its first cell to its last, and is kept with what a real run has shown.

`python tests/integration/test_tutorial.py` runs it and writes what it shows into the file.
"""

import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOK = Path(__file__).parent.parent.parent / "docs" / "tutorial.ipynb"
MOST_BYTES = 400_000


def run(notebook: NotebookNode) -> NotebookNode:
    """The notebook with the outputs of a run, in a process of its own; CellExecutionError where a cell fails."""
    notebook.metadata["kernelspec"]["name"] = "python3"
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}})
    done: NotebookNode = client.execute()
    for cell in done.cells:
        cell.metadata.pop("execution", None)  # times of the day
    return done


def texts(notebook: NotebookNode) -> str:
    """What its cells have printed."""
    said = (output for cell in notebook.cells for output in cell.get("outputs", []))
    return "\n".join(output["text"] for output in said if output["output_type"] == "stream")


def pictures(notebook: NotebookNode) -> int:
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_it_is_kept_with_the_outputs_of_a_real_run() -> None:
    kept = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(kept)
    assert NOTEBOOK.stat().st_size < MOST_BYTES
    counts = [cell.execution_count for cell in kept.cells if cell.cell_type == "code"]
    assert counts == [*range(1, len(counts) + 1)]
    assert pictures(kept) == 3
    assert "0 faults" in texts(kept)
    assert "/tmp" not in NOTEBOOK.read_text()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_it_runs() -> None:
    """About a minute of computing; test_embedded and test_prove cover what it does."""
    done = run(nbformat.read(NOTEBOOK, as_version=4))
    assert pictures(done) == 3
    assert "0 faults" in texts(done)
    assert "the service ended with code 0" in texts(done)


if __name__ == "__main__":
    nbformat.write(run(nbformat.read(NOTEBOOK, as_version=4)), NOTEBOOK)
    sys.stdout.write(f"{NOTEBOOK} has {NOTEBOOK.stat().st_size} bytes\n")
