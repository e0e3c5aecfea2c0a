"""The drop layers."""

from kdrop.layers.units import InvertedDropout, VanillaDropout

__all__ = ["InvertedDropout", "VanillaDropout"]
