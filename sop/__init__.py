"""Second-order and global pooling for image networks, in JAX and Flax."""

import sys

if sys.argv[:1] == ["-m"]:  # only while `python -m sop.…` looks for its module
    from sop.command import begin

    begin()  # the imports of a command take seconds


def __getattr__(name: str):
    if name == "load":  # what it needs is imported when it is asked for
        from sop.using import load

        return load
    raise AttributeError(f"module 'sop' has no attribute {name!r}")
