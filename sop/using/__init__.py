"""What a trained run is used for: predictions, features, a look inside.

`sop.load(workdir)` gives a `Run`; `main.py --mode=predict` and `--mode=visualize` are `predict` and
`visualize`.
"""

from sop.using.predictions import Predictions
from sop.using.run import Run, load

__all__ = ["Predictions", "Run", "load"]
