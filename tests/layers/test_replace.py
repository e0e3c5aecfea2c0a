"""Models of Keras with kdrop's layers in them."""

import warnings

import keras
import numpy as np
import pytest

import kdrop
from kdrop.layers.replace import remaining

INPUTS = np.random.default_rng(0).normal(size=(4, 6, 8)).astype("float32")
KERAS = (keras.layers.Dropout, keras.layers.GaussianDropout, keras.layers.AlphaDropout)
registered = keras.saving.register_keras_serializable("test_replace")


def leaves(held):
    """The layers in a structure, whatever proxies TensorFlow wraps it in."""
    if isinstance(held, list | tuple | dict):
        held = held.values() if isinstance(held, dict) else held
        return [layer for part in held for layer in leaves(part)]
    return [held]


def drop(rate=0.5, **kwargs):
    return keras.layers.Dropout(rate, **kwargs)


def sequential():
    return keras.Sequential([keras.Input((6, 8)), keras.layers.Dense(8), drop()])


def functional():
    inputs = keras.Input((6, 8))
    return keras.Model(inputs, drop()(keras.layers.Dense(8)(inputs)))


HELD = {
    "attribute": drop,
    "list": lambda: [drop(), keras.layers.Dense(8), drop(0.2)],
    "nested list": lambda: [[drop()], [keras.layers.Dense(8)]],
    "tuple": lambda: (drop(), keras.layers.Dense(8)),
    "dictionary": lambda: {"b": drop(), "a": keras.layers.Dense(8)},
    "dictionary of lists": lambda: {"a": [drop()], "b": [keras.layers.Dense(8)]},
    "held Sequential": sequential,
    "held Functional": functional,
    "list of Sequentials": lambda: [sequential(), sequential()],
    "held Bidirectional": lambda: keras.layers.Bidirectional(
        keras.layers.RNN(Cell(4), return_sequences=True, unroll=True)
    ),
}


@registered
class Holder(keras.Layer):
    """Calls layers, one after the other, that it makes and holds in some structure."""

    def __init__(self, kind, **kwargs):
        super().__init__(**kwargs)
        self.kind, self.held = kind, HELD[kind]()

    def build(self, input_shape):
        for layer in leaves(self.held):
            layer.build(input_shape)

    def call(self, inputs, training=False):
        for layer in leaves(self.held):
            inputs = layer(inputs, training=training)
        return inputs

    def get_config(self):
        return {**super().get_config(), "kind": self.kind}


@registered
class Cell(keras.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = units
        self.dense, self.drop = keras.layers.Dense(units), drop()

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, inputs, states, training=False):
        outputs = self.drop(self.dense(inputs), training=training)
        return outputs + states[0], [outputs]

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@registered
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.drops = keras.layers.Dense(8), [drop(), drop(0.1)]

    def call(self, inputs, training=False):
        for layer in self.drops:
            inputs = layer(inputs, training=training)
        return self.dense(inputs)


@registered
class OutOfOrder(keras.Model):
    """A Functional model that tracks its layers against the order of its graph."""

    def __init__(self, **kwargs):
        inputs = keras.Input((6, 8))
        first, second, dropout = keras.layers.Dense(8), keras.layers.Dense(8), drop()
        self.second, self.dropout, self.first = second, dropout, first
        super().__init__(inputs, second(dropout(first(inputs))), **kwargs)

    def get_config(self):
        return {"name": self.name}


@registered
class Twice(keras.layers.Dropout):
    """A subclass that does what no layer of kdrop does."""

    def call(self, inputs, training=False):
        return super().call(super().call(inputs, training), training)


def chain(*layers, steps=6):
    inputs = x = keras.Input((steps, 8))
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x)


def attention(layer, **kwargs):
    inputs = keras.Input((6, 8))
    return keras.Model(inputs, drop()(layer([inputs, inputs], **kwargs)))


def shared():
    dropout, inputs = drop(), keras.Input((6, 8))
    x = dropout(keras.layers.Dense(8)(dropout(inputs)))
    return keras.Model(inputs, keras.layers.TimeDistributed(dropout)(x))


