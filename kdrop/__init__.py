"""Dropout layers for Keras that do what the literature says, at the cost of a copy."""

# First: it refuses the backends of Keras that kdrop does not support.
from kdrop import backend as backend
from kdrop import layers, models, schedules
from kdrop.ensemble.exact import subnetworks
from kdrop.ensemble.sampling import Sampler, sample
from kdrop.ensemble.uncertainty import summarise
from kdrop.layers import *  # noqa: F403
from kdrop.layers.base import drop_layers
from kdrop.layers.callbacks import RateSchedule, StepClock
from kdrop.layers.replace import replace

__version__ = "0.1.0"
__all__ = [
    "RateSchedule",
    "Sampler",
    "StepClock",
    "drop_layers",
    "models",
    "replace",
    "sample",
    "schedules",
    "subnetworks",
    "summarise",
    *layers.__all__,
]
