"""The builders of `kdrop.models`."""

from numbers import Real

import keras

from kdrop.models.places import Network
from kdrop.schedules import over_depth


def spiral_mlp(
    dropout=None, rate=0.3, *, hidden=(256, 256), classes=3, input_shape=(2,), **common
):
    """ReLU layers of the widths in `hidden`, each followed by a place for dropout.

    >>> model = kdrop.models.spiral_mlp(kdrop.InvertedDropout, 0.2, hidden=(64,))
    >>> [layer.name for layer in kdrop.drop_layers(model)], model.output_shape
    (['drop_1'], (None, 3))
    """
    common |= {"classes": classes, "input_shape": input_shape}
    network = Network(dropout, rate, len(hidden), **common)
    layers = network.inputs(flat=True) + network.hidden(hidden)
    return network.sequential("spiral_mlp", layers)


def mnist_mlp(
    dropout=None, rate=0.25, *, hidden=(1024, 1024), input_shape=(28, 28, 1), **common
):
    """`spiral_mlp` for flattened images, as wide as those of Srivastava et al. (2014).

    >>> model = kdrop.models.mnist_mlp(kdrop.GaussianDropout, hidden=(32,))
    >>> model.count_params() - model.get_layer("standardise").count_params()
    25450
    """
    network = Network(dropout, rate, len(hidden), input_shape=input_shape, **common)
    layers = network.inputs(flat=True) + network.hidden(hidden)
    return network.sequential("mnist_mlp", layers)


def concat_mlp(
    dropout=None, rate=0.5, *, hidden=(512, 512), input_shape=(28, 28, 1), **common
):
    """ReLU layers with dropout; the output layer sees all of them concatenated.

    >>> model = kdrop.models.concat_mlp(kdrop.ExactDropout, hidden=(32, 16))
    >>> model.get_layer("probabilities").input.shape
    (None, 48)
    """
    network = Network(dropout, rate, len(hidden), input_shape=input_shape, **common)
    inputs, *layers = network.inputs(flat=True)
    outputs, hidden_outputs = inputs, []
    for number, units in enumerate(hidden, start=1):
        outputs = _through(layers + network.hidden([units], number), outputs)
        hidden_outputs.append(outputs)
        layers = []
    outputs = network.head()(keras.layers.Concatenate()(hidden_outputs))
    return keras.Model(inputs, outputs, name="concat_mlp")


def alexnet(dropout=None, rate=0.5, *, hidden=(4096, 4096), **common):
    """Five convolutions at 224 x 224, then dropout before each layer of `hidden`.

    Images of another size are resized inside the model. The layout is the single
    column of [Krizhevsky, 2014](https://arxiv.org/abs/1404.5997).

    >>> model = kdrop.models.alexnet(kdrop.InvertedDropout, hidden=(16,), classes=5)
    >>> model.input_shape, model.output_shape
    ((None, 32, 32, 3), (None, 5))
    """
    network = Network(dropout, rate, len(hidden), **common)
    layers = network.inputs()
    if tuple(network.input_shape[:2]) != (224, 224):
        layers.append(keras.layers.Resizing(224, 224))
    layers += [
        keras.layers.ZeroPadding2D(2),
        network.conv(64, 11, strides=4, activation="relu"),
        keras.layers.MaxPooling2D(3, strides=2),
        network.conv(192, 5, padding="same", activation="relu"),
        keras.layers.MaxPooling2D(3, strides=2),
        network.conv(384, 3, padding="same", activation="relu"),
        network.conv(256, 3, padding="same", activation="relu"),
        network.conv(256, 3, padding="same", activation="relu"),
        keras.layers.MaxPooling2D(3, strides=2),
        keras.layers.Flatten(),
    ]
    for number, units in enumerate(hidden, start=1):
        layers += [*network.drop(number), network.dense(units, number)]
    return network.sequential("alexnet", layers)


def alexnet32(dropout=None, rate=None, *, width=32, hidden=(1024,), **common):
    """`alexnet` at the scale of 32 x 32 images, with batch normalisation.

    The first convolution has `width` filters, the others 3, 6, 4 and 4 times as many.
    Places for dropout follow each of the three poolings and each dense layer; the
    default rates are 0.05, 0.05 and 0.1, then 0.25: those of `train.py cifar10`.

    >>> model = kdrop.models.alexnet32(kdrop.DropBlock2D, width=4, hidden=(16,))
    >>> [(type(x).__name__, x.rate) for x in kdrop.drop_layers(model)[1:]]
    [('DropBlock2D', 0.05), ('DropBlock2D', 0.1), ('InvertedDropout', 0.25)]
    """
    rate = (0.05, 0.05, 0.1, *[0.25] * len(hidden)) if rate is None else rate
    network = Network(dropout, rate, 3 + len(hidden), **common)
    layers = network.inputs()
    # For each convolution its filters, and the place after it if it is pooled.
    for times, number in [(1, 1), (3, 2), (6, None), (4, None), (4, 3)]:
        conv = network.conv(times * width, 3, number, padding="same", use_bias=False)
        # Pooling first leaves a quarter of the values to normalise.
        layers += [conv, keras.layers.MaxPooling2D(2)] if number else [conv]
        layers += _activation(network)
        if number:
            layers += network.drop(number, "feature maps")
    layers += [keras.layers.Flatten(), *network.hidden(hidden, first=4)]
    return network.sequential("alexnet32", layers)


