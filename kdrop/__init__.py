"""Dropout layers for Keras that do what the literature says, at the cost of a copy."""

from kdrop import models, schedules
from kdrop.ensemble import Sampler
from kdrop.layers import (
    AlphaDropout,
    GaussianDropout,
    InvertedDropout,
    UniformDropout,
    VanillaDropout,
)
from kdrop.layers.clock import StepClock
from kdrop.layers.replace import replace
from kdrop.schedules import RateSchedule

__version__ = "0.1.0"
__all__ = [
    "AlphaDropout",
    "GaussianDropout",
    "InvertedDropout",
    "RateSchedule",
    "Sampler",
    "StepClock",
    "UniformDropout",
    "VanillaDropout",
    "models",
    "replace",
    "schedules",
]