def nested_twice():
    inner, inputs = functional(), keras.Input((6, 8))
    return keras.Model(inputs, inner(inner(inputs)))


def multi_head():
    inputs = keras.Input((6, 8))
    x = keras.layers.MultiHeadAttention(2, 4, dropout=0.5)(inputs, inputs)
    return keras.Model(inputs, keras.layers.Dense(8)(x))


PLACES = {
    **{kind: lambda kind=kind: chain(Holder(kind)) for kind in HELD},
    "Functional": lambda: chain(drop(), keras.layers.Dense(8)),
    "last operation": lambda: chain(keras.layers.Dense(8), drop()),
    "Sequential in Sequential": lambda: keras.Sequential(
        [keras.Input((6, 8)), sequential(), keras.layers.Dense(2)]
    ),
    "Functional in Functional": lambda: chain(functional(), keras.layers.Dense(2)),
    "nested model called twice": nested_twice,
    "shared": shared,
    "TimeDistributed": lambda: chain(keras.layers.TimeDistributed(drop())),
    "TimeDistributed Sequential": lambda: chain(
        keras.layers.TimeDistributed(keras.Sequential([keras.layers.Dense(8), drop()]))
    ),
    "Pipeline": lambda: chain(keras.layers.Pipeline([drop(), drop(0.1)])),
    "subclassed model": Subclassed,
    "Functional subclass": OutOfOrder,
    "MultiHeadAttention": multi_head,
    "noise": lambda: chain(
        keras.layers.GaussianDropout(0.3),
        keras.layers.AlphaDropout(0.3),
        keras.layers.SpatialDropout1D(0.3),
    ),
}
# Beside a layer that is replaced, one that is not, and its name.
STAYS = {
    "subclass": (lambda: chain(Twice(0.5, name="twice"), drop()), "twice"),
    "LSTM": (
        lambda: chain(keras.layers.LSTM(4, dropout=0.5, name="lstm"), drop()),
        "lstm",
    ),
    "GRU": (
        lambda: chain(keras.layers.GRU(4, recurrent_dropout=0.5, name="gru"), drop()),
        "gru",
    ),
    "SimpleRNN": (
        lambda: chain(
            keras.layers.Bidirectional(
                keras.layers.SimpleRNN(4, dropout=0.5, name="simple")
            ),
            drop(),
        ),
        "backward_simple', 'forward_simple",
    ),
    "stacked cells": (
        lambda: chain(
            keras.layers.RNN(
                [keras.layers.LSTMCell(4), keras.layers.GRUCell(4, dropout=0.5)],
                name="rnn",
            ),
            drop(),
        ),
        "rnn",
    ),
    "ConvLSTM": (
        lambda: chain(
            keras.layers.Reshape((2, 3, 8)),
            keras.layers.ConvLSTM1D(4, 2, dropout=0.5, name="convolution"),
            drop(),
        ),
        "convolution",
    ),
    "Attention": (
        lambda: attention(keras.layers.Attention(dropout=0.5, name="attention")),
        "attention",
    ),
    "AdditiveAttention": (
        lambda: attention(keras.layers.AdditiveAttention(dropout=0.5, name="additive")),
        "additive",
    ),
}


def value(tensor):
    return np.asarray(tensor)


def layers(model, *kinds):
    return [layer for layer in model._flatten_layers() if isinstance(layer, kinds)]


def check_replaced(model):
    """No layer of Keras, nor the state of one, is left in a model."""
    assert not layers(model, *KERAS)
    assert layers(model, kdrop.InvertedDropout, kdrop.GaussianDropout)
    assert not [v.path for v in model.variables if v.name == "seed_generator_state"]


