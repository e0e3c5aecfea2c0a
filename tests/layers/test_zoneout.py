"""The laws of Zoneout."""

import keras
import numpy as np
import pytest
from family import BACKEND, DEVIATIONS, assert_frequency, assert_independent, numpy

import kdrop
from kdrop import Zoneout

STEPS, UNITS = 5, 64
UNROLL = BACKEND == "jax"  # which draws no mask in a loop
# A value of its own for each step
CLOCK = np.broadcast_to(np.arange(1.0, 6)[:, None], (64, STEPS, UNITS)).astype(
    "float32"
)


@keras.saving.register_keras_serializable("tests")
class Copy(keras.layers.Layer):
    """A cell whose states are its inputs, and those times ten."""

    state_size = [UNITS, UNITS]

    def call(self, inputs, states):
        return inputs, [inputs, 10 * inputs]


def slow(case):
    return pytest.param(case, marks=pytest.mark.slow)


def rnn(rate, cell=Copy, **settings):
    zoned = Zoneout(cell(), rate, seed=1, name="drop")
    settings = {"return_sequences": True, "unroll": UNROLL, **settings}
    return keras.layers.RNN(zoned, **settings)


def held(outputs):
    """Where a unit has the value of the step before."""
    before = np.concatenate([np.zeros_like(outputs[:, :1]), outputs[:, :-1]], axis=1)
    new = np.isclose(outputs, CLOCK)
    np.testing.assert_array_equal(outputs[~new], before[~new])
    return ~new


def test_units_keep_their_value_at_the_rate_anew_in_each_step():
    layer = rnn(0.3)
    first, second = (held(numpy(layer(CLOCK, training=True))) for _ in range(2))
    assert_frequency(first, 0.3)
    assert_independent(first, second)
    assert_independent(first[:, 1:], first[:, :-1])
    assert_independent(first[1:], first[:-1])
    assert_independent(first[..., 1:], first[..., :-1])


def test_each_state_has_its_own_rate_and_masks():
    layer = rnn([0.1, 0.6], return_state=True)
    _, one, ten = (numpy(x) for x in layer(CLOCK, training=True))
    assert_frequency(one != 5, 0.1)
    assert_frequency(ten != 50, 0.6)
    assert_independent(one != 5, ten != 50)
    assert layer.cell.rate == [0.1, 0.6]
    layer.cell.rate = 0.0
    outputs = layer(CLOCK, training=True)
    np.testing.assert_allclose(numpy(outputs[2]), 50, rtol=1e-6)


def test_inference_is_the_expectation():
    layer = rnn(0.3, unroll=False)
    outputs, expected = numpy(layer(CLOCK)), np.zeros((64, UNITS))
    for step in range(STEPS):
        expected = 0.3 * expected + 0.7 * (step + 1)
        np.testing.assert_allclose(outputs[:, step], expected, rtol=1e-6)
    samples = numpy(rnn(0.3)(CLOCK, training=True))[:, -1]
    bound = DEVIATIONS * samples.std() / np.sqrt(samples.size)
    assert abs(samples.mean() - expected.mean()) < bound
    assert [zone.draw_count for zone in layer.cell.zones] == [0, 0]


@pytest.mark.parametrize("training", [False, True])
def test_masked_steps_change_nothing(training):
    inputs = CLOCK.copy()
    inputs[:, 3:] = 0
    layer, other = rnn(0.3), rnn(0.3)
    masked = keras.layers.Masking()(inputs)
    outputs = numpy(layer(masked, training=training))
    np.testing.assert_array_equal(
        outputs[:, :3], numpy(other(CLOCK, training=training))[:, :3]
    )
    np.testing.assert_array_equal(outputs[:, 3:], outputs[:, [2, 2]])


@pytest.mark.parametrize(
    "cell",
    [
        lambda: keras.layers.SimpleRNNCell(4, dropout=0.2),
        slow(lambda: keras.layers.LSTMCell(4)),
        slow(lambda: keras.layers.GRUCell(4, dropout=0.2, recurrent_dropout=0.1)),
    ],
)
def test_cells_of_keras_alone_and_in_a_stack(cell):
    inputs = np.random.default_rng(0).normal(size=(8, 4, 3)).astype("float32")
    zoned, plain = rnn(0.2, cell), keras.layers.RNN(cell(), return_sequences=True)
    zoned(inputs), plain(inputs)
    plain.set_weights(zoned.get_weights())
    zoned.cell.rate = 0.0
    np.testing.assert_allclose(zoned(inputs), plain(inputs), rtol=1e-5, atol=1e-6)
    assert zoned.cell.state_size == plain.cell.state_size
    stack = [Zoneout(cell(), 0.4) for _ in range(2)]
    layers = [keras.layers.RNN(stack, unroll=UNROLL), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((4, 3)), *layers])
    model.compile("adam", "mse", jit_compile=UNROLL)
    for _ in range(2):  # a mask of the cell's own dropout does not outlive a call
        model.fit(inputs, np.zeros((8, 1)), verbose=0)


def test_a_clock_does_not_hold_the_masks():
    if BACKEND == "jax":
        pytest.skip("a clock does nothing on JAX")
    model = keras.Sequential([keras.Input((STEPS, UNITS)), rnn(0.3)])
    with kdrop.StepClock().start(model):
        masks = held(numpy(model(CLOCK, training=True)))
    assert_independent(masks[:, 1:], masks[:, :-1])


def test_a_nan_that_is_not_taken_has_no_effect():
    cell = Zoneout(Copy(), 0.5, seed=1, name="drop")
    ones = keras.ops.ones((64, UNITS))
    expected = numpy(Zoneout(Copy(), 0.5, seed=1, name="drop")(
        2 * ones, [ones, ones], training=True)[0])  # fmt: skip
    outputs = numpy(cell(ones * np.nan, [ones, ones], training=True)[0])
    np.testing.assert_array_equal(np.isnan(outputs), expected == 2)
    np.testing.assert_array_equal(outputs[expected == 1], 1)


def test_what_cannot_work_is_rejected():
    for cell in (keras.layers.Dense(3), keras.layers.LSTM(3), None):
        with pytest.raises(ValueError, match="wraps a recurrent cell.*cell="):
            Zoneout(cell, 0.5)
    for rate in ([0.1], [0.1, 0.2, 0.3]):
        with pytest.raises(ValueError, match="`rate` must be a number, or a list of 2"):
            Zoneout(keras.layers.LSTMCell(3), rate)

    class Other(Copy):
        def call(self, inputs, states):
            return inputs + 1, [inputs, inputs]

    with pytest.raises(ValueError, match="whose output is their first state"):
        rnn(0.5, Other)(CLOCK)
    if BACKEND == "jax":
        with pytest.raises(RuntimeError, match="`unroll=True`"):
            rnn(0.5, unroll=False)(CLOCK, training=True)
