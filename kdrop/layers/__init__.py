"""The drop layers."""

from kdrop.layers.units import (
    AlphaDropout,
    GaussianDropout,
    InvertedDropout,
    UniformDropout,
    VanillaDropout,
)

__all__ = [
    "AlphaDropout",
    "GaussianDropout",
    "InvertedDropout",
    "UniformDropout",
    "VanillaDropout",
]
