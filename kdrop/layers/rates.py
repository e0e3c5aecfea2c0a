"""The rates of layers of any library: how they are called, and how they are set."""

import fnmatch
import functools
from collections.abc import Mapping, Sequence
from numbers import Integral

from kdrop import backend, keras_internals
from kdrop.errors import UserError, check_choice, is_number
from kdrop.layers.base import Drop, Noise, check_model, check_rate
from kdrop.layers.draws import Draws

# What the layers of Keras, KerasHub, KerasCV and others call the fraction to drop, and
# the fraction not dropped. `_drop_rate` is of TensorFlow's Model Garden.
_RATES = "rate drop_prob drop_path_rate drop_rate dropout_rate p dropout".split()
_RATES += ["_drop_rate"]
_SURVIVALS = "survival_probability survival_prob keep_prob".split()


def rate_attribute(layer):
    """The name of the attribute with a layer's rate; `None` if there is none."""
    names = (x for x in _RATES + _SURVIVALS if is_number(getattr(layer, x, None)))
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
    attention, drop paths, recurrent cells. Equal numbers of the layer around it follow,
    so that the model is saved with the new rates. Functions that Keras compiled are
    traced again; do so with your own (`tf.function`, `jax.jit`).

    Where a class creates its drop layers only for rates above 0, there is none to set
    until the model, with its new configuration, is saved and loaded.

    Args:
        model: A `keras.Model`, built.
        rate: A number in [0, 1) for all layers; a mapping to such numbers from names,
            paths (`"block/drop_1"`), the names around layers (`"block"`), patterns
            (`"block_*"`) or places in their order, of which later ones prevail; a
            number for each layer, as of `schedules.over_depth`; or a function of the
            depth, 0.0 at the first layer to 1.0 at the last.

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
    """
    check_model(model)
    paths = {
        layer: path
        for layer, path in keras_internals.paths_of(model).items()
        # Other layers of kdrop learn their rate.
        if drops_by_rate(layer)
        and (isinstance(layer, Drop) or not isinstance(layer, Noise))
    }
    if not paths:
        raise UserError(f"Model {model.name!r} has no layer with a rate to set.")
    rates = {x: check_rate(r) for x, r in _rates_by_layer(paths, rate).items()}
    with backend.strategy_scope(model):
        for layer, value in rates.items():
            _set_rate(model, layer, value, everywhere=is_number(rate))
    keras_internals.forget_compiled(model)
    return {paths[layer]: value for layer, value in rates.items()}


def _rates_by_layer(paths, rate):
    if isinstance(rate, Mapping):
        return {x: r for key, r in rate.items() for x in _layers_at(paths, key)}
    if callable(rate):
        last = max(len(paths) - 1, 1)
        rates = [rate(place / last) for place in range(len(paths))]
    elif isinstance(rate, Sequence) and not isinstance(rate, str):
        rates = rate
    else:
        rates = [check_rate(rate)] * len(paths)
    if len(rates) != len(paths):
        raise UserError(
            f"There are {len(paths)} layers with a rate, and {len(rates)} rates: "
            f"{', '.join(paths.values())}."
        )
    return dict(zip(paths, rates, strict=True))


def _layers_at(paths, key):
    """The layers with a name, path or pattern, those in such layers, or at a place."""
    if is_number(key, Integral) and -len(paths) <= key < len(paths):
        return [list(paths)[key]]
    fits = functools.partial(fnmatch.fnmatchcase, pat=f"*/{key}/*")
    layers = [layer for layer, path in paths.items() if fits(f"/{path}/")]
    if not layers:
        check_choice("layer with a rate", str(key), paths.values())
    return layers


def _set_rate(model, layer, rate, everywhere):
    name, old = rate_attribute(layer), rate_of(layer)
    setattr(layer, name, 1 - rate if name in _SURVIVALS else rate)
    keras_internals.add_seed_generator(layer)
    for owner in keras_internals.layers_of(model):
        # The code of an outer block may expect layers that it has not created for 0; a
        # graph's attributes are its configuration alone.
        safe = everywhere and (old > 0 or keras_internals.functional_graph(owner))
        layers = inner_layers(owner) if safe else keras_internals.direct_layers(owner)
        if layer in layers:
            for attribute, value in list(vars(owner).items()):
                if "drop" in attribute and is_number(value) and value == old:
                    setattr(owner, attribute, rate)
