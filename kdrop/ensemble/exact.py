"""The exact ensemble: all sub-networks of a small network, by their probability."""

import math
from typing import NamedTuple

import numpy as np
from keras import ops, tree

from kdrop.ensemble.compiled_sampler import prepare
from kdrop.ensemble.split import SplitModel, length, rows_of
from kdrop.ensemble.uncertainty import are_probabilities, two_columns
from kdrop.keras_internals import call_at_inference
from kdrop.layers.base import active_drop_layers, check_model
from kdrop.masks import kernels, run

MAX_DECISIONS = 20


class Subnetworks(NamedTuple):
    """The exact ensemble of a network, and how far weight scaling is from it."""

    count: int  #: of sub-networks
    arithmetic: np.ndarray  #: (examples, ...): mean of their outputs
    geometric: np.ndarray | None  #: normalised; None if outputs are no probabilities
    weight_scaling: np.ndarray  #: (examples, ...): outputs of the model at inference
    difference: float  #: largest distance of weight scaling from the arithmetic mean


def subnetworks(model, inputs) -> Subnetworks:
    """Compute the exact ensemble of all sub-networks, weighted by their probability.

    For a linear network weight scaling is their arithmetic mean, for softmax regression
    their normalised geometric mean; for other networks it is an approximation.

    Args:
        model: A Sequential or Functional `keras.Model` with one output, whose drop
            layers of kdrop make at most 20 keep-or-drop decisions for an example.
        inputs: An array or, as the model takes them, a list or dictionary of arrays.

    Raises:
        ValueError: If there are no decisions or too many, or a drop layer does
            anything other than keep or drop single units.

    Reference: [Hinton et al., 2012](https://arxiv.org/abs/1207.0580);
    [Baldi and Sadowski, 2013](https://papers.nips.cc/paper/4878-understanding-dropout),
    section 2

    >>> model = keras.Sequential([keras.Input((2,)), kdrop.VanillaDropout(0.5)])
    >>> ensemble = kdrop.subnetworks(model, numpy.array([[2.0, 6.0]]))
    >>> ensemble.count, ensemble.arithmetic.tolist(), ensemble.difference
    (4, [[1.0, 3.0]], 0.0)
    """
    check_model(model)
    inputs = tree.map_structure(ops.convert_to_tensor, inputs)
    prepare(model, inputs)
    split, examples, dropped_calls = SplitModel(model), length(inputs), []

    def record_decisions(operation, *args, **kwargs):
        if active_drop_layers(operation):
            shape = _decision_shape(operation, *args, **kwargs)
            dropped_calls.append((operation, shape))
        return call_at_inference(operation, *args, **kwargs)

    prefix_outputs = split.prefix(inputs)
    scaled = _float64(split.suffix(prefix_outputs, record_decisions))
    thresholds = [kernels.threshold(layer.rate) for layer, _ in dropped_calls]
    sizes = [math.prod(shape) for _, shape in dropped_calls]
    rates = np.repeat(thresholds, sizes) / 2**32
    if len(rates) > MAX_DECISIONS:
        raise ValueError(
            f"Model {model.name!r} has 2^{len(rates)} sub-networks for an example; at "
            f"most 2^{MAX_DECISIONS} are computed. `kdrop.sample` draws some of them."
        )
    arithmetic, logarithm = np.zeros_like(scaled), np.zeros_like(two_columns(scaled))
    count, size = 2 ** len(rates), max(1, 2**16 // max(1, examples))
    for numbers in np.array_split(np.arange(count), -(-count // size)):
        # Bit i of a sub-network's number is its decision i.
        dropped = (numbers[:, None] >> np.arange(len(rates))) & 1 == 1
        weights = np.where(dropped, rates, 1 - rates).prod(axis=1)
        rows = rows_of(prefix_outputs, np.tile(np.arange(examples), len(numbers)))
        masks = np.repeat(dropped, examples, axis=0)
        outputs = _float64(split.suffix(rows, _call_with_masks(dropped_calls, masks)))
        outputs = outputs.reshape(len(numbers), *scaled.shape)
        arithmetic += np.tensordot(weights, outputs, 1)
        if logarithm is not None and are_probabilities(outputs):
            with np.errstate(divide="ignore"):
                logarithm += np.tensordot(weights, np.log(two_columns(outputs)), 1)
        else:
            logarithm = None
    geometric = None
    if logarithm is not None:
        # Not a number where each class has probability 0 in some sub-network.
        with np.errstate(invalid="ignore"):
            mean = np.exp(logarithm - logarithm.max(axis=-1, keepdims=True))
        mean = mean / mean.sum(axis=-1, keepdims=True)
        geometric = mean[..., -scaled.shape[-1] :]
    difference = float(np.abs(scaled - arithmetic).max(initial=0))
    return Subnetworks(count, arithmetic, geometric, scaled, difference)


def _float64(tensor):
    return ops.convert_to_numpy(tensor).astype("float64")


def _decision_shape(layer, inputs, *args, **kwargs):
    """The shape of the decisions that a drop layer makes for one example."""
    if getattr(getattr(layer, "kernel", None), "noise", None) is not kernels.dropped:
        raise ValueError(
            f"Sub-networks can be counted where layers drop or keep single units, and "
            f"in the graph of a Sequential or Functional model. Received: {layer}"
        )
    return run.broadcast_sizes(layer.noise_shape, inputs.shape)[1:]


def _call_with_masks(dropped_calls, masks):
    """A call for `SplitModel.suffix` that drops the units marked in `masks`."""
    ends = np.cumsum([math.prod(shape) for _, shape in dropped_calls])
    calls = zip(dropped_calls, np.split(masks, ends[:-1], axis=1), strict=True)

    def call(operation, *args, **kwargs):
        if not active_drop_layers(operation):
            return call_at_inference(operation, *args, **kwargs)
        (layer, shape), mask = next(calls)
        mask = ops.convert_to_tensor(mask.reshape(-1, *shape))
        draw = ops.convert_to_tensor(layer.draws.generator.state)
        inputs = ops.convert_to_tensor(args[0])
        return layer.kernel.forward(inputs, ops.broadcast_to(mask, inputs.shape), draw)

    return call