def check_draws(model):
    at_inference = value(model(INPUTS, training=False))
    assert np.any(value(kdrop.Sampler(model)(INPUTS)) != at_inference)
    assert np.any(value(model(INPUTS, training=True)) != at_inference)


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "copy"])
@pytest.mark.parametrize("place", PLACES)
def test_every_place_is_reached(place, in_place, tmp_path):
    theirs = PLACES[place]()
    expected = value(theirs(INPUTS, training=False))
    weights, before = theirs.weights, theirs._flatten_layers()
    counts = len(layers(theirs, *KERAS)), len(theirs.get_weights())
    ours = kdrop.replace(theirs, in_place=in_place)
    assert type(ours) is type(theirs)
    np.testing.assert_array_equal(value(ours(INPUTS, training=False)), expected)
    check_replaced(ours)
    noises = kdrop.InvertedDropout, kdrop.GaussianDropout, kdrop.AlphaDropout
    assert (len(layers(ours, *noises)), len(ours.get_weights())) == counts
    check_draws(ours)
    if in_place:
        assert ours is theirs
        assert all(x is y for x, y in zip(ours.weights, weights, strict=True))
    else:
        assert theirs._flatten_layers() == before
        assert not {id(x) for x in before} & {id(x) for x in ours._flatten_layers()}
        assert not {id(x) for x in weights} & {id(x) for x in ours.weights}
        np.testing.assert_array_equal(value(theirs(INPUTS, training=False)), expected)

    # Saved, loaded and replaced again, it samples as it did, bit for bit.
    path = tmp_path / "model.keras"
    ours.save(path)
    loaded = keras.models.load_model(path)
    np.testing.assert_array_equal(value(loaded(INPUTS, training=False)), expected)
    again = kdrop.replace(loaded, in_place=True)
    again.load_weights(path)
    check_replaced(again)
    samples = value(kdrop.Sampler(ours, seed=1)(INPUTS))
    np.testing.assert_array_equal(value(kdrop.Sampler(again, seed=1)(INPUTS)), samples)


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "copy"])
@pytest.mark.parametrize("place", STAYS)
@pytest.mark.filterwarnings("ignore:These layers of model .* stay at inference")
def test_what_stays_is_named_in_one_warning(place, in_place):
    build, name = STAYS[place]
    theirs = build()
    expected = value(theirs(INPUTS, training=False))
    with pytest.warns(UserWarning, match=f"does not sample: '{name}'") as caught:
        ours = kdrop.replace(theirs, in_place=in_place)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(value(ours(INPUTS, training=False)), expected)
    assert not [x for x in ours._flatten_layers() if type(x) in KERAS]
    check_draws(ours)
    assert ", ".join(map(repr, remaining(ours))) == f"'{name}'"
    assert len(remaining(build())) == len(remaining(ours)) + 1


class Path(keras.layers.Layer):
    """Drops by Keras's global generator, as some layers of KerasHub do."""

    def __init__(self, drop_prob, **kwargs):
        super().__init__(**kwargs)
        self.drop_prob = drop_prob

    def call(self, inputs, training=False):
        return keras.random.dropout(inputs, self.drop_prob) if training else inputs


class DropPath(Path):
    pass


def test_remaining_knows_paths_by_their_names():
    assert remaining(chain(DropPath(0.5, name="path"), DropPath(0.0))) == ["path"]


class DropoutBlock(keras.layers.Layer):
    """Drops by a layer alone, although its name and attribute sound otherwise."""

    def __init__(self, rate, **kwargs):
        super().__init__(**kwargs)
        self.rate, self.drop = rate, drop(rate, name="inner")

    def call(self, inputs, training=False):
        return self.drop(inputs, training=training)


def test_remaining_names_the_layer_that_drops_not_its_holder():
    model = chain(DropoutBlock(0.5))
    assert remaining(model) == ["inner"]
    assert remaining(kdrop.replace(model, in_place=True)) == []


def test_layers_that_drop_nothing_stay_in_silence():
    model = chain(
        Twice(0.0), keras.layers.LSTM(4, return_sequences=True), keras.layers.ReLU()
    )
    assert remaining(model) == []
    assert kdrop.replace(model, in_place=True) is model


