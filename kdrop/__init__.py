"""Dropout layers for Keras that do what the literature says, at the cost of a copy."""

from kdrop import models, schedules
from kdrop.ensemble import Sampler
from kdrop.layers import InvertedDropout, VanillaDropout
from kdrop.layers.clock import StepClock
from kdrop.schedules import RateSchedule

__all__ = [
    "InvertedDropout",
    "RateSchedule",
    "Sampler",
    "StepClock",
    "VanillaDropout",
    "models",
    "schedules",
]