def resnet32(dropout=None, rate=0.025, *, width=16, depth=2, hidden=(), **common):
    """A residual network for 32 x 32 images, with one place for dropout in each block.

    Three stages of `depth` blocks have `width`, 2 and 4 times as many filters on maps
    of the whole, half and a quarter of the image's size. The mean of each map goes to
    the dense layers of `hidden` and the classifier. A block adds to its inputs the
    outputs of its branch: normalise, ReLU and convolve, twice. `DropPath` and
    `StochasticDepth` are the last layer of the branch, others are before its second
    convolution, which `DropConnectConv2D` replaces. A single rate is that of the last
    block; the others are smaller in proportion to their depth. The default is for short
    training, such as that of `train.py cifar10`.

    >>> model = kdrop.models.resnet32(kdrop.DropPath, 0.4, width=4, depth=1)
    >>> [round(layer.rate, 3) for layer in kdrop.drop_layers(model)]
    [0.133, 0.267, 0.4]

    Reference: [He et al., 2016](https://arxiv.org/abs/1603.05027), for the blocks;
    [Zagoruyko and Komodakis, 2016](https://arxiv.org/abs/1605.07146), section 2.4, for
    dropout inside them; [Huang et al., 2016](https://arxiv.org/abs/1603.09382),
    section 3, for dropping them; [Ghiasi et al., 2018](https://arxiv.org/abs/1810.12890),
    section 4.1, for blocks of feature maps after convolutions
    """
    places = 3 * depth + len(hidden)
    if isinstance(rate, Real):
        rate = [*over_depth(rate, 3 * depth), *[rate] * len(hidden)]
    network = Network(dropout, rate, places, **common)
    inputs, *layers = network.inputs()
    stem = network.conv(width, 3, padding="same", use_bias=False)
    outputs = _through([*layers, stem], inputs)
    for block in range(3 * depth):
        stage, position = divmod(block, depth)
        filters, number = width * 2**stage, block + 1
        strides = 2 if stage and not position else 1
        conv = {"padding": "same", "use_bias": False}
        branch = _through(_activation(network), outputs)
        if strides > 1:
            shortcut = network.conv(filters, 1, strides=2, use_bias=False)
            outputs = shortcut(branch)
        layers = [
            network.conv(filters, 3, strides=strides, **conv),
            *_activation(network),
            *network.drop(number, "feature maps"),
            network.conv(filters, 3, number, **conv),
            *network.drop(number, "residual branches"),
        ]
        outputs = keras.layers.Add()([outputs, _through(layers, branch)])
    layers = [*_activation(network), keras.layers.GlobalAveragePooling2D()]
    layers += [*network.hidden(hidden, first=3 * depth + 1), network.head()]
    return keras.Model(inputs, _through(layers, outputs), name="resnet32")


def srivastava_cnn(
    dropout=None, rate=None, *, hidden=(2048, 2048), input_rate=0.1, max_norm=4.0,
    **common,
):  # fmt: skip
    """Three convolutions, then dense layers, with dropout after each of them all.

    The default rates are 0.25, 0.25 and then 0.5.
    Reference: [Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html),
    appendix B.2

    >>> model = kdrop.models.srivastava_cnn(kdrop.InvertedDropout, hidden=(16,))
    >>> [layer.rate for layer in kdrop.drop_layers(model)]
    [0.1, 0.25, 0.25, 0.5, 0.5]
    """
    rate = (0.25, 0.25, 0.5, *[0.5] * len(hidden)) if rate is None else rate
    common |= {"input_rate": input_rate, "max_norm": max_norm}
    network = Network(dropout, rate, 3 + len(hidden), **common)
    layers = network.inputs()
    for number, filters in enumerate((96, 128, 256), start=1):
        layers += [
            network.conv(filters, 5, number, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(3, strides=2, padding="same"),
            *network.drop(number, "feature maps"),
        ]
    layers += [keras.layers.Flatten(), *network.hidden(hidden, first=4)]
    return network.sequential("srivastava_cnn", layers)


def _activation(network):
    penalties = network.penalties("gamma", "beta")
    normalisation = keras.layers.BatchNormalization(momentum=0.9, **penalties)
    return [normalisation, keras.layers.ReLU()]


def _through(layers, outputs):
    """The outputs of a chain of layers."""
    for layer in layers:
        outputs = layer(outputs)
    return outputs
