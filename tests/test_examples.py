"""The notebook runs from its first cell to its last."""

import json

import matplotlib
import pytest

from tests.launch import ROOT


@pytest.mark.parametrize("notebook", sorted((ROOT / "examples").glob("*.ipynb")), ids=str)
def test_notebook_runs(notebook):
    matplotlib.use("agg")
    content = json.loads(notebook.read_text())
    assert not any(cell.get("outputs") for cell in content["cells"]), "commit it without outputs"
    namespace = {"__name__": "notebook"}
    for number, cell in enumerate(content["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), namespace)
