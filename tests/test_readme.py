"""The README's Python examples run as they stand."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.heavy
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_example(number):
    exec(compile(BLOCKS[number], f"README.md, example {number}", "exec"), {"__name__": "example"})


def test_there_are_examples():
    assert len(BLOCKS) >= 3
