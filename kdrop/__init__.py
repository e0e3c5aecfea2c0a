"""Dropout layers for Keras that do what the literature says, at the cost of a copy."""

from kdrop import models
from kdrop.ensemble import Sampler
from kdrop.layers import InvertedDropout, VanillaDropout
from kdrop.layers.clock import StepClock

__all__ = ["InvertedDropout", "Sampler", "StepClock", "VanillaDropout", "models"]
