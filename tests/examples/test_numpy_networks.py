"""The networks of the NumPy example: gradients, means, and the spiral program."""

import math
from collections.abc import Iterator

import keras
import numpy as np
import pytest
from gradients import all_masks, assert_gradient, points, rng
from numpy.testing import assert_allclose, assert_array_equal

from examples.dropout_in_numpy import (
    Dense,
    Network,
    SpiralProgram,
    exact_mask,
    softmax_cross_entropy,
)

NETWORKS = {
    "vanilla": {"scaled": False},
    "inverted": {},
    "concatenated": {"concatenated": True},
}
each_network = pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)


def network(rate: float, positive: bool = False, **options) -> Network:
    """Inputs of 3, hidden layers of 4 and 3, 2 classes, weights of order 1.

    With `positive` the network is linear on positive inputs: no ReLU ever cuts.
    """
    last = 7 if options.get("concatenated") else 3
    layers = [Dense(*s, rng(1)) for s in [(3, 4), (4, 3), (last, 2)]]
    for seed, layer in enumerate(layers):
        layer.kernel[:] = rng(10 + seed).standard_normal(layer.kernel.shape)
        layer.bias[:] = rng(20 + seed).standard_normal(layer.bias.shape)
        if positive:
            np.abs(layer.kernel, out=layer.kernel)
            np.abs(layer.bias, out=layer.bias)
    return Network(layers, rate, **options)


def test_the_gradients_of_the_spiral_program() -> None:
    x, y = points(7)
    program = SpiralProgram(rng(7), hidden=5, rate=0.3, l2=0.05)
    for parameter in program.optimizer.parameters:
        parameter[:] = rng(parameter.size).standard_normal(parameter.shape)
    masks = program.draw_masks(7, rng(8))
    assert not masks[0].all()

    def loss() -> float:
        data_loss, _ = softmax_cross_entropy(program.predict(x, masks), y)
        return data_loss + program.hidden[0].penalty()

    program.backward(x, y, masks)
    for layer in program.layers:
        for gradient, parameter in zip(layer.gradients, layer.parameters, strict=True):
            assert_gradient(gradient, loss, parameter)


def test_the_spiral_program_reports_the_state_before_its_update() -> None:
    x, y = points(200)
    program = SpiralProgram(rng(7), hidden=16, rate=0.0, l2=0.05)
    scores = program.predict(x)
    expected_penalty = 0.05 * np.sum(program.hidden[0].kernel ** 2)
    data_loss, penalty, accuracy = program.step(x, y)
    assert math.isclose(data_loss, softmax_cross_entropy(scores, y)[0])
    assert math.isclose(penalty, expected_penalty)
    assert accuracy == np.mean(scores.argmax(axis=1) == y)
    assert program.step(x, y)[0] < data_loss


@pytest.fixture
def float64() -> Iterator[None]:
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")  # does not follow floatx once it is set
    yield
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)


