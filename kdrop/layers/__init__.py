"""The drop layers."""

from kdrop.layers.concrete import ConcreteDropout
from kdrop.layers.exact import ExactDropout
from kdrop.layers.regions import (
    DropBlock1D,
    DropBlock2D,
    DropBlock3D,
    DropPath,
    SpatialDropout1D,
    SpatialDropout2D,
    SpatialDropout3D,
    StochasticDepth,
)
from kdrop.layers.sequences import EmbeddingDropout, LockedDropout, Zoneout
from kdrop.layers.standout import StandoutDropout
from kdrop.layers.tokens import TokenDropout
from kdrop.layers.units import (
    AlphaDropout,
    GaussianDropout,
    InvertedDropout,
    UniformDropout,
    VanillaDropout,
)
from kdrop.layers.variational import VariationalDropout
from kdrop.layers.weights import DropConnectConv2D, DropConnectDense
from kdrop.layers.wrappers import DropKey, WeightDropout

__all__ = [
    "AlphaDropout", "ConcreteDropout", "DropBlock1D", "DropBlock2D", "DropBlock3D",
    "DropConnectConv2D", "DropConnectDense", "DropKey", "DropPath", "EmbeddingDropout",
    "ExactDropout", "GaussianDropout", "InvertedDropout", "LockedDropout",
    "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "StandoutDropout",
    "StochasticDepth", "TokenDropout", "UniformDropout", "VanillaDropout",
    "VariationalDropout", "WeightDropout", "Zoneout",
]  # fmt: skip
