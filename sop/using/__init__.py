"""What a trained run is used for: predictions, features, a look inside.

`sop.load(workdir)` gives a `Run`, or a `Detector`; `main.py --mode=predict` and `--mode=visualize`
are `predict` and `visualize`, of detectors `sop.detection.finding`.
"""

from sop.using.detector import Detector
from sop.using.predictions import Predictions
from sop.using.run import Run, load

__all__ = ["Detector", "Predictions", "Run", "load"]
