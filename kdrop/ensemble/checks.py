"""Checks of the models that are sampled."""

import warnings

import keras

from kdrop import keras_internals
from kdrop.layers.base import active_drop_layers, drop_layers
from kdrop.layers.replace import remaining


def check_model(model):
    """Raise `ValueError` unless `model` is a `keras.Model`."""
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` must be a `keras.Model`. Received: {model!r}")


def check_drop_layers(model):
    """Raise `ValueError` if a model has no drop layer of kdrop."""
    if drop_layers(model):
        return
    message = f"Model {model.name!r} has no drop layer of kdrop to sample."
    if remaining(model):
        message += " `kdrop.replace(model)` replaces those of Keras."
    raise ValueError(message)


def check_rates(model):
    """Raise `ValueError` if all drop layers of a model have rate 0."""
    if not active_drop_layers(model):
        raise ValueError(
            f"All drop layers of model {model.name!r} have rate 0: its samples would "
            "all be the same."
        )


def stateful_layers(model):
    """Names of the layers that carry state from one call to the next."""
    layers = keras_internals.layers_of(model)
    return [x.name for x in layers if getattr(x, "stateful", False) is True]


def warn_of_other_dropout(model):
    """Warn if layers outside kdrop, which are not sampled, drop in training."""
    if names := remaining(model):
        warnings.warn(
            f"These layers of model {model.name!r} stay at inference while it is "
            f"sampled: {', '.join(map(repr, names))}. `kdrop.replace(model)` replaces "
            "the dropout layers of Keras by those of kdrop.",
            stacklevel=3,
        )
