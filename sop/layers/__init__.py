"""Flax modules: representations, attention, local pooling and the norm, called `module(x, train)`.

Representations turn [B, H, W, C], or tokens [B, n, C], into [B, D]; attention and `BatchNorm` keep
the shape; local pooling gives [B, H', W', C]. A network takes any of one kind in the place of
another, and reads what it asks for from `published` (`sop.layers.published.Published`).
"""

from sop.layers.bilinear import BilinearCNN, CompactBilinear
from sop.layers.cbam import CBAM
from sop.layers.cgd import CGD, SpatialCGD, ToyCGD
from sop.layers.coordinate import CoordinateAttention
from sop.layers.deepbdc import DeepBDC
from sop.layers.dropcov import DropCov
from sop.layers.eca import ECA
from sop.layers.fcanet import FcaNet
from sop.layers.first_order import GeneralizedMean, GlobalAverage, GlobalMax
from sop.layers.gaussian import GaussianPooling
from sop.layers.gc import GlobalContext
from sop.layers.gct import GCT
from sop.layers.gsop import CompactGSoP, GSoP
from sop.layers.isice import ISICE
from sop.layers.iter_norm import IterNorm
from sop.layers.local_pooling import GFGP, AveragePool, MaxEntropyPool, MaxPool, NoPool, SkipPool
from sop.layers.mpncov import MPNCOV
from sop.layers.norm import BatchNorm
from sop.layers.se import SqueezeExcitation
from sop.layers.simam import SimAM
from sop.layers.srm import SRM
from sop.layers.tokens import MGCrP, MomentProbing

__all__ = [
    "CBAM",
    "CGD",
    "ECA",
    "GCT",
    "GFGP",
    "ISICE",
    "MPNCOV",
    "SRM",
    "AveragePool",
    "BatchNorm",
    "BilinearCNN",
    "CompactBilinear",
    "CompactGSoP",
    "CoordinateAttention",
    "DeepBDC",
    "DropCov",
    "FcaNet",
    "GSoP",
    "GaussianPooling",
    "GeneralizedMean",
    "GlobalAverage",
    "GlobalContext",
    "GlobalMax",
    "IterNorm",
    "MGCrP",
    "MaxEntropyPool",
    "MaxPool",
    "MomentProbing",
    "NoPool",
    "SimAM",
    "SkipPool",
    "SpatialCGD",
    "SqueezeExcitation",
    "ToyCGD",
]
