"""Dropout layers for Keras that do what the literature says, at the cost of a copy."""

# First: it refuses the backends of Keras that kdrop does not support.
from kdrop import backend as backend
from kdrop import models, schedules
from kdrop.auditing.report import audit
from kdrop.ensemble.exact import subnetworks
from kdrop.ensemble.sampling import Sampler, sample
from kdrop.ensemble.uncertainty import summarise
from kdrop.layers import (
    AlphaDropout,
    ConcreteDropout,
    DropBlock1D,
    DropBlock2D,
    DropBlock3D,
    DropConnectConv2D,
    DropConnectDense,
    DropKey,
    DropPath,
    EmbeddingDropout,
    ExactDropout,
    GaussianDropout,
    InvertedDropout,
    LockedDropout,
    SpatialDropout1D,
    SpatialDropout2D,
    SpatialDropout3D,
    StandoutDropout,
    StochasticDepth,
    TokenDropout,
    UniformDropout,
    VanillaDropout,
    VariationalDropout,
    WeightDropout,
    Zoneout,
)  # fmt: skip
from kdrop.layers.base import drop_layers
from kdrop.layers.callbacks import RateSchedule, StepClock
from kdrop.layers.insert import insert
from kdrop.layers.rates import set_dropout
from kdrop.layers.replace import replace

__version__ = "0.1.0"
__all__ = [
    "AlphaDropout", "ConcreteDropout", "DropBlock1D", "DropBlock2D", "DropBlock3D",
    "DropConnectConv2D", "DropConnectDense", "DropKey", "DropPath", "EmbeddingDropout",
    "ExactDropout", "GaussianDropout", "InvertedDropout", "LockedDropout",
    "RateSchedule", "Sampler", "SpatialDropout1D", "SpatialDropout2D",
    "SpatialDropout3D", "StandoutDropout", "StepClock", "StochasticDepth",
    "TokenDropout", "UniformDropout", "VanillaDropout", "VariationalDropout",
    "WeightDropout", "Zoneout", "audit", "drop_layers", "insert", "models", "replace",
    "sample", "schedules", "set_dropout", "subnetworks", "summarise",
]  # fmt: skip
