"""Replace the dropout layers of Keras in a model by those of kdrop."""

import numbers
import os
import tempfile
import warnings

import keras
import numpy as np

from kdrop import backend, keras_internals
from kdrop.layers import regions, units
from kdrop.layers.base import Draws, Noise

_OURS = {
    keras.layers.Dropout: units.InvertedDropout,
    keras.layers.GaussianDropout: units.GaussianDropout,
    keras.layers.AlphaDropout: units.AlphaDropout,
    keras.layers.SpatialDropout1D: regions.SpatialDropout1D,
    keras.layers.SpatialDropout2D: regions.SpatialDropout2D,
    keras.layers.SpatialDropout3D: regions.SpatialDropout3D,
}

# What layers of Keras, KerasHub and others call the fraction that they drop.
_RATES = ("rate", "p", "dropout", "recurrent_dropout")


def replace(model, in_place=False):
    """Replace the dropout layers of Keras in a model by those of kdrop.

    Every `Dropout`, `GaussianDropout`, `AlphaDropout` and `SpatialDropout` that Keras
    tracks is replaced: in graphs, attributes, lists and dictionaries of layers, in
    wrappers, nested models and `MultiHeadAttention`. Names, rates, seeds (modulo 2^32),
    noise shapes, dtype policies, weights and the model's class stay.

    One warning names the layers that go on dropping by Keras's own means: subclasses of
    its dropout layers, and layers that drop without one, such as `LSTM(dropout=0.1)`.

    A saved model stores its config. Drop layers in the config of a Functional or
    Sequential model load as kdrop's. Those that a layer or model makes in its own
    code (`MultiHeadAttention`, KerasHub) load as Keras's; this restores kdrop's, and
    `sample` gives the same samples then:

        model = kdrop.replace(keras.models.load_model(path), in_place=True)
        model.load_weights(path)

    Args:
        model: A `keras.Model` of any kind, compiled or not.
        in_place: If `False`, replace the layers in a copy, which is made by saving and
            loading the model, and leave the model as it is. If `True`, replace them
            in the model itself: the same object, weights and optimizer. Other models
            that share its layers then have the new ones too: compile those again, and
            trace functions of your own (`tf.function`, `jax.jit`) again.

    Returns:
        The copy, not compiled, or the model itself.

    Raises:
        ValueError: If `model` is not a model, if a rate is 1, or if `in_place` is
            `False` and Keras cannot copy the model. The model is then unchanged.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"replace() takes a keras.Model. Received: {model!r}")
    layers = _layers(model)
    configs = [_config(layer) for layer in layers]
    result = model if in_place else _copy(model)
    with backend.strategy_scope(result):
        for layer, other, config in zip(layers, _layers(result), configs, strict=True):
            if type(other) in _OURS:
                _become(other, config, layer)
    keras_internals.forget_compiled(result)
    message = " ".join(_limits(result))
    if message:
        warnings.warn(message, stacklevel=2)
    return result


def remaining(model):
    """Names of the layers that drop in training by other means than kdrop's layers.

    Those are Keras's dropout layers and their subclasses, other layers with a seed
    generator and a rate above 0 (`Attention`), and RNN layers whose cells have one.
    """
    layers = keras_internals.layers_of(model)
    owners = {
        id(cell): layer
        for layer in layers
        if isinstance(layer, keras.layers.RNN)
        for cell in keras_internals.layers_of(layer.cell)
        if any(hasattr(cell, name) for name in ("dropout", "recurrent_dropout"))
    }
    names = [owners.get(id(layer), layer).name for layer in layers if _drops(layer)]
    return list(dict.fromkeys(names))


def _drops(layer):
    # Some of KerasHub's layers draw from Keras's global generator and have none.
    named = "drop" in type(layer).__name__.lower() and not keras_internals.holds_layers(
        layer
    )
    if isinstance(layer, Noise) or not (
        named or keras_internals.has_seed_generator(layer)
    ):
        return False
    names = (name for name in vars(layer) if "drop" in name and name[0] != "_")
    rates = (getattr(layer, name, None) for name in (*_RATES, *names))
    return any(isinstance(rate, numbers.Real) and rate > 0 for rate in rates)


def _layers(model):
    """All layers of a model but those inside kdrop's, which Keras's do not have."""
    return [x for x in keras_internals.layers_of(model) if not isinstance(x, Draws)]


def _kind(layer):
    return _OURS.get(type(layer), type(layer))


def _config(layer):
    """The arguments of a layer that replaces this one, or `None`; raises if invalid."""
    if _kind(layer) not in _OURS.values():
        return None
    # Keras's spatial layers leave `trainable` and the policy out of their config.
    own = {"dtype": layer.dtype_policy, "trainable": layer.trainable}
    config = {**layer.get_config(), **own}
    if config["seed"] is not None:
        config["seed"] %= 2**32
    _kind(layer)(**config)
    return config


def _become(other, config, layer):
    """Replace a layer of Keras that stands where the model has `layer`."""
    # Replaced before, and made by Keras again in a copy.
    before = layer.draws if isinstance(layer, Noise) else None
    keras_internals.become(other, _OURS[type(other)], config)
    if before is not None:
        other.draws.resume(before)


def _copy(model):
    """The model as Keras saves and loads it; raises where that is not the same model.

    `clone_model` would lose the class of a Functional subclass, and fails on KerasHub.
    """
    custom = {
        type(layer).__name__: type(layer)
        for layer in keras_internals.layers_of(model)
        if keras.saving.get_registered_name(type(layer)) == type(layer).__name__
        and not type(layer).__module__.startswith("keras.")
    }
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            # That an unbuilt model has no weights yet is as it should be.
            warnings.simplefilter("ignore")
            path = os.path.join(folder, "model.keras")
            model.save(path)
            copy = keras.models.load_model(path, custom, compile=False, safe_mode=False)
    except Exception as error:  # whatever the code of the model's layers raises
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise _refusal(model, f"saving and loading it failed ({reason})") from error
    for difference in _differences(model, copy):
        raise _refusal(model, f"loaded from a file, it has other {difference}")
    for theirs, ours in (_layers(model), _layers(copy)), (model.weights, copy.weights):
        for one, other in zip(theirs, ours, strict=True):
            if other.trainable != one.trainable:
                other.trainable = one.trainable
    return copy


def _differences(model, copy):
    layers, copies = _layers(model), _layers(copy)
    if [_kind(layer) for layer in layers] != [_kind(layer) for layer in copies]:
        yield "layers"
    common = vars(keras.Sequential(name="any")).keys()
    for layer, other in zip(layers, copies, strict=True):
        replaced = _kind(layer) in _OURS.values()
        if not (replaced or _same_settings(layer, other, common)):
            yield f"settings of layer {layer.name!r}"
    if len(model.weights) != len(copy.weights):
        yield "weights"
    for weight, other in zip(model.weights, copy.weights, strict=True):
        if _value(weight) != _value(other):
            yield f"values of weight {weight.path!r}"


def _refusal(model, reason):
    return ValueError(
        f"replace() cannot copy model {model.name!r}: {reason}. Allowed: "
        "`in_place=True`, which replaces the layers in the model itself."
    )


def _same_settings(layer, other, common):
    """Whether dtype policies and plain values in public attributes are equal.

    The names in `common` are left out: every model has them, and compiling and
    building change them.
    """
    return layer.dtype_policy == other.dtype_policy and all(
        _listed(value) == _listed(vars(other)[name])
        for name, value in vars(layer).items()
        if _plain(value)
        and name in vars(other).keys() - common
        and not name.startswith("_")
    )


def _plain(value):
    if isinstance(value, tuple):
        return all(map(_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def _listed(value):
    """The value with lists in place of tuples, which a file does not know."""
    return list(map(_listed, value)) if isinstance(value, list | tuple) else value


def _value(variable):
    value = np.asarray(variable.value)
    return value.shape, value.dtype, value.tobytes()


def _limits(model):
    """Sentences that name the layers whose dropout is not all that kdrop promises."""
    if names := remaining(model):
        yield (
            "These layers still drop by their own means, which kdrop does not sample: "
            f"{', '.join(map(repr, names))}."
        )
    names = [
        layer.name
        for layer in _layers(model)
        if isinstance(layer, keras.layers.TimeDistributed)
        and any(isinstance(inner, Noise) for inner in _layers(layer))
        and keras_internals.time_steps(layer) is None
    ]
    if names and keras.backend.backend() == "tensorflow":  # by `vectorized_map`
        yield (
            "Where the number of time steps is unknown when TensorFlow traces them, "
            f"all time steps share one mask in: {', '.join(map(repr, names))}."
        )
