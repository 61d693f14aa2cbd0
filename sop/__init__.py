"""Second-order and global pooling for image networks, in JAX and Flax."""

import sys

if sys.argv[:1] == ["-m"]:  # only while `python -m sop.…` looks for its module
    from sop.command import begin

    begin()  # the imports of a command take seconds
