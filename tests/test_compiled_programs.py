"""What benchmarks/compile.py reads in a compiled program."""

import sys
from pathlib import Path

import pytest

PROGRAM = """\
HloModule step

%cheap (a: (f32[8], bf16[4,2])) -> f32[8] {
  %a = (f32[8]{0}, bf16[4,2]{1,0}) parameter(0)
  ROOT %x = f32[8]{0} get-tuple-element(%a), index=0
}

%dear (b: (f32[8], bf16[4,2])) -> f32[8] {
  %b = (f32[8]{0}, bf16[4,2]{1,0}) parameter(0)
  %y = f32[8]{0} get-tuple-element(%b), index=0
  ROOT %z = f32[8]{0} add(%y, %y), metadata={op_name="jit(step)/add"}
}

ENTRY %main (p: pred[], t: (f32[8], bf16[4,2])) -> f32[8] {
  %p = pred[] parameter(0)
  %t = (f32[8]{0}, bf16[4,2]{1,0}) parameter(1)
  %s = (f32[8]{0}, f32[8]{0}) all-reduce-start(%t), to_apply=%sum
  %d = f32[8]{0} all-reduce-done(%s)
  ROOT %c = f32[8]{0} conditional(%p, %t, %t), branch_computations={%cheap, %dear}
}
"""


@pytest.fixture(scope="module")
def reader():
    """The module `compile` of the benchmarks, whose folder is no package."""
    folder = str(Path(__file__).resolve().parents[1] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        import compile as module
    finally:
        sys.path.remove(folder)
    return module


def test_bytes_of_types(reader):
    assert reader.bytes_of("f32[2,3]{1,0}") == 24
    assert reader.bytes_of("(bf16[4,2]{1,0:T(8,128)(2,1)S(1)}, pred[5], f32[])") == 16 + 5 + 4


def test_of_branches_the_cheapest_is_counted(reader):
    """The dear one reads 8 numbers twice and writes them."""
    assert reader.not_taken(PROGRAM) == 3 * 32
    with pytest.raises(ValueError, match="written in another way"):
        reader.not_taken(PROGRAM.replace("branch_computations", "true_computation"))


def test_collectives_are_counted_once(reader):
    assert reader.collectives(PROGRAM) == (1, 64)
