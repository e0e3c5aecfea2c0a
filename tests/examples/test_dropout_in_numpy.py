import math

import numpy as np
import pytest
from gradients import SIGMAS, all_masks, assert_gradient, rng
from numpy.testing import assert_allclose, assert_array_equal

from examples.dropout_in_numpy import (
    Adam,
    Dense,
    Dropout,
    Network,
    draw_mask,
    dropout,
    exact_count,
    exact_mask,
    inverted,
    inverted_backward,
    norm_penalty,
    sigmoid,
    sigmoid_layer,
    sigmoid_layer_backward,
    softmax_cross_entropy,
    standout_keep_prob,
    standout_keep_prob_backward,
    vanilla,
    vanilla_backward,
    vanilla_inference,
)

# Dropping, and its gradient


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 0.9])
def test_the_mean_in_training_is_the_value_at_inference(rate: float) -> None:
    x = rng().standard_normal((2, 5))
    masks = list(all_masks(5, rate))
    assert math.isclose(sum(p for p, _ in masks), 1)
    assert_allclose(sum(p * inverted(x, m, rate) for p, m in masks), x)
    assert_allclose(
        sum(p * vanilla(x, m) for p, m in masks), vanilla_inference(x, rate)
    )
    second_moment = sum(p * inverted(x, m, rate) ** 2 for p, m in masks)
    assert_allclose(second_moment, x**2 / (1 - rate))


def test_gradients_of_dropping() -> None:
    x, dy = rng().standard_normal((2, 3, 5))
    mask = draw_mask(x.shape, 0.4, rng(1))
    assert_gradient(
        inverted_backward(dy, mask, 0.4), lambda: np.sum(dy * inverted(x, mask, 0.4)), x
    )
    assert_gradient(
        vanilla_backward(dy, mask), lambda: np.sum(dy * vanilla(x, mask)), x
    )


def test_a_dropped_nan_is_zero_and_a_mask_broadcasts() -> None:
    x = np.array([[[np.nan, 1.0], [np.inf, 2.0], [3.0, -np.inf]]])  # (1, 3, 2)
    mask = np.array([[[False], [False], [True]]])
    assert_array_equal(vanilla(x, mask), [[[0, 0], [0, 0], [3, -np.inf]]])
    assert_array_equal(inverted(x, mask, 0.5), [[[0, 0], [0, 0], [6, -np.inf]]])


def test_float32_stays_float32() -> None:
    x = np.ones((2, 3), np.float32)
    assert dropout(x, 0.25, rng()).dtype == np.float32
    assert vanilla(x, np.array([True, False, True])).dtype == np.float32


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.97])
def test_the_dropped_fraction_is_the_rate(rate: float) -> None:
    count = 1_000_000
    dropped = np.sum(~draw_mask((1000, 1000), rate, rng(2)))
    bound = SIGMAS * math.sqrt(count * rate * (1 - rate))
    assert abs(dropped - count * rate) < bound


# Dropout as a function


def test_dropout_drops_or_scales_a_copy() -> None:
    x = np.arange(1.0, 11.0)
    y = dropout(x, 0.4, rng(3))
    mask = draw_mask((10,), 0.4, rng(3))
    assert 0 < mask.sum() < 10
    assert_array_equal(y[~mask], 0)
    assert_allclose(y[mask], x[mask] * 5 / 3)
    assert_array_equal(x, np.arange(1.0, 11.0))
    assert_array_equal(dropout(x, 0.0, rng()), x)


@pytest.mark.parametrize("level", [-0.1, 1.0, 1.5, math.inf, math.nan])
def test_an_error_names_a_rate_outside_its_interval(level: float) -> None:
    for call in (
        lambda: dropout(np.ones(3), level, rng()),
        lambda: Dropout(level, rng()),
        lambda: Network([], level),
        lambda: exact_count(4, level),
    ):
        with pytest.raises(ValueError, match=rf"in \[0, 1\), not {level}"):
            call()


# The layer, the network and its training


def test_the_layer_uses_one_mask_forward_and_backward() -> None:
    x, dy = rng().standard_normal((2, 3, 5))
    layer = Dropout(0.4, rng(4))

    def loss() -> float:
        layer.rng = rng(4)
        return np.sum(dy * layer.forward(x))

    loss()
    assert_gradient(layer.backward(dy), loss, x)
    first = layer.mask
    layer.forward(x)
    assert (layer.mask != first).any()


def test_gradients_of_a_dense_layer_and_its_penalty() -> None:
    x, dy = rng().standard_normal((4, 3)), rng(1).standard_normal((4, 2))
    layer = Dense(3, 2, rng(2), l2=0.3)
    layer.bias[:] = [0.5, -2.0]

    def loss() -> float:
        return np.sum(dy * layer.forward(x)) + layer.penalty()

    loss()
    dx = layer.backward(dy)
    assert_gradient(dx, loss, x)
    for gradient, parameter in zip(layer.gradients, layer.parameters, strict=True):
        assert_gradient(gradient, loss, parameter)


def test_softmax_cross_entropy() -> None:
    scores, targets = rng().standard_normal((4, 3)), np.array([0, 2, 1, 2])
    loss, gradient = softmax_cross_entropy(scores, targets)
    odds = np.exp(scores)
    chosen = odds[np.arange(4), targets] / odds.sum(axis=1)
    assert math.isclose(loss, -np.log(chosen).mean())
    assert_gradient(gradient, lambda: softmax_cross_entropy(scores, targets)[0], scores)
    far, _ = softmax_cross_entropy(np.array([[1000.0, 0.0, -1000.0]]), np.array([1]))
    assert far == 1000


