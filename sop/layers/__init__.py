"""Flax modules: representations, attention, local pooling and the norm, called `module(x, train)`.

Representations turn [B, H, W, C] into [B, D]; attention and `BatchNorm` keep the shape; local
pooling gives [B, H', W', C]. A network takes any of one kind in the place of another, and reads
what it asks for from `published` (`sop.layers.published.Published`).
"""

from sop.layers.cgd import CGD, SpatialCGD, ToyCGD
from sop.layers.gsop import CompactGSoP, GSoP
from sop.layers.local_pooling import GFGP, AveragePool, MaxEntropyPool, MaxPool, NoPool, SkipPool
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
    "NoPool",
    "SkipPool",
    "SpatialCGD",
    "ToyCGD",
]