@pytest.mark.usefixtures("float64")
def test_without_dropout_the_spiral_program_matches_keras() -> None:
    x, y = points(60)
    program = SpiralProgram(rng(7), hidden=16, rate=0.0, l2=5e-4, decay=0.01)
    # Keras adds its epsilon before the correction and rounds its betas to float32.
    adam = {"beta_1": 1 - 2**-3, "beta_2": 1 - 2**-10, "epsilon": 1e-30}
    vars(program.optimizer).update(adam)
    l2 = keras.regularizers.L2(5e-4)
    first = keras.layers.Dense(16, "relu", kernel_regularizer=l2, bias_regularizer=l2)
    model = keras.Sequential([keras.Input((2,)), first, keras.layers.Dense(3)])
    model.set_weights(program.optimizer.parameters)
    decayed = keras.optimizers.schedules.InverseTimeDecay(0.05, 1, 0.01)
    model.compile(
        keras.optimizers.Adam(decayed, **adam),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    for _ in range(10):
        model.reset_metrics()
        loss = model.train_on_batch(x, y)
        data_loss, penalty, _ = program.step(x, y)
        assert_allclose(data_loss + penalty, loss, rtol=1e-6)
    for parameter, keras_weight in zip(
        program.optimizer.parameters, model.get_weights(), strict=True
    ):
        # Its learning rate, too, is a float32: ten steps of .05, each rounded.
        assert_allclose(parameter, keras_weight, rtol=0, atol=10 * 0.05 * 2**-24)


@each_network
def test_gradients_of_a_network_with_fixed_masks(options: dict) -> None:
    net = network(0.3, **options)
    x, y = rng().standard_normal((6, 3)), np.array([0, 1, 1, 0, 1, 0])
    masks = net.draw_masks(6, rng(1))

    def loss() -> float:
        return softmax_cross_entropy(net.predict(x, masks), y)[0]

    assert math.isclose(net.backward(x, y, masks), loss())
    for layer in net.layers:
        for gradient, parameter in zip(layer.gradients, layer.parameters, strict=True):
            assert_gradient(gradient, loss, parameter)


@each_network
def test_a_train_step_descends_the_gradient(options: dict) -> None:
    net, twin = network(0.3, **options), network(0.3, **options)
    x, y = rng().standard_normal((6, 3)), np.array([0, 1, 1, 0, 1, 0])
    loss = net.train_step(x, y, 0.1, rng(9))
    assert loss == twin.backward(x, y, twin.draw_masks(6, rng(9)))
    for moved, fixed in zip(net.layers, twin.layers, strict=True):
        assert_allclose(moved.kernel, fixed.kernel - 0.1 * fixed.gradients[0])
        assert_allclose(moved.bias, fixed.bias - 0.1 * fixed.gradients[1])
        assert moved.parameters[0] is moved.kernel


@each_network
def test_a_linear_network_at_inference_is_the_mean_of_its_sub_networks(
    options: dict,
) -> None:
    net, x = network(0.2, positive=True, **options), rng().uniform(0, 1, (5, 3))
    mean = np.zeros((5, 2))
    for p, mask in all_masks(4 + 3, 0.2):
        mean += p * net.predict(x, [mask[:4], mask[4:]])
    assert_allclose(mean, net.predict(x), rtol=1e-12)


def test_with_a_relu_that_cuts_the_mean_differs() -> None:
    # relu(h1 - h2), h1 = h2 = 1: one of four sub-networks gives 1, the others 0.
    layers = [Dense(1, 2, rng()), Dense(2, 1, rng()), Dense(1, 1, rng())]
    layers[0].kernel[:] = 1
    layers[1].kernel[:] = [[1], [-1]]
    layers[2].kernel[:] = 1
    net = Network(layers, 0.5, scaled=False)
    x, second = np.ones((1, 1)), np.array([True])
    mean = sum(p * net.predict(x, [mask, second]) for p, mask in all_masks(2, 0.5))
    assert_allclose(mean, 0.25)
    assert_allclose(net.predict(x), 0)


def test_inverted_is_vanilla_with_its_next_kernels_divided() -> None:
    inverted_net, vanilla_net = network(0.3), network(0.3, scaled=False)
    vanilla_net.hidden[1].kernel /= 0.7
    vanilla_net.last.kernel /= 0.7
    x, masks = rng().standard_normal((5, 3)), inverted_net.draw_masks(5, rng(1))
    assert_allclose(inverted_net.predict(x, masks), vanilla_net.predict(x, masks))
    assert_allclose(inverted_net.predict(x), vanilla_net.predict(x))


def test_the_last_layer_reads_every_hidden_output_once() -> None:
    net = network(0.3, concatenated=True)
    x = rng().standard_normal((5, 3))
    first = np.maximum(0, x @ net.hidden[0].kernel + net.hidden[0].bias)
    second = np.maximum(0, first @ net.hidden[1].kernel + net.hidden[1].bias)
    kernel, bias = net.last.parameters
    expected = first @ kernel[:4] + second @ kernel[4:] + bias
    assert_allclose(net.predict(x), expected)


def test_nothing_draws_from_the_global_generator() -> None:
    before = np.random.get_state(legacy=False)
    x, y = points(10)
    SpiralProgram(rng(), hidden=4).step(x, y)
    exact_mask(5, 0.5, rng())
    network(0.5).train_step(np.ones((2, 3)), y[:2] % 2, 0.1, rng())
    after = np.random.get_state(legacy=False)
    assert_array_equal(after["state"]["key"], before["state"]["key"])
    assert after["state"]["pos"] == before["state"]["pos"]
