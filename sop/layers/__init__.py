"""Flax modules: representations, attention, local pooling, norm; all called `module(x, train)`.

Representations turn [B, H, W, C] into [B, D]; attention keeps the shape; local pooling gives
[B, H', W', C]. A network takes any of one kind in the place of another.
"""

from sop.layers.cgd import CGD, SpatialCGD, ToyCGD
from sop.layers.gsop import CompactGSoP, GSoP
from sop.layers.local_pooling import GFGP, AveragePool, MaxEntropyPool, MaxPool, SkipPool
from sop.layers.norm import BatchNorm
from sop.layers.representations import MPNCOV, BilinearCNN, CompactBilinear, GlobalAverage

__all__ = [
    "CGD",
    "GFGP",
    "MPNCOV",
    "AveragePool",
    "BatchNorm",
    "BilinearCNN",
    "CompactBilinear",
    "CompactGSoP",
    "GSoP",
    "GlobalAverage",
    "MaxEntropyPool",
    "MaxPool",
    "SkipPool",
    "SpatialCGD",
    "ToyCGD",
]
