"""Put drop layers into networks that have none."""

import fnmatch

import keras

from kdrop import keras_internals
from kdrop.errors import UserError, check_choice


def insert(model, after, layer):
    """Put a drop layer after layers of a Functional or Sequential model.

    In a residual network, after the last layer of each branch, so before the addition:

        kdrop.insert(ResNet50(), "conv*_block*_3_bn", kdrop.DropPath(0.1))

    Layers in nested Functional and Sequential models are reached too. Names, layers and
    weights are those of `model`, which shares them and does not change. Keras orders
    weights by depth: load weight files of `model` into `model` itself.

    Args:
        model: A Functional or Sequential `keras.Model`; of a class with a constructor
            of its own, as of KerasHub, the result is a `keras.Model`.
        after: The name of a layer, a path (`"resnet50/conv1_bn"`), a pattern
            (`"*_bn"`), or a function from a layer to whether one is put after it.
        layer: A layer, of which each place gets a copy with the name of the layer
            before it as a prefix; or a function from the name of that layer and its
            depth among the places, 0.0 to 1.0, to the layer for the place.

    Returns:
        The new model, not compiled.

    Raises:
        ValueError: If no layer fits `after`, or the model has no graph of layers.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="a")])
    >>> dropped = kdrop.insert(model, "a", kdrop.InvertedDropout(0.3, name="drop"))
    >>> [layer.name for layer in dropped.layers]
    ['a', 'a_drop']
    >>> dropped.layers[0] is model.layers[0]
    True
    """
    if not _has_graph(model):
        raise UserError(
            "insert() takes a Functional or Sequential model, built or with an input "
            f"shape. Received: {model!r}"
        )
    paths = dict(_paths(model))
    places = [x for x, path in paths.items() if _fits(after, x, path)]
    if not places and not callable(after):
        check_choice("layer", after, paths.values())
    if not places:
        raise UserError(f"`after` fits no layer of model {model.name!r}.")
    if not callable(layer) or isinstance(layer, keras.Layer):
        template = layer

        def layer(name, depth):
            config = template.get_config()
            return type(template).from_config(
                {**config, "name": f"{name}_{template.name}"}
            )

    last = max(len(places) - 1, 1)
    new = {x: layer(x.name, place / last) for place, x in enumerate(places)}
    return _rebuilt(model, new)


def _has_graph(model):
    return isinstance(model, keras.Model) and bool(
        keras_internals.functional_graph(model)
    )


def _paths(model, prefix=""):
    """The layers in a graph and the graphs in it, in the order of execution."""
    for node in keras_internals.graph_calls(keras_internals.functional_graph(model)):
        layer = node.operation
        if isinstance(layer, keras.Layer):
            yield layer, prefix + layer.name
            if _has_graph(layer):
                yield from _paths(layer, f"{prefix}{layer.name}/")


def _fits(after, layer, path):
    if callable(after):
        return bool(after(layer))
    return any(fnmatch.fnmatchcase(name, after) for name in (layer.name, path))


def _rebuilt(model, new):
    """The model on new inputs, with the same layers and the `new` ones after them."""
    rebuilt = {}

    def operation(layer):
        if isinstance(layer, keras.Model) and _has_graph(layer):
            if any(inner in new for inner, _ in _paths(layer)):
                rebuilt[layer] = rebuilt.get(layer) or _rebuilt(layer, new)
        return rebuilt.get(layer, layer)

    if isinstance(model, keras.Sequential):
        (inputs,) = keras_internals.functional_graph(model).inputs
        layers = [keras.Input(batch_shape=inputs.shape, dtype=inputs.dtype)]
        for layer in model.layers:
            layers += [operation(layer), *([new[layer]] if layer in new else [])]
        return keras.Sequential(layers, name=model.name)

    def call(layer, *args, **kwargs):
        outputs = layer(*args, **kwargs)
        originals = (old for old, other in rebuilt.items() if other is layer)
        place = next(originals, layer)
        return new[place](outputs) if place in new else outputs

    return keras.models.clone_model(model, clone_function=operation, call_function=call)
