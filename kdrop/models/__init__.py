"""Networks with places for dropout.

A builder takes `(dropout, rate)`, sizes, `classes` and `input_shape`. `dropout` is

    a layer class of kdrop   used where `dropout.place` says that it fits; layers for
                             feature maps and residual branches leave the other places
                             to `InvertedDropout`
    any other callable       called as `dropout(rate, seed=seed, name="drop_1")` at
                             each place: a layer class of Keras, a `functools.partial`
    None                     no dropout

`rate` is the fraction dropped: one for all places (in `resnet32` the largest of them),
or one for each. Further keywords:

    input_rate      fraction of the standardised inputs to drop; 0 adds no layer
    l1, l2          weights of the absolute and squared parameters of hidden layers
    max_norm        largest norm of the weights into a hidden unit; 0 for no limit
    norm_penalty    coefficient of a `NormPenalty` of every parameter of every layer
    examples        training examples, for layers whose loss depends on their number
    seed            of the drop layers

The models take raw inputs, return probabilities (a single one, by a sigmoid, for
`classes=1`) and are not compiled. Their first layer, "standardise", is a
`keras.layers.Normalization` that the caller adapts to the training inputs. `ValueError`
is raised for a wrong number of rates, a negative penalty, and a layer of kdrop that
the network has no place for.
"""

from kdrop.models.losses import NormPenalty, SmoothedCrossentropy
from kdrop.models.networks import (
    alexnet,
    alexnet32,
    concat_mlp,
    mnist_mlp,
    resnet32,
    spiral_mlp,
    srivastava_cnn,
)

_BUILDERS = (
    *(spiral_mlp, mnist_mlp, concat_mlp),
    *(alexnet, alexnet32, resnet32, srivastava_cnn),
)
MODELS = {builder.__name__: builder for builder in _BUILDERS}
__all__ = ["MODELS", "NormPenalty", "SmoothedCrossentropy", *MODELS]
