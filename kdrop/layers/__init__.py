"""The drop layers."""

from kdrop.layers.paths import (
    DropPath,
    StochasticDepth,
)
from kdrop.layers.regions import (
    DropBlock1D,
    DropBlock2D,
    DropBlock3D,
    SpatialDropout1D,
    SpatialDropout2D,
    SpatialDropout3D,
    TokenDropout,
)
from kdrop.layers.units import (
    AlphaDropout,
    GaussianDropout,
    InvertedDropout,
    UniformDropout,
    VanillaDropout,
)

__all__ = [
    "AlphaDropout",
    "DropBlock1D",
    "DropBlock2D",
    "DropBlock3D",
    "DropPath",
    "GaussianDropout",
    "InvertedDropout",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "SpatialDropout3D",
    "StochasticDepth",
    "TokenDropout",
    "UniformDropout",
    "VanillaDropout",
]
