"""Replace the dropout layers of Keras in a model by those of kdrop."""

import numbers
import os
import tempfile
import warnings

import keras
import numpy as np
from keras import tree

from kdrop import backend, keras_internals
from kdrop.errors import first_line
from kdrop.layers import regions, units
from kdrop.layers.base import Noise, check_model, drop_layers
from kdrop.layers.draws import Draws
from kdrop.layers.rates import drops_by_rate, has_drop_name, rate_of

_REPLACEMENTS = {
    keras.layers.Dropout: units.InvertedDropout,
    keras.layers.GaussianDropout: units.GaussianDropout,
    keras.layers.AlphaDropout: units.AlphaDropout,
    keras.layers.SpatialDropout1D: regions.SpatialDropout1D,
    keras.layers.SpatialDropout2D: regions.SpatialDropout2D,
    keras.layers.SpatialDropout3D: regions.SpatialDropout3D,
}


def replace(model, in_place=False):
    """Replace the dropout layers of Keras in a model by those of kdrop.

    Every `Dropout`, `GaussianDropout`, `AlphaDropout` and `SpatialDropout` that Keras
    tracks is replaced: in graphs, attributes, lists and dictionaries of layers, in
    wrappers, nested models and `MultiHeadAttention`. Names, rates, seeds (modulo 2^32),
    noise shapes, dtype policies, weights and the model's class do not change.

    So are the drop paths of KerasHub, `keras.applications`, KerasCV and others, by
    `DropPath`, which drops right where theirs does not: layers whose class is named
    DropPath or StochasticDepth, which have a rate and return their input at inference.

    One warning names the layers that still drop: subclasses of Keras's dropout layers,
    and layers that drop without one, such as `LSTM(dropout=0.1)`.

    Drop layers that a layer or model creates in its own code (`MultiHeadAttention`,
    KerasHub) load from a saved model as Keras's. This restores kdrop's and the samples:

        model = kdrop.replace(keras.models.load_model(path), in_place=True)
        model.load_weights(path)

    Args:
        model: A `keras.Model` of any kind, compiled or not.
        in_place: If `False`, replace the layers in a copy, made by saving and loading
            the model. If `True`, replace them in the model itself and in others that
            share them: compile those again, and retrace your own functions
            (`tf.function`, `jax.jit`).

    Returns:
        The copy, not compiled, or the model itself.

    Raises:
        ValueError: If `model` is not a model, if a rate is 1, or if `in_place` is
            `False` and Keras cannot copy the model. The model is then unchanged.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.3)])
    >>> layer = kdrop.replace(model).layers[0]
    >>> type(layer).__name__, layer.rate
    ('InvertedDropout', 0.3)
    """
    check_model(model)
    layers = _layers(model)
    configs = [_replacement_config(layer) for layer in layers]
    result = model if in_place else _copy(model)
    with backend.strategy_scope(result):
        for layer, other, config in zip(layers, _layers(result), configs, strict=True):
            kind = _replaced_type(other)
            if kind is not type(other):
                keras_internals.become(other, kind, config)
                # The original had been replaced; loading created Keras's layer again.
                if isinstance(layer, Noise) and layer is not other:
                    other.draws.resume(layer.draws)
    keras_internals.forget_compiled(result)
    message = " ".join(_limitations(result))
    if message:
        warnings.warn(message, stacklevel=2)
    return result


def remaining(model):
    """Names of the layers outside kdrop that drop in training, `attention/dropout`.

    Those are Keras's dropout layers and their subclasses, other layers with a seed
    generator and a rate above 0 (`Attention`), and RNN layers with such cells.
    """
    layers = keras_internals.layers_of(model)
    paths = {**keras_internals.paths_of(model), model: model.name}
    owners = {
        cell: layer
        for layer in layers
        if isinstance(layer, keras.layers.RNN)
        for cell in keras_internals.layers_of(layer.cell)
        if hasattr(cell, "dropout") or hasattr(cell, "recurrent_dropout")
    }
    return list(dict.fromkeys(paths[owners.get(x, x)] for x in layers if _drops(x)))


def _drops(layer):
    if isinstance(layer, Noise):
        return False
    # Some layers of KerasHub draw from Keras's global generator.
    alone = has_drop_name(layer) and len(keras_internals.layers_of(layer)) == 1
    if not keras_internals.has_seed_generator(layer) and not alone:
        return False
    names = (name for name in vars(layer) if "drop" in name and name[0] != "_")
    rates = (rate_of(layer), *(getattr(layer, name, None) for name in names))
    return any(isinstance(rate, numbers.Real) and rate > 0 for rate in rates)


def _layers(model):
    """All layers except `Draws`, so that lists before and after replacement match."""
    return [x for x in keras_internals.layers_of(model) if not isinstance(x, Draws)]


