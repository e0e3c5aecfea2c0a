"""Drop layers in loops: another mask at each step or, on JAX, an error."""

import keras
import numpy as np
import pytest
from family import BACKEND, FAMILY, every_kind, numpy, traced
from keras import layers, ops

import kdrop

MESSAGE = "inside a loop.*on JAX it would draw one mask.*`unroll=True`"
on_jax = pytest.mark.skipif(BACKEND != "jax", reason="of JAX")
STEPS = np.ones((16, 5, 8), "float32")


class Loop(layers.Layer):
    """Calls a layer three times, and stacks the outputs."""

    def __init__(self, layer, **kwargs):
        super().__init__(**kwargs)
        self.layer = layer

    def build(self, input_shape):
        if not self.layer.built:
            self.layer.build(input_shape)

    def call(self, inputs, training=False):
        return ops.map(lambda _: self.layer(inputs, training=training), ops.zeros(3))


class Cell(layers.Layer):
    state_size = 8

    def __init__(self):
        super().__init__()
        self.drop = kdrop.InvertedDropout(0.5, seed=1)

    def call(self, inputs, states, training=False):
        return self.drop(inputs, training=training), states


@every_kind
def test_each_step_has_another_mask(case):
    loop = Loop(case.make())
    for call in lambda x: loop(x, training=True), traced(loop):
        if BACKEND == "jax":
            with pytest.raises(RuntimeError, match=MESSAGE):
                call(case.ones())
            assert loop.layer.draw_count == 0
        else:
            first, second, _ = (case.seen(x) for x in ops.unstack(call(case.ones())))
            assert (first != second).any()
    assert (numpy(loop(case.ones()))[0] == numpy(loop.layer(case.ones()))).all()


OTHERS = {
    "TokenDropout": (lambda: kdrop.TokenDropout(0.5), (4, 6, 8)),
    "DropConnectDense": (lambda: kdrop.DropConnectDense(3, 0.5), (4, 8)),
    "DropConnectConv2D": (lambda: kdrop.DropConnectConv2D(3, 2, 0.5), (4, 5, 6, 2)),
    "WeightDropout": (lambda: kdrop.WeightDropout(layers.LSTM(3), 0.5), (4, 6, 8)),
    "EmbeddingDropout": (lambda: kdrop.EmbeddingDropout(9, 8, 0.5), (4, 6)),
    "ConcreteDropout": (lambda: kdrop.ConcreteDropout(layers.Dense(3), 1, 1), (4, 8)),
    "StandoutDropout": (lambda: kdrop.StandoutDropout(), (4, 8)),
    "VariationalDropout": (lambda: kdrop.VariationalDropout(3), (4, 8)),
}


@on_jax
@pytest.mark.parametrize(("make", "shape"), OTHERS.values(), ids=OTHERS)
def test_layers_with_weights_are_refused_too(make, shape):
    loop = Loop(make())
    inputs = ops.ones(shape, "int32" if len(shape) == 2 and shape[1] == 6 else None)
    loop(inputs)
    with pytest.raises(RuntimeError, match=MESSAGE):
        loop(inputs, training=True)


@pytest.mark.parametrize("unroll", [False, True])
def test_a_recurrent_cell(unroll):
    rnn = layers.RNN(Cell(), return_sequences=True, unroll=unroll)
    model = keras.Sequential([layers.Dense(8, activation="sigmoid"), rnn])
    model.compile("sgd", "mse")
    calls = (
        lambda: model(STEPS, training=True),
        lambda: model.fit(STEPS, STEPS, verbose=0),
    )
    for number, call in enumerate(calls):
        if BACKEND == "jax" and not unroll:
            with pytest.raises(RuntimeError, match=MESSAGE):
                call()
        elif number == 0:
            masks = numpy(call()) == 0
            assert (masks[:, 0] != masks[:, 1]).any()
        else:
            call()


@on_jax
def test_branches_and_what_is_computed_again_or_jitted():
    import jax

    drop = kdrop.InvertedDropout(0.5)
    ones = ops.ones((2, 8))
    for call in (
        lambda x: ops.cond(ops.sum(x) > 0, lambda: drop(x, training=True), lambda: x),
        keras.remat(lambda x: drop(x, training=True)),
        jax.jit(lambda x: drop(x, training=True)),
    ):
        with pytest.raises(RuntimeError, match=MESSAGE):
            call(ones)
    drop(ones, training=True)
    gradient = jax.grad(lambda x: ops.sum(drop(x, training=True)))(ones)
    assert {*np.unique(gradient)} == {0.0, 2.0} and drop.draw_count == 2


def test_shapes_are_inferred_through_a_loop():
    inputs = keras.Input((8,))
    assert Loop(FAMILY["InvertedDropout"].make())(inputs, training=True).shape[-1] == 8
