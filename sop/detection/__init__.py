"""Detection of objects: boxes, detectors and their metric."""
