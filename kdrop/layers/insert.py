"""Put drop layers into networks that have none."""

import functools
from fnmatch import fnmatchcase

import keras

from kdrop import keras_internals
from kdrop.errors import UserError, check_choice


def insert(model, after, layer):
    """Put a drop layer after layers of a Functional or Sequential model.

    In a residual network, it belongs after the last layer of each branch:

        kdrop.insert(ResNet50(), "conv*_block*_3_bn", kdrop.DropPath(0.1))

    Layers in nested Functional and Sequential models are reached too. The new model
    shares names, layers and weights with `model`, which does not change. Keras orders
    weights by depth: load weight files of `model` into `model` itself.

    Args:
        model: A Functional or Sequential `keras.Model`; of a class with a constructor
            of its own, as of KerasHub, the result is a `keras.Model`.
        after: The name of a layer, a path (`"resnet50/conv1_bn"`), a pattern
            (`"*_bn"`), or a function from a layer to whether one is put after it.
        layer: A layer, of which each place gets a copy with the name of the layer
            before it as a prefix; or a function from that name and the depth, 0.0 at
            the first place to 1.0 at the last, to the layer for the place.

    Returns:
        The new model. Compile it: Keras does so for compiled Functional models alone.

    Raises:
        ValueError: If no layer fits `after`, or the model has no graph of layers.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="a")])
    >>> dropped = kdrop.insert(model, "a", kdrop.InvertedDropout(0.3, name="drop"))
    >>> [layer.name for layer in dropped.layers]
    ['a', 'a_drop']
    """
    if not _graph(model):
        raise UserError(
            "insert() takes a Functional or Sequential model, built or with an input "
            f"shape. Received: {model!r}"
        )
    paths = dict(_paths(model))
    named = {x for x, path in paths.items() if fnmatchcase(f"/{path}", f"*/{after}")}
    places = [x for x in paths if (after(x) if callable(after) else x in named)]
    if not places and callable(after):
        raise UserError(f"`after` fits no layer of model {model.name!r}.")
    if not places:
        check_choice("layer", after, paths.values())
    last, new = max(len(places) - 1, 1), {}
    for number, place in enumerate(places):
        if isinstance(layer, keras.Layer):
            config = {**layer.get_config(), "name": f"{place.name}_{layer.name}"}
            new[place] = type(layer).from_config(config)
        else:
            new[place] = layer(place.name, number / last)
    return _rebuilt(model, new)


def _graph(model):
    return isinstance(model, keras.Model) and keras_internals.functional_graph(model)


def _paths(model, prefix=""):
    """The layers in a graph and the graphs in it, in the order of execution."""
    for node in keras_internals.graph_calls(_graph(model)):
        layer = node.operation
        if isinstance(layer, keras.Layer):
            yield layer, prefix + layer.name
            if _graph(layer):
                yield from _paths(layer, f"{prefix}{layer.name}/")


def _rebuilt(model, new):
    """The model on new inputs, with the same layers and the `new` ones after them."""
    after = dict(new)

    @functools.cache
    def operation(layer):
        if not _graph(layer) or not any(inner in new for inner, _ in _paths(layer)):
            return layer
        rebuilt = _rebuilt(layer, new)
        after[rebuilt] = new.get(layer)
        return rebuilt

    def call(layer, *args, **kwargs):
        outputs = layer(*args, **kwargs)
        return after[layer](outputs) if after.get(layer) else outputs

    if not isinstance(model, keras.Sequential):
        return keras.models.clone_model(
            model, clone_function=operation, call_function=call
        )
    (inputs,) = keras_internals.functional_graph(model).inputs
    layers = [keras.Input(batch_shape=inputs.shape, dtype=inputs.dtype)]
    for layer in map(operation, model.layers):
        layers += [layer, *([after[layer]] if after.get(layer) else [])]
    return keras.Sequential(layers, name=model.name)