def test_adam_matches_its_closed_form() -> None:
    gradients = rng().standard_normal((6, 3))
    parameter = np.zeros(3)
    adam = Adam([parameter], 0.05, decay=0.2)
    expected = np.zeros(3)
    for t in range(6):
        adam.update([gradients[t]])
        past = gradients[: t + 1]
        ages = np.arange(t, -1, -1)[:, None]
        mean = (0.9**ages * past).sum(0) / (0.9**ages).sum()
        square = (0.999**ages * past**2).sum(0) / (0.999**ages).sum()
        expected -= 0.05 / (1 + 0.2 * t) * mean / (np.sqrt(square) + 1e-7)
        assert_allclose(parameter, expected)


# Exact counts and the sigmoid layer


@pytest.mark.parametrize(
    ("units", "rate", "count"),
    [
        (10, 0.5, 5),
        (5, 0.5, 3),  # a half is rounded up
        (5, 0.3, 2),
        (5, 0.2, 1),
        (10, 0.04, 0),
        (3, 0.99, 2),  # never all of them
        (1, 0.9, 0),
        (7, 0.0, 0),
    ],
)
def test_exact_count_and_its_mask(units: int, rate: float, count: int) -> None:
    assert exact_count(units, rate) == count
    for seed in range(20):
        assert np.sum(~exact_mask(units, rate, rng(seed))) == count


def test_all_masks_of_a_count_are_equally_likely() -> None:
    draws, generator = 10_000, rng(3)
    masks = np.array([exact_mask(5, 0.4, generator) for _ in range(draws)])
    sets, counts = np.unique(masks, axis=0, return_counts=True)
    assert len(sets) == math.comb(5, 2)
    bound = SIGMAS * math.sqrt(draws * 0.1 * 0.9)
    assert np.abs(counts - draws / 10).max() < bound


def test_sigmoid() -> None:
    z = np.array([-1000.0, -math.log(3), 0.0, math.log(3), 1000.0])
    assert_allclose(sigmoid(z), [0, 0.25, 0.5, 0.75, 1], atol=1e-300)


def test_the_masked_sigmoid_layer() -> None:
    x, kernel = rng().standard_normal((4, 3)), rng(1).standard_normal((3, 5))
    bias, dy = rng(2).standard_normal(5), rng(3).standard_normal((4, 5))
    mask = np.array([True, False, True, True, False])
    before = kernel.copy()
    y = sigmoid_layer(x, kernel, bias, mask)
    assert_array_equal(kernel, before)
    assert_allclose(y[:, mask], 1 / (1 + np.exp(-(x @ kernel + bias)[:, mask])))
    assert_allclose(y[:, ~mask], np.tile(1 / (1 + np.exp(-bias[~mask])), (4, 1)))

    def loss() -> float:
        return np.sum(dy * sigmoid_layer(x, kernel, bias, mask))

    gradients = sigmoid_layer_backward(dy, y, x, kernel, mask)
    for gradient, parameter in zip(gradients, (x, kernel, bias), strict=True):
        assert_gradient(gradient, loss, parameter)


def test_norm_penalty() -> None:
    parameters = [np.array([[3.0, 0.0], [0.0, -4.0]]), np.zeros(2), np.array([-2.0])]
    penalty, gradients = norm_penalty(parameters)
    assert penalty == (7 + 5) + 0 + (2 + 2)
    assert_allclose(gradients[0], [[1.6, 0], [0, -1.8]])
    assert_array_equal(gradients[1], 0)
    assert_array_equal(gradients[2], -2)


@pytest.mark.parametrize(("l1", "l2"), [(1.0, 0.0), (0.0, 1.0), (0.3, 0.7)])
def test_gradient_of_the_norm_penalty(l1: float, l2: float) -> None:
    parameters = [rng().standard_normal((3, 2)), rng(1).standard_normal(2)]
    _, gradients = norm_penalty(parameters, l1, l2)
    for gradient, parameter in zip(gradients, parameters, strict=True):
        assert_gradient(
            gradient, lambda: norm_penalty(parameters, l1, l2)[0], parameter
        )


# Standout's keep probability


def test_standout_keep_prob_and_its_gradient() -> None:
    x, kernel = rng().standard_normal((4, 3)), rng(1).standard_normal((3, 2))
    dp = rng(2).standard_normal((4, 2))
    keep_prob = standout_keep_prob(x, kernel, 0.7, -0.4)
    assert_allclose(np.log(keep_prob / (1 - keep_prob)), 0.7 * x @ kernel - 0.4)

    def loss() -> float:
        return np.sum(dp * standout_keep_prob(x, kernel, 0.7, -0.4))

    gradients = standout_keep_prob_backward(dp, keep_prob, x, kernel, 0.7)
    for gradient, parameter in zip(gradients, (x, kernel), strict=True):
        assert_gradient(gradient, loss, parameter)


def test_draw_mask_takes_a_rate_for_each_unit() -> None:
    keep_prob, draws = np.array([[0.05, 0.5], [0.9, 0.3]]), 100_000
    counts = draw_mask((draws, 2, 2), 1 - keep_prob, rng(3)).sum(axis=0)
    bound = SIGMAS * np.sqrt(draws * keep_prob * (1 - keep_prob))
    assert (np.abs(counts - draws * keep_prob) < bound).all()