def test_remaining_names_what_is_not_yet_replaced():
    assert remaining(chain(drop(0.1, name="a"), drop(0.0), drop(0.2, name="b"))) == [
        "a",
        "b",
    ]
    model = multi_head()
    assert len(remaining(model)) == 1
    kdrop.replace(model, in_place=True)
    assert remaining(model) == []


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="as TF traces it")
def test_time_steps_that_share_a_mask_are_named():
    model = chain(keras.layers.TimeDistributed(drop(), name="steps"), steps=None)
    with pytest.warns(UserWarning, match="one mask in: 'steps'") as caught:
        kdrop.replace(model, in_place=True)
    assert len(caught) == 1


def test_settings_stay():
    # Keras's layers take these with TensorFlow alone.
    beyond = 2**32 if keras.backend.backend() == "tensorflow" else 0
    policy = keras.DTypePolicy("mixed_bfloat16")
    theirs = chain(
        drop(0.4, noise_shape=(None, 1, None), seed=3, name="a", dtype=policy),
        keras.layers.GaussianDropout(0.2, seed=11 - beyond, name="b", trainable=False),
        keras.layers.AlphaDropout(0.3, noise_shape=(None, 6, 1), name="c"),
        keras.layers.SpatialDropout1D(0.1, seed=7 + beyond, name="d", dtype=policy),
        drop(0.0, name="e"),
    )
    theirs.layers[4].trainable = False
    theirs.compile("sgd", "mse")
    expected = value(theirs(INPUTS, training=False))
    for ours in kdrop.replace(theirs), kdrop.replace(theirs, in_place=True):
        a, b, c, d, e = ours.layers[1:]
        assert [x.name for x in (a, b, c, d, e)] == ["a", "b", "c", "d", "e"]
        assert [x.rate for x in (a, b, c, d, e)] == [0.4, 0.2, 0.3, 0.1, 0.0]
        assert [x.seed for x in (a, b, c, d, e)] == [3, 11, None, 7, None]
        assert type(a) is type(e) is kdrop.InvertedDropout
        assert type(b) is kdrop.GaussianDropout and type(c) is kdrop.AlphaDropout
        assert type(d) is kdrop.SpatialDropout1D
        assert a.noise_shape == (None, 1, None) and c.noise_shape == (None, 6, 1)
        assert a.dtype_policy == d.dtype_policy == policy
        assert [x.trainable for x in (a, b, c, d, e)] == [
            True,
            False,
            True,
            False,
            True,
        ]
        np.testing.assert_array_equal(value(ours(INPUTS, training=False)), expected)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_maps_of_both_data_formats(dimensions):
    kind = getattr(keras.layers, f"SpatialDropout{dimensions}D")
    for data_format in "channels_first", "channels_last":
        inputs = keras.Input((2, 3, 4, 5)[: dimensions + 1])
        model = keras.Model(inputs, kind(0.5, data_format=data_format)(inputs))
        kdrop.replace(model, in_place=True)
        assert type(model.layers[1]).__name__ == f"SpatialDropout{dimensions}D"
        assert type(model.layers[1]).__module__.startswith("kdrop")
        assert model.layers[1].data_format == data_format


def test_a_compiled_model_goes_on_with_the_new_layers():
    model = chain(keras.layers.Dense(8), drop(), functional(), keras.layers.Dense(8))
    model.compile(keras.optimizers.Adam(), "mse")
    model.fit(INPUTS, INPUTS, verbose=0)
    expected = model.predict(INPUTS, verbose=0)
    loss = model.evaluate(INPUTS, INPUTS, verbose=0)
    optimizer, steps = model.optimizer, int(model.optimizer.iterations)
    assert kdrop.replace(model, in_place=True) is model
    np.testing.assert_array_equal(model.predict(INPUTS, verbose=0), expected)
    np.testing.assert_allclose(model.evaluate(INPUTS, INPUTS, verbose=0), loss, 1e-6)
    model.fit(INPUTS, INPUTS, verbose=0)
    assert model.optimizer is optimizer
    assert int(optimizer.iterations) == steps + 1
    counts = [x.draws.count() for x in layers(model, kdrop.InvertedDropout)]
    assert counts == [1, 1]
    assert np.any(model.predict(INPUTS, verbose=0) != expected)