def _replaced_type(layer):
    path = regions.DropPath if _is_drop_path(layer) else type(layer)
    return _REPLACEMENTS.get(type(layer), path)


def _is_replaced(layer):
    kinds = {*_REPLACEMENTS.values(), regions.DropPath}
    return _replaced_type(layer) in kinds


def _is_drop_path(layer):
    """Whether a layer of another library is what `DropPath` is, or means to be."""
    named = type(layer).__name__.lower().endswith(("droppath", "stochasticdepth"))
    # An unscaled one has another mean in training, as its user asked.
    scaled = getattr(layer, "scale_by_keep", True)
    if isinstance(layer, Noise) or not (named and scaled and drops_by_rate(layer)):
        return False
    ones = keras.ops.ones((2, 3), layer.compute_dtype)
    try:
        outputs = layer.call(ones, training=False)
    except Exception:  # one of several inputs, or without an inference mode
        return False
    return outputs is ones


def _replacement_config(layer):
    """The arguments of a layer's replacement, or `None`; raises if they are invalid."""
    if not _is_replaced(layer):
        return None
    # The configs of Keras's spatial layers lack `trainable` and the policy.
    missing = {"dtype": layer.dtype_policy, "trainable": layer.trainable}
    config = {**layer.get_config(), **missing}
    if _is_drop_path(layer):
        names, rate = ("name", "seed", "dtype", "trainable"), rate_of(layer)
        config = {
            "rate": rate,
            "seed": None,
            **{x: config[x] for x in config.keys() & names},
        }
    if config["seed"] is not None:
        config["seed"] %= 2**32
    try:
        _replaced_type(layer)(**config)
    except ValueError as error:
        reason = first_line(error)
        raise ValueError(f"replace() and layer {layer.name!r}: {reason}") from None
    return config


def _copy(model):
    """Save and load the model; raises if the result is not the same model.

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
            # Keras warns that an unbuilt model has no weights yet.
            warnings.simplefilter("ignore")
            path = os.path.join(folder, "model.keras")
            model.save(path)
            copy = keras.models.load_model(path, custom, compile=False, safe_mode=False)
        for difference in _differences(model, copy):
            raise ValueError(f"the copy has other {difference}")
    except Exception as error:  # anything that the code of the layers raises
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(
            f"replace() cannot copy model {model.name!r}: saving and loading it failed "
            f"({reason}). Allowed: `in_place=True`, which replaces the layers in the "
            "model itself."
        ) from error
    originals, copies = ([*_layers(each), *each.weights] for each in (model, copy))
    for one, other in zip(originals, copies, strict=True):
        if other.trainable != one.trainable:
            other.trainable = one.trainable
    return copy


def _differences(model, copy):
    layers, copies = _layers(model), _layers(copy)
    if list(map(_replaced_type, layers)) != list(map(_replaced_type, copies)):
        yield "layers"
    for layer, other in zip(layers, copies, strict=True):
        if not _is_replaced(layer) and not _same_settings(layer, other):
            yield f"settings of layer {layer.name!r}"
    if len(model.weights) != len(copy.weights):
        yield "weights"
    for weight, other in zip(model.weights, copy.weights, strict=True):
        # By their bytes, since NaN differs from itself.
        one, two = (np.asarray(each.value) for each in (weight, other))
        same = (one.shape, one.dtype) == (two.shape, two.dtype)
        if not same or one.tobytes() != two.tobytes():
            yield f"values of weight {weight.path!r}"


def _same_settings(layer, other):
    """Whether dtype policies and plain values in public attributes are equal."""
    # Compiling and building a model changes the attributes that every model has, and a
    # copy that was never called may lack some.
    ignored = vars(keras.Sequential(name="any")).keys()
    common = vars(layer).keys() & vars(other).keys() - ignored
    values = {name: vars(layer)[name] for name in common if name[0] != "_"}
    return layer.dtype_policy == other.dtype_policy and all(
        tree.lists_to_tuples(value) == tree.lists_to_tuples(vars(other)[name])
        for name, value in values.items()
        if _is_plain(value)
    )


def _is_plain(value):
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def _limitations(model):
    """The warning of `replace`: layers that are not sampled or repeat their masks."""
    if names := remaining(model):
        yield (
            "These layers drop without a layer of kdrop, which kdrop does not sample: "
            f"{', '.join(map(repr, names))}. Set their own rates to 0 and put "
            "layers of kdrop beside them."
        )
    names = [
        layer.name
        for layer in _layers(model)
        if isinstance(layer, keras.layers.TimeDistributed)
        and drop_layers(layer)
        and keras_internals.time_steps(layer) is None
    ]
    if names and backend.name() == "tensorflow":  # by `vectorized_map`
        yield (
            "Where the number of time steps is unknown when TensorFlow traces them, "
            f"all time steps share one mask in: {', '.join(map(repr, names))}."
        )
