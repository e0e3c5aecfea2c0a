"""The exact ensemble: all sub-networks of a small network, each by its probability."""

import math
from typing import NamedTuple

import numpy as np
from keras import ops, tree

from kdrop.ensemble.sampling import (
    _build,
    _check_drops,
    _check_model,
    _check_rates,
    warn_of_others,
)
from kdrop.ensemble.split import Stages, at_inference, length, rows_of, stochastic
from kdrop.ensemble.uncertainty import are_probabilities, two_columns
from kdrop.masks import kernels

MOST_DECISIONS = 20  # of a model whose sub-networks are all computed


class Subnetworks(NamedTuple):
    """The vote of all sub-networks, and how far weight scaling is from it."""

    count: int  # of sub-networks
    arithmetic: np.ndarray  # (examples, ...): mean of their outputs
    geometric: np.ndarray | None  # normalised; None if outputs are no probabilities
    weight_scaling: np.ndarray  # (examples, ...): outputs of the model at inference
    difference: float  # largest of weight scaling from the arithmetic mean


def subnetworks(model, inputs):
    """The exact ensemble: all sub-networks of a small network, each by its probability.

    A sub-network is one choice of what every drop layer drops. For a linear network
    weight scaling is their arithmetic mean, for softmax regression their normalised
    geometric mean; for others it approximates them.

    Args:
        model: A Sequential or Functional `keras.Model` with one output, whose drop
            layers of kdrop decide at most 20 times for an example.
        inputs: An array or, as the model takes them, a list or dictionary of arrays.

    Returns:
        `Subnetworks`, a named tuple.

    Raises:
        ValueError: If there is nothing to drop or too much, or a drop layer does
            something else than to drop or keep.

    Reference: [Hinton et al., 2012](https://arxiv.org/abs/1207.0580);
    [Baldi and Sadowski, 2013](https://papers.nips.cc/paper/4878-understanding-dropout),
    section 2
    """
    _check_model(model)
    inputs = tree.map_structure(ops.convert_to_tensor, inputs)
    _build(model, inputs)
    _check_drops(model)
    _check_rates(model)
    warn_of_others(model)
    stages, examples, places = Stages(model), length(inputs), []

    def noting_decisions(operation, *args, **kwargs):
        if stochastic(operation):
            places.append((operation, _decisions(operation, *args, **kwargs)))
        return at_inference(operation, *args, **kwargs)

    shared = stages.once(inputs)
    scaled = ops.convert_to_numpy(stages.vary(shared, noting_decisions)).astype(
        "float64"
    )
    rates = np.concatenate(
        [np.full(math.prod(s), _exact_rate(layer)) for layer, s in places]
    )
    if len(rates) > MOST_DECISIONS:
        raise ValueError(
            f"Model {model.name!r} has 2^{len(rates)} sub-networks for an example; at "
            f"most 2^{MOST_DECISIONS} are computed. `kdrop.sample` draws some of them."
        )
    arithmetic, logarithm = np.zeros_like(scaled), np.zeros_like(two_columns(scaled))
    count, size = 2 ** len(rates), max(1, 2**16 // max(1, examples))
    for first in range(0, count, size):
        which = np.arange(first, min(first + size, count))
        dropped = which[:, None] >> np.arange(len(rates)) & 1 == 1
        weights = np.where(dropped, rates, 1 - rates).prod(axis=1)
        masks = np.repeat(dropped, examples, axis=0)
        stacked = rows_of(shared, np.tile(np.arange(examples), len(which)))
        outputs = stages.vary(stacked, _thinned(places, masks))
        outputs = ops.convert_to_numpy(outputs).astype("float64")
        outputs = outputs.reshape(len(which), *scaled.shape)
        arithmetic += np.tensordot(weights, outputs, 1)
        if logarithm is not None and are_probabilities(outputs):
            with np.errstate(divide="ignore"):
                logarithm += np.tensordot(weights, np.log(two_columns(outputs)), 1)
        else:
            logarithm = None
    geometric = None if logarithm is None else _normalised(logarithm, scaled)
    difference = float(np.abs(scaled - arithmetic).max(initial=0))
    return Subnetworks(count, arithmetic, geometric, scaled, difference)


def _exact_rate(layer):
    return kernels.threshold(layer.rate) / 2**32


def _decisions(layer, inputs, *args, **kwargs):
    """The shape of what a drop layer decides for one example."""
    if getattr(getattr(layer, "kernel", None), "noise", None) is not kernels.dropped:
        raise ValueError(
            f"Sub-networks can be counted where layers drop or keep single units, and "
            f"in the graph of a Sequential or Functional model. Received: {layer}"
        )
    shape = layer.noise_shape or (None,) * len(inputs.shape)
    shape = (1,) * (len(inputs.shape) - len(shape)) + shape
    return [n or size for n, size in zip(shape, inputs.shape, strict=True)][1:]


def _thinned(places, masks):
    """A call for `Stages.vary` in which each row drops what its row of masks says."""
    places, start = iter(places), 0

    def call(operation, *args, **kwargs):
        nonlocal start
        if not stochastic(operation):
            return at_inference(operation, *args, **kwargs)
        layer, shape = next(places)
        end = start + math.prod(shape)
        mask = ops.reshape(ops.convert_to_tensor(masks[:, start:end]), (-1, *shape))
        start = end
        draw = ops.convert_to_tensor(layer.draws.generator.state)
        inputs = ops.convert_to_tensor(args[0])
        return layer.kernel.forward(inputs, ops.broadcast_to(mask, inputs.shape), draw)

    return call


def _normalised(logarithm, like):
    with np.errstate(invalid="ignore"):  # no class that all sub-networks hold possible
        mean = np.exp(logarithm - logarithm.max(axis=-1, keepdims=True))
    return (mean / mean.sum(axis=-1, keepdims=True))[..., -like.shape[-1] :]