def test_a_compiled_model_is_copied_with_what_is_frozen():
    model = chain(Holder("list"), keras.layers.Dense(8), drop())
    model.layers[1].held[1].trainable = False
    model.compile("adam", "mse")
    model.fit(INPUTS, INPUTS, verbose=0)
    ours = kdrop.replace(model)
    assert not ours.compiled and model.compiled
    frozen = [weight.trainable for weight in ours.weights]
    assert frozen == [weight.trainable for weight in model.weights]
    assert False in frozen and True in frozen
    assert len(ours.trainable_weights) == 2


def test_a_shared_layer_is_replaced_once():
    model = kdrop.replace(shared())
    (layer,) = layers(model, kdrop.InvertedDropout)
    assert layer is model.layers[1] is model.layers[-1].layer
    kdrop.Sampler(model)(INPUTS)
    assert layer.draws.count() == 2 + INPUTS.shape[1]


def test_replacing_twice_changes_nothing():
    model = kdrop.replace(chain(drop(seed=3), Holder("dictionary")), in_place=True)
    kdrop.Sampler(model)(INPUTS)
    before = model._flatten_layers(), [value(x).tolist() for x in model.variables]
    assert kdrop.replace(model, in_place=True) is model
    again = model._flatten_layers(), [value(x).tolist() for x in model.variables]
    assert again == before
    copy = kdrop.replace(model)
    assert remaining(copy) == []
    assert [value(x).tolist() for x in copy.variables] == before[1]


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "copy"])
def test_a_sequential_that_is_not_built(in_place):
    model = keras.Sequential([keras.layers.Dense(8), drop(), drop()])
    ours = kdrop.replace(model, in_place=in_place)
    assert not ours.built
    ours(INPUTS)
    check_replaced(ours)
    check_draws(ours)


def test_order_is_that_of_a_model_built_with_kdrop():
    def build(kind):
        return chain(kind(0.1, name="a"), functional(), kind(0.2, name="b"))

    ours = kdrop.replace(build(keras.layers.Dropout), in_place=True)
    built = kdrop.replace(build(kdrop.InvertedDropout), in_place=True)
    kinds = [type(layer) for layer in ours._flatten_layers()]
    assert kinds == [type(layer) for layer in built._flatten_layers()]


@pytest.mark.parametrize("place", ["list", "dictionary of lists", "held Functional"])
def test_weight_files_pass_both_ways(place, tmp_path):
    theirs = chain(Holder(place))
    ours = kdrop.replace(theirs)
    for source, target in (theirs, ours), (ours, theirs):
        source.set_weights([np.full_like(w, 0.5) for w in source.get_weights()])
        target.set_weights([np.zeros_like(w) for w in target.get_weights()])
        source.save_weights(tmp_path / "of.weights.h5")
        target.load_weights(tmp_path / "of.weights.h5")
        assert all(np.all(w == 0.5) for w in target.get_weights())


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="of TensorFlow")
def test_checkpoints_hold_the_new_layers_alone(tmp_path):
    import tensorflow as tf

    def names(model):
        path = tf.train.Checkpoint(model=model).save(str(tmp_path / "checkpoint"))
        return [name for name, _ in tf.train.list_variables(path)]

    model = chain(Holder("list"), drop(), Holder("attribute"))
    assert not any("/draws/" in name for name in names(model))
    kdrop.replace(model, in_place=True)
    saved = names(model)
    assert not any("seed_generator" in name for name in saved)
    # Keras does not follow lists here.
    assert sum("/draws/" in name for name in saved) == 2, saved


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="of TensorFlow")
def test_a_model_under_a_strategy(strategy):
    with strategy.scope():
        model = chain(drop(), keras.layers.Dense(8))
        model.compile("sgd", "mse")
    model.fit(INPUTS, INPUTS, verbose=0)
    kdrop.replace(model, in_place=True)
    model.fit(INPUTS, INPUTS, verbose=0)
    assert model.layers[1].draws.count() == 1  # one step, whatever the replicas


