"""The rates of layers of any library: how they are called, and how they are set."""

import fnmatch
from collections.abc import Mapping, Sequence
from numbers import Integral

import keras

from kdrop import backend, keras_internals
from kdrop.errors import UserError, check, check_choice, is_number
from kdrop.layers.base import Drop, Noise, check_rate
from kdrop.layers.draws import Draws

# What the layers of Keras, KerasHub, KerasCV and others call the fraction to drop, and
# the fraction not dropped.
_RATES = "rate drop_prob drop_path_rate drop_rate dropout_rate p dropout".split()
_SURVIVALS = "survival_probability survival_prob keep_prob".split()


def rate_attribute(layer):
    """The name of the attribute with a layer's rate; `None` if there is none."""
    names = (x for x in (*_RATES, *_SURVIVALS) if is_number(getattr(layer, x, None)))
    return next(names, None)


def rate_of(layer):
    """The fraction that a layer is asked to drop; `None` if it states none."""
    name = rate_attribute(layer)
    if name is None:
        return None
    value = float(getattr(layer, name))
    return 1 - value if name in _SURVIVALS else value


def inner_layers(layer):
    """The layers in a layer, at any depth, that are not the state of a drop layer."""
    layers = keras_internals.layers_of(layer)
    return [x for x in layers if x is not layer and not isinstance(x, Draws)]


def drops_by_rate(layer):
    """Whether a layer, with no other in it, has a rate and the signs of dropping."""
    attribute = rate_attribute(layer)
    if attribute is None or inner_layers(layer):
        return False
    generates = keras_internals.has_seed_generator(layer)
    return has_drop_name(layer) or generates or attribute == "dropout"


def has_drop_name(layer):
    """Whether a layer is one of kdrop, or its class is named as one that drops."""
    name = type(layer).__name__.lower()
    return isinstance(layer, Noise) or "drop" in name or "stochasticdepth" in name


def set_dropout(model, rate):
    """Set the rates of a model's layers, of kdrop, Keras and others, in place.

    It reaches every layer that states a rate, at 0 too: drop layers in blocks and
    attention, drop paths, the `dropout` of recurrent cells and of `Attention`. Numbers
    of the layer around it that are equal to the old rate (`MultiHeadAttention`, blocks
    of KerasHub) follow, so that the model is saved with the new rates. Functions that
    Keras compiled are traced again; do so with your own (`tf.function`, `jax.jit`).
    Inside a running `fit` use `layer.rate` or `RateSchedule`, with kdrop's layers.

    Where a class creates its drop layers only for rates above 0, there is none to set
    until the model, with its new configuration, is saved and loaded.

    Args:
        model: A `keras.Model`, built.
        rate: One of
            - a number in [0, 1) for all layers;
            - a mapping to such numbers from names (`"drop_1"`), paths
              (`"block/drop_1"`), the names around a layer (`"block"`), patterns
              (`"block_*"`) or the layers' places in their order; later ones prevail;
            - a sequence with a number for each layer, as of `schedules.over_depth`;
            - a function of the depth, from 0.0 at the first layer to 1.0 at the last.

    Returns:
        The rates of the layers that were set, by their paths.

    Raises:
        ValueError: If there is no such layer, or a rate is not in [0, 1). The model is
            then unchanged.

    >>> model = keras.Sequential([keras.Input((4,))])
    >>> model.add(keras.layers.Dropout(0.0, name="first"))
    >>> model.add(kdrop.InvertedDropout(0.5, name="last"))
    >>> kdrop.set_dropout(model, lambda depth: 0.25 + 0.25 * depth)
    {'first': 0.25, 'last': 0.5}
    >>> kdrop.set_dropout(model, {"la*": 0.0})
    {'last': 0.0}
    """
    check("model", model, isinstance(model, keras.Model), "a keras.Model")
    paths = {
        layer: path
        for layer, path in keras_internals.paths_of(model).items()
        if drops_by_rate(layer) and not _learns_rate(layer)
    }
    if not paths:
        raise UserError(f"Model {model.name!r} has no layer with a rate to set.")
    rates = {x: check_rate(r) for x, r in _rates_by_layer(paths, rate).items()}
    with backend.strategy_scope(model):
        for layer, value in rates.items():
            _set_rate(model, layer, value, everywhere=is_number(rate))
    if not all(isinstance(layer, Drop) for layer in rates):
        keras_internals.forget_compiled(model)
    return {paths[layer]: value for layer, value in rates.items()}


def _learns_rate(layer):
    return isinstance(layer, Noise) and not isinstance(layer, Drop)


def _rates_by_layer(paths, rate):
    layers = list(paths)
    if is_number(rate):
        return dict.fromkeys(layers, rate)
    if callable(rate):
        last = max(len(layers) - 1, 1)
        return {layer: rate(place / last) for place, layer in enumerate(layers)}
    if isinstance(rate, Mapping):
        return {x: r for key, r in rate.items() for x in layers_at(paths, key)}
    if not isinstance(rate, Sequence) or isinstance(rate, str):
        check_rate(rate)
    if len(rate) != len(layers):
        raise UserError(
            f"There are {len(layers)} layers with a rate, and {len(rate)} rates: "
            f"{', '.join(paths.values())}."
        )
    return dict(zip(layers, rate, strict=True))


def layers_at(paths, key):
    """The layers with a name, path or pattern, those in such layers, or at a place.

    Raises `UserError`, which names the nearest choice, if there is none.
    """
    if is_number(key, Integral) and -len(paths) <= key < len(paths):
        return [list(paths)[key]]
    found = []
    for layer, path in paths.items():
        names = path.split("/")
        around = ["/".join(names[: i + 1]) for i in range(len(names))]
        if any(fnmatch.fnmatchcase(x, str(key)) for x in (*around, *names)):
            found.append(layer)
    if not found:
        check_choice("layer with a rate", str(key), paths.values())
    return found


def _set_rate(model, layer, rate, everywhere):
    name, old = rate_attribute(layer), rate_of(layer)
    if isinstance(layer, Drop):
        layer.rate = rate
    else:
        setattr(layer, name, 1 - rate if name in _SURVIVALS else rate)
        keras_internals.add_seed_generator(layer)
    for owner in keras_internals.layers_of(model):
        around = everywhere and layer in inner_layers(owner)
        # The code of an outer block may expect layers that it has not created for 0; a
        # graph's attributes are its configuration alone.
        safe = old > 0 or keras_internals.functional_graph(owner)
        if layer in owner._layers or (around and safe):
            for attribute, value in list(vars(owner).items()):
                if "drop" in attribute and is_number(value) and value == old:
                    setattr(owner, attribute, rate)
