"""What the tests of detectors share: digit scenes of a small size, objects that break detectors."""

import jax.numpy as jnp
import numpy as np

ARGUMENTS = (
    "--config=configs/digit_scenes.py",
    "--config.model.detector.extras=()",
    "--config.model.detector.ratios=((1.5,),)",
    "--config.input.train_split=train[:48]",
    "--config.input.eval_split=test[:24]",
    "--config.batch_size=16",
    "--config.eval_batch_size=24",
    "--config.num_epochs=3",
    "--config.eval_every_epochs=1",
    "--config.log_every_steps=3",
)

# Boxes, and whether they are valid.
OBJECTS = {
    "none": ([[0, 0, 0, 0]], False),
    "one": ([[4, 4, 20, 20]], True),
    "no area": ([[4, 4, 4, 20]], True),
    "outside": ([[-90, -90, -50, -50]], True),
    "partly outside": ([[-1e9, -1e9, 1e9, 1e9]], True),
    "not finite": ([[np.nan, 0, np.inf, 9]], True),
    "tiny": ([[4, 4, 4 + 1e-3, 4 + 1e-3]], True),
}


def targets_of(boxes, valid, crowd=False):
    return {
        "boxes": jnp.array([boxes], jnp.float32),
        "labels": jnp.zeros((1, len(boxes)), jnp.int32),
        "valid": jnp.full((1, len(boxes)), valid),
        "crowd": jnp.full((1, len(boxes)), crowd),
    }
