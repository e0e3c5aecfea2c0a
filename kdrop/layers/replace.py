"""Putting the layers of kdrop where those of Keras stand."""

import keras

from kdrop.layers import units

_OURS = {
    keras.layers.Dropout: units.InvertedDropout,
    keras.layers.GaussianDropout: units.GaussianDropout,
    keras.layers.AlphaDropout: units.AlphaDropout,
}


def replace(model):
    """A clone of a model, with kdrop's layers in the place of Keras's dropout layers.

    Names, rates, seeds, noise shapes and weights stay; a seed is taken modulo 2^32.
    Dropout layers inside other layers (`MultiHeadAttention`, one's own) are replaced
    where those keep them as attributes.

    Args:
        model: A built Sequential or Functional `keras.Model`, nested ones included.

    Returns:
        An uncompiled model of the same kind.

    Raises:
        ValueError: If the model is of a class of its own, so that it has no graph to
            clone; if a rate is 1; or if a layer makes its dropout out of reach.
    """
    if not isinstance(model, keras.Model) or not hasattr(model, "_nodes"):
        raise ValueError(
            f"replace() takes a keras.Model. Received: {type(model).__name__}"
        )
    if not isinstance(model, keras.Sequential | keras.src.models.Functional):
        raise ValueError(
            f"replace() clones Sequential and Functional models. {model.name!r} is a "
            f"{type(model).__name__}: write kdrop's layers into its own code."
        )
    clone = keras.models.clone_model(model, clone_function=_clone, recursive=True)
    for layer in clone._flatten_layers():
        if type(layer) in _OURS:
            raise ValueError(
                f"replace() cannot reach the {type(layer).__name__} {layer.name!r}, "
                "which another layer makes for itself."
            )
    clone.set_weights(model.get_weights())
    return clone


def _clone(layer):
    config = layer.get_config()
    if type(layer) in _OURS:
        return _ours(layer)
    clone = type(layer).from_config(config)
    _swap(clone)
    return clone


def _ours(layer):
    config = layer.get_config()
    if config["seed"] is not None:
        config["seed"] %= 2**32
    return _OURS[type(layer)].from_config(config)


def _swap(layer):
    """Replace what a layer that is not built yet holds."""
    for name, value in list(vars(layer).items()):
        if type(value) in _OURS:
            delattr(layer, name)
            setattr(layer, name, _ours(value))
        elif isinstance(value, list):
            value[:] = [_ours(v) if type(v) in _OURS else v for v in value]
        if isinstance(value, keras.Layer):
            _swap(value)