def test_samples_after_a_load_are_those_of_the_saved_model(tmp_path):
    inputs = x = keras.Input((6, 8))
    for _ in range(2):
        x = keras.layers.MultiHeadAttention(2, 4, dropout=0.5)(x, x)
        x = drop()(Holder("list")(x))
    model = kdrop.replace(keras.Model(inputs, x))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded = kdrop.replace(loaded, in_place=True)
    loaded.load_weights(tmp_path / "model.keras")
    one, other = (
        kdrop.sample(x, INPUTS, passes=3, seed=1, verbose=0) for x in (model, loaded)
    )
    np.testing.assert_array_equal(one, other)


def test_efficient_net():
    theirs = keras.applications.EfficientNetB0(
        weights=None, input_shape=(32, 32, 3), classes=3
    )
    inputs = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3))
    expected = value(theirs(inputs))
    count = len(layers(theirs, *KERAS))
    for ours in kdrop.replace(theirs), kdrop.replace(theirs, in_place=True):
        np.testing.assert_array_equal(value(ours(inputs)), expected)
        assert len(layers(ours, kdrop.InvertedDropout)) == count > 5
        check_replaced(ours)


def test_a_class_that_is_not_registered_is_copied():
    class Own(keras.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.drop = drop()

        def call(self, inputs, training=False):
            return self.drop(inputs, training=training)

    model = chain(Own())
    assert type(kdrop.replace(model).layers[1]) is Own


class Forgetful(keras.Layer):
    """A layer whose config lacks an argument."""

    def __init__(self, factor=1.0, units=8, **kwargs):
        super().__init__(**kwargs)
        self.factor, self.units, self.drop = factor, units, drop()

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(self.units,), initializer="ones")

    def call(self, inputs, training=False):
        return self.drop(inputs * self.factor * self.scale, training=training)

    def get_config(self):
        return super().get_config()


class Imprecise(Forgetful):
    """A layer whose config lacks the dtype policy."""

    def get_config(self):
        config = super().get_config()
        del config["dtype"]
        return config


class Random(Forgetful):
    """A layer whose weight is not saved."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(8,), initializer="random_normal")

    def save_own_variables(self, store):
        pass

    def load_own_variables(self, store):
        pass


class More(Forgetful):
    """A layer that a loaded model has less of."""

    def __init__(self, more=False, **kwargs):
        super().__init__(**kwargs)
        self.more = drop() if more else None


@pytest.mark.parametrize(
    "build, reason",
    [
        (lambda: Forgetful(factor=2.0), "other settings of layer '.*'"),
        (lambda: Imprecise(dtype="mixed_bfloat16"), "other settings of layer '.*'"),
        (lambda: Forgetful(units=1), "saving and loading it failed"),
        (Random, "other values of weight '.*'"),
        (lambda: More(more=True), "other layers"),
    ],
)
def test_a_copy_that_is_not_the_same_is_refused(build, reason):
    model = chain(drop(), build())
    message = f"cannot copy model '{model.name}'.*{reason}.*in_place=True"
    with pytest.raises(ValueError, match=message) as refusal:
        kdrop.replace(model)
    assert "\n" not in str(refusal.value)
    assert remaining(model)
    kdrop.replace(model, in_place=True)
    assert not remaining(model)


def test_a_rate_of_1_is_refused_before_anything_is_replaced():
    model = chain(drop(0.5, name="half"), drop(1.0, name="all"))
    for in_place in True, False:
        with pytest.raises(ValueError, match="rate=1.0"):
            kdrop.replace(model, in_place=in_place)
        assert remaining(model) == ["half", "all"]


def test_what_is_not_a_model_is_refused():
    for wrong in "model", drop(), None:
        with pytest.raises(ValueError, match="takes a keras.Model. Received"):
            kdrop.replace(wrong)


def test_no_warning_without_a_cause():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kdrop.replace(chain(drop(), Holder("list")))
