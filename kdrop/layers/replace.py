"""Putting the layers of kdrop where those of Keras stand."""

import keras
from keras.src.models import Functional

from kdrop.layers import regions, units

_OURS = {
    keras.layers.Dropout: units.InvertedDropout,
    keras.layers.GaussianDropout: units.GaussianDropout,
    keras.layers.AlphaDropout: units.AlphaDropout,
    keras.layers.SpatialDropout1D: regions.SpatialDropout1D,
    keras.layers.SpatialDropout2D: regions.SpatialDropout2D,
    keras.layers.SpatialDropout3D: regions.SpatialDropout3D,
}


def replace(model):
    """A clone of a model, with kdrop's layers in the place of Keras's dropout layers.

    Names, rates, seeds, noise shapes and weights stay; a seed is taken modulo 2^32.
    Dropout layers that other layers keep as attributes (`MultiHeadAttention`, one's
    own) are replaced too. Such a layer makes Keras's again when the model is loaded
    from a file: replace it again.

    Args:
        model: A built Sequential or Functional `keras.Model`, nested ones included.

    Returns:
        An uncompiled model of the same kind.

    Raises:
        ValueError: If the model is of a class of its own, so that it has no graph to
            clone, or if a rate is 1.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"replace() takes a keras.Model. Received: {model!r}")
    if not isinstance(model, keras.Sequential | Functional):
        raise ValueError(
            f"replace() clones Sequential and Functional models. {model.name!r} is a "
            f"{type(model).__name__}: write kdrop's layers into its own code."
        )
    clone = keras.models.clone_model(model, clone_function=_clone, recursive=True)
    for layer in clone._flatten_layers():
        _swap(layer)
    clone.set_weights(model.get_weights())
    return clone


def _clone(layer):
    if type(layer) in _OURS:
        return _ours(layer)
    return type(layer).from_config(layer.get_config())


def _ours(layer):
    config = {**layer.get_config(), "dtype": layer.dtype_policy}
    if config["seed"] is not None:
        config["seed"] %= 2**32
    return _OURS[type(layer)](**config)


def _swap(layer):
    """Replace what a layer keeps as attributes, some of which it makes when built."""
    for name, value in list(vars(layer).items()):
        if type(value) in _OURS:
            layer._tracker.unlock()
            delattr(layer, name)
            setattr(layer, name, _ours(value))
            layer._tracker.lock()
