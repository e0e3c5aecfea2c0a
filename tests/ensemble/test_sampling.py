"""Sampling models that others wrote: their functions, blocks, shapes and loops."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import kdrop
from kdrop import InvertedDropout
from kdrop.layers.sampling_context import Sampling

JAX = keras.backend.backend() == "jax"
on_tensorflow = pytest.mark.skipif(JAX, reason="tf.function is TensorFlow's")
DEVIATIONS = 5
ONES = np.ones((16, 64), "float32")


@pytest.fixture(autouse=True)
def same_weights():
    keras.utils.set_random_seed(0)


def drop(rate=0.5, name="drop", **settings):
    return InvertedDropout(rate, name=name, **settings)


def sample(model, inputs=ONES, passes=8, **settings):
    return kdrop.sample(model, inputs, passes, **{"seed": 1, "verbose": 0, **settings})


def fraction(outputs):
    return np.mean(ops.convert_to_numpy(outputs) == 0)


def assert_drops_half(outputs):
    outputs = ops.convert_to_numpy(outputs)
    assert abs(fraction(outputs) - 0.5) < DEVIATIONS * np.sqrt(0.25 / outputs.size)


def assert_differ(one, other):
    """Masks at rate .5 agree in half of the units."""
    same = np.mean((one == 0) == (other == 0))
    assert abs(same - 0.5) < DEVIATIONS * np.sqrt(0.25 / one.size)


def assert_variance(outputs, expected):
    """Of a sum of `expected` independent units that are 0 or 2: its kurtosis is < 3."""
    outputs = ops.convert_to_numpy(outputs)
    bound = DEVIATIONS * expected * np.sqrt(2 / outputs.size)
    assert abs(outputs.var() - expected) < bound


def assert_equal(one, other):
    np.testing.assert_array_equal(
        ops.convert_to_numpy(one), ops.convert_to_numpy(other)
    )


# A function inside the model


class Decorated(keras.Model):
    """A model whose call is a function that TensorFlow traces once."""

    def __init__(self):
        super().__init__()
        self.drop = drop()

    @tf.function
    def call(self, inputs, training=False):
        return self.drop(inputs, training=training)


class Helped(keras.layers.Layer):
    """A layer that calls a function with a drop layer in it, twice."""

    def __init__(self, decorate):
        super().__init__()
        self.drop = drop()
        self.helper = decorate(lambda x: self.drop(x))

    def call(self, inputs):
        return ops.concatenate([self.helper(inputs), self.helper(inputs)], axis=-1)


SPEC = tf.TensorSpec((None, 64))


def functional(layer):
    inputs = keras.Input((64,))
    return keras.Model(inputs, layer(inputs))


FUNCTIONS = {
    "decorated": Decorated,
    "helper": lambda: functional(Helped(tf.function)),
    "signature": lambda: functional(
        Helped(lambda f: tf.function(f, input_signature=[SPEC]))
    ),
    "relaxed": lambda: functional(
        Helped(lambda f: tf.function(f, reduce_retracing=True))
    ),
    "nested": lambda: functional(Helped(lambda f: tf.function(tf.function(f)))),
}


@on_tensorflow
@pytest.mark.parametrize("network", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("first", ["inference", "sampler", "sample"])
def test_a_function_inside_the_model_is_sampled(network, first):
    model = network()
    calls = {
        "inference": lambda: model(ONES),
        "sampler": lambda: kdrop.Sampler(model)(ONES),
        "sample": lambda: sample(model),
    }
    calls[first]()
    for _ in range(2):
        assert fraction(model(ONES)) == 0
        assert fraction(model.predict(ONES, verbose=0)) == 0
        assert_drops_half(kdrop.Sampler(model)(ONES))
        assert_drops_half(kdrop.Sampler(model).predict(ONES, verbose=0))
        samples = sample(model)
        assert_drops_half(samples)
        assert_differ(samples[0], samples[1])
        if samples.shape[-1] == 128:  # called twice, traced once
            assert_differ(samples[..., :64], samples[..., 64:])
        if model.built and hasattr(model, "drop"):
            assert_drops_half(model(ONES, training=True))
    assert_equal(kdrop.Sampler(model, seed=1)(ONES), sample(model)[0])


@on_tensorflow
def test_a_function_inside_the_model_is_exported_as_it_is(tmp_path):
    layer = kdrop.VanillaDropout(0.25, name="scaled")
    outer = keras.Sequential([keras.Input((64,)), Wrapped(layer)])
    outer(ONES)
    from kdrop.serving.saved_model import export

    loaded = tf.saved_model.load(str(export(outer, tmp_path, task="regression")))
    served = loaded.signatures["serve"](inputs=tf.constant(ONES))["probabilities"]
    np.testing.assert_allclose(served, 0.75)
    assert (
        (loaded.signatures["sample"](inputs=tf.constant(ONES))["std"] > 0).numpy().all()
    )
    layer.rate = 0.5  # what was traced for the export is not used here
    np.testing.assert_allclose(outer(ONES), 0.5)


@keras.saving.register_keras_serializable("tests")
class Wrapped(keras.layers.Layer):
    """A layer that calls a layer in a function of its own."""

    def __init__(self, layer):
        super().__init__()
        self.model = layer
        self.helper = tf.function(lambda x: self.model(x))

    def call(self, inputs):
        return self.helper(inputs)

    def get_config(self):
        return {"layer": keras.saving.serialize_keras_object(self.model)}


@on_tensorflow
def test_what_xla_compiles_cannot_count_calls_and_is_refused():
    model = functional(Helped(lambda f: tf.function(f, jit_compile=True)))
    with pytest.raises(ValueError, match="^A drop layer was called inside a loop or a"):
        sample(model)
    assert_drops_half(kdrop.Sampler(model)(ONES))  # draws from its own count


@on_tensorflow
def test_a_concrete_function_cannot_be_sampled():
    def concrete(function):
        return tf.function(function).get_concrete_function(SPEC)

    model = functional(Helped(concrete))
    for refused in (
        lambda: sample(model),
        lambda: kdrop.Sampler(model)(ONES),
        lambda: kdrop.Sampler(model).predict(ONES, verbose=0),
    ):
        with pytest.raises(ValueError, match=r"\['drop'\] were not called.*concrete"):
            refused()
    partly = functional(Helped(concrete))
    partly = keras.Sequential([keras.Input((64,)), drop(name="seen"), partly])
    with pytest.warns(UserWarning, match=r"\['drop'\] were not called"):
        sample(partly)


@on_tensorflow
def test_functions_are_sampled_on_replicas(strategy):
    with strategy.scope():
        sampler = kdrop.Sampler(Decorated())
    outputs = strategy.run(tf.function(sampler), (tf.constant(ONES),))
    one, other = (x.numpy() for x in strategy.experimental_local_results(outputs))
    assert_drops_half(one)
    assert_differ(one, other)


# Layers of one name


def block(seed=None):
    return keras.Sequential([keras.Input((64,)), drop(name="dropout", seed=seed)])


def sum_of(blocks):
    inputs = keras.Input((64,))
    return keras.Model(inputs, ops.sum(ops.stack([b(inputs) for b in blocks]), axis=0))


@pytest.mark.parametrize("seed", [None, 7])
def test_blocks_of_one_class_have_masks_of_their_own(seed):
    model = sum_of([block(seed) for _ in range(8)])
    assert_variance(sample(model, passes=50), 8)
    many = np.ones((512, 64), "float32")
    assert_variance(kdrop.Sampler(model)(many), 8)
    assert_variance(model(many, training=True), 8)


def test_copies_of_one_file_have_masks_of_their_own(tmp_path):
    block().save(tmp_path / "block.keras")
    copies = [keras.models.load_model(tmp_path / "block.keras") for _ in range(8)]
    for number, copy in enumerate(copies):
        copy.name = f"copy_{number}"
    model = sum_of(copies)
    assert_variance(sample(model, passes=50), 8)
    assert_variance(model(np.ones((512, 64), "float32"), training=True), 8)


def test_the_first_of_a_name_has_the_masks_that_it_has_alone():
    alone = sample(block(3))
    first, *_ = keras.models.Model(*two_outputs()).outputs
    assert first.shape == (None, 64)
    assert_equal(sample(keras.Model(*two_outputs()))[0], alone)


def two_outputs():
    inputs = keras.Input((64,))
    return inputs, [block(3)(inputs), block(3)(inputs)]


def test_samples_are_those_of_the_loaded_model(tmp_path):
    model = sum_of([block() for _ in range(3)])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_equal(sample(loaded), sample(model))
    assert_equal(sample(keras.models.clone_model(model)), sample(model))


def test_a_seeded_sampler_is_pass_0():
    model = sum_of([block() for _ in range(3)])
    sampler = kdrop.Sampler(model, seed=5)
    expected = sample(model, seed=5)[0]
    assert_equal(sampler(ONES), expected)
    assert_equal(sampler.predict(ONES, batch_size=5, verbose=0), expected)
    traced = sampler if JAX else tf.function(sampler)
    assert_equal(traced(ONES), expected)
    with pytest.raises(ValueError, match="neither `steps` nor `callbacks`"):
        sampler.predict(ONES, steps=1)
    copy = kdrop.Sampler.from_config(sampler.get_config())
    assert copy.seed == 5
    with pytest.raises(ValueError, match="seed=-1"):
        kdrop.Sampler(model, seed=-1)


# The first axis of what is dropped is not that of the examples


class Folded(keras.layers.Layer):
    """Drops inputs (batch, time, features) with time and batch in another form."""

    def __init__(self, form):
        super().__init__()
        self.drop, self.form = drop(), form

    def call(self, inputs):
        batch, time, features = ops.shape(inputs)
        if self.form == "position":
            return inputs * 0 + self.drop(ops.ones((1, time, features)))
        if self.form == "folded":
            flat = self.drop(ops.reshape(inputs, (-1, features)))
            return ops.reshape(flat, (batch, time, features))
        first = ops.transpose(inputs, (1, 0, 2))
        if self.form == "time first":
            return ops.transpose(self.drop(first), (1, 0, 2))
        flat = self.drop(ops.reshape(first, (-1, features)))
        return ops.transpose(ops.reshape(flat, (time, batch, features)), (1, 0, 2))


def folded_in_the_graph():
    inputs = keras.Input((12, 32))
    flat = drop()(keras.layers.Rescaling(1.0)(ops.reshape(inputs, (-1, 32))))
    return keras.Model(inputs, ops.reshape(flat, (-1, 12, 32)))


def time_first_of_unknown_length():
    inputs = keras.Input((None, 32))
    first = drop()(ops.transpose(inputs, (1, 0, 2)))
    return keras.Model(inputs, ops.transpose(first, (1, 0, 2)))


FOLDED = {
    form: lambda form=form: keras.Sequential([keras.Input((12, 32)), Folded(form)])
    for form in ("folded", "time first", "time first, folded", "position")
}
FOLDED["graph"] = folded_in_the_graph
FOLDED["unknown length"] = time_first_of_unknown_length
WINDOWS = np.ones((10, 12, 32), "float32")


@pytest.mark.parametrize("network", FOLDED.values(), ids=FOLDED)
def test_each_row_of_an_example_has_a_mask_of_its_own(network):
    model = network()
    samples = sample(model, WINDOWS, passes=12)
    assert_drops_half(samples)
    for axis in (0, 1, 2):  # passes, examples, rows of an example
        one, other = samples.take([0], axis), samples.take([1], axis)
        assert_differ(one, other)
    fewer = sample(model, WINDOWS, passes=3, batch_size=4, memory=20_000)
    assert_equal(fewer, samples[:3])
    # As many rows as time steps: nothing to see in the shapes.
    assert_equal(sample(model, WINDOWS[:1], passes=12), samples[:, :1])
    sampler = kdrop.Sampler(model, seed=1)
    assert_equal(sampler(WINDOWS), samples[0])
    assert_equal(sampler.predict(WINDOWS, batch_size=4, verbose=0), samples[0])
    if not JAX:
        with pytest.raises(Exception, match="for several examples at once"):
            tf.function(sampler)(WINDOWS)
    assert_drops_half(kdrop.Sampler(model)(WINDOWS))


# A drop layer in a loop


class Cell(keras.layers.Layer):
    """Adds dropped inputs to its state."""

    state_size = output_size = 64

    def __init__(self):
        super().__init__()
        self.drop = drop()

    def call(self, inputs, states, training=False):
        total = states[0] + self.drop(inputs, training=training)
        return total, [total]


class Loop(keras.layers.Layer):
    """Sums sixteen calls of a drop layer, most of them in a loop."""

    def __init__(self, loop):
        super().__init__()
        self.drop, self.loop = drop(), loop

    def call(self, inputs):
        total = self.drop(inputs)
        if self.loop == "fori":
            total = ops.fori_loop(0, 14, lambda _, x: x + self.drop(inputs), total)
        else:
            steps = ops.zeros((14, 1))
            step = lambda x, _: (x + self.drop(inputs), None)  # noqa: E731
            total, _ = ops.scan(step, total, steps)
        return total + self.drop(inputs)


def recurrent(unroll, steps=16):
    rnn = keras.layers.RNN(Cell(), unroll=unroll)
    return keras.Sequential([keras.Input((steps, 64)), rnn])


SEQUENCES = np.ones((16, 16, 64), "float32")
LOOPS = {
    "rnn": (lambda: recurrent(False), SEQUENCES),
    "fori": (lambda: functional(Loop("fori")), ONES),
    "scan": (lambda: functional(Loop("scan")), ONES),
}


@pytest.mark.parametrize(("network", "inputs"), LOOPS.values(), ids=LOOPS)
def test_each_call_in_a_loop_has_a_mask_of_its_own(network, inputs):
    model = network()
    if JAX:
        for refused in (
            lambda: sample(model, inputs),
            lambda: kdrop.Sampler(model)(inputs),
            lambda: kdrop.Sampler(model).predict(inputs, verbose=0),
        ):
            with pytest.raises(ValueError, match="on JAX all its calls may have one"):
                refused()
        # No tracer is left in it, only the call before the loop.
        assert kdrop.drop_layers(model)[0].draw_count in (0, 1)
        return
    samples = sample(model, inputs, passes=50)
    assert_variance(samples, 16)
    assert_equal(sample(model, inputs, passes=50), samples)  # each run counts anew
    assert_equal(kdrop.Sampler(model, seed=1).predict(inputs, verbose=0), samples[0])
    assert_variance(kdrop.Sampler(model)(np.repeat(inputs, 20, axis=0)), 16)


def test_an_unrolled_loop_is_sampled_everywhere():
    assert_variance(sample(recurrent(True, 8), SEQUENCES[:, :8], passes=50), 8)


@on_tensorflow
def test_a_served_loop_counts_its_own_calls(tmp_path):
    from kdrop.serving.saved_model import export

    model = recurrent(False)
    path = export(model, tmp_path, passes=50, task="regression")
    answer = tf.saved_model.load(str(path)).signatures["sample_seeded"]
    seeds = tf.range(16, dtype=tf.int64)
    found = answer(inputs=tf.constant(SEQUENCES), seeds=seeds)
    variances = found["std"].numpy() ** 2  # of 50 passes, with 16 x 64 units
    bound = DEVIATIONS * 16 * np.sqrt(2 / (50 * variances.size))
    assert abs(variances.mean() * 50 / 49 - 16) < bound
    again = answer(inputs=tf.constant(SEQUENCES), seeds=seeds)
    assert_equal(again["mean"], found["mean"])


class Mixed(keras.layers.Layer):
    """Calls a drop layer itself, in a function, itself and in the function again."""

    def __init__(self):
        super().__init__()
        self.drop = drop()
        self.helper = self.drop if JAX else tf.function(lambda x: self.drop(x))

    def call(self, inputs):
        calls = (self.drop, self.helper, self.drop, self.helper)
        return ops.concatenate([call(inputs) for call in calls], axis=-1)


def test_calls_inside_and_outside_of_a_function_differ():
    model = functional(Mixed())
    for outputs in (sample(model), kdrop.Sampler(model, seed=1)(ONES)[None]):
        parts = np.split(ops.convert_to_numpy(outputs), 4, axis=-1)
        for one in range(4):
            for other in range(one):
                assert_differ(parts[one], parts[other])


def test_a_drop_layer_in_a_closure_is_not_shared():
    layer = drop()
    inputs = keras.Input((64,))
    hidden = keras.layers.Lambda(lambda x: layer(x))(inputs)
    samples = sample(keras.Model(inputs, layer(hidden)), passes=50)
    bound = DEVIATIONS * np.sqrt(0.75 * 0.25 / samples.size)
    assert abs(fraction(samples) - 0.75) < bound


def test_a_stateful_model_is_refused():
    layers = [keras.Input((4, 3), batch_size=2), drop()]
    model = keras.Sequential(
        [*layers, keras.layers.LSTM(2, stateful=True, name="state")]
    )
    inputs = np.ones((2, 4, 3), "float32")
    for refused in (
        lambda: sample(model, inputs),
        lambda: kdrop.Sampler(model, seed=1)(inputs),
    ):
        with pytest.raises(ValueError, match=r"stateful layers .*state"):
            refused()


# A graph that no longer holds


def lora(model):
    model.layers[0].enable_lora(2)
    model.layers[0].lora_kernel_b.assign(model.layers[0].lora_kernel_b + 1)


class Table(keras.layers.Layer):
    """Multiplies by numbers in containers, which a graph holds as constants."""

    def __init__(self):
        super().__init__()
        self.one, self.other, self.array = [1.0], {"a": 1.0}, np.ones(1, "float32")

    def call(self, inputs):
        return inputs * self.one[0] * self.other["a"] * self.array[0]


CHANGES = {
    "list": lambda model: model.layers[-2].one.__setitem__(0, 3.0),
    "dictionary": lambda model: model.layers[-2].other.__setitem__("a", 0.5),
    "array": lambda model: model.layers[-2].array.__setitem__(0, 3.0),
    "activation": lambda model: setattr(
        model.layers[0], "activation", keras.activations.relu
    ),
    "noise shape": lambda model: setattr(model.layers[1], "noise_shape", (None, 1, 1)),
    "tokens": lambda model: setattr(model.layers[2], "rate", 0.25),
    "nested": lambda model: model.layers[-1].add(keras.layers.Rescaling(10.0)),
    "add": lambda model: model.add(keras.layers.Rescaling(10.0)),
    "pop": lambda model: model.pop(),
    "lora": lora,
    "precision": lambda model: setattr(
        model.layers[3], "dtype_policy", keras.DTypePolicy("mixed_bfloat16")
    ),
}
if not JAX:
    CHANGES["quantize"] = lambda model: model.quantize("int8")


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
@pytest.mark.filterwarnings("ignore:Layer .* has been traced with rate")
def test_a_changed_model_is_traced_anew():
    """Oracle: the model in eager mode, where nothing is traced."""
    layers = [
        keras.Input((8, 6)),
        keras.layers.Dense(6),
        drop(noise_shape=(None, None, None)),
        kdrop.TokenDropout(0.5, name="tokens"),
        keras.layers.Dense(6),
        Table(),
        keras.Sequential([keras.Input((None, 6)), keras.layers.Dense(6)]),
    ]
    model = keras.Sequential(layers)
    inputs = np.random.default_rng(0).normal(size=(4, 8, 6)).astype("float32")
    sampler = kdrop.Sampler(model, seed=1)
    unseeded = kdrop.Sampler(model)
    rows = np.array([[0, i, 1] for i in range(4)], "uint32")
    before = sample(model, inputs, passes=2)[0]
    for name, change in CHANGES.items():
        change(model)
        after = sample(model, inputs, passes=2)[0]
        changed = after.shape != before.shape or abs(after - before).max() > 1e-4
        assert changed, name
        with Sampling(kdrop.drop_layers(model), ops.convert_to_tensor(rows)):
            expected = ops.convert_to_numpy(model(inputs))
        np.testing.assert_allclose(after, expected, atol=0.1, rtol=1e-2, err_msg=name)
        if name in ("nested", "quantize"):
            assert unseeded.predict(inputs, verbose=0).shape == expected.shape
            outputs = sampler.predict(inputs, verbose=0)
            np.testing.assert_allclose(
                outputs, expected, atol=0.1, rtol=1e-2, err_msg=name
            )
        before = after


def test_an_unchanged_model_is_not_traced_anew():
    model = keras.Sequential([keras.Input((64,)), drop(), keras.layers.Dense(1)])
    sample(model)
    passes = vars(model)["_kdrop_passes"]
    model.compile("sgd", "mse")
    model.fit(ONES, ONES[:, :1], verbose=0)
    model.predict(ONES, verbose=0)
    model.layers[0].rate = 0.3
    sample(model)
    assert vars(model)["_kdrop_passes"] is passes


# Dropout that is not kdrop's


def test_one_warning_names_what_is_not_sampled():
    layers = [keras.Input((64,)), drop(), keras.layers.Dropout(0.5, name="theirs")]
    model = keras.Sequential([*layers, keras.layers.GaussianDropout(0.1, name="too")])
    sampler = kdrop.Sampler(model)
    for call in (
        lambda: sample(model),
        lambda: sampler(ONES),
        lambda: kdrop.Sampler(model).predict(ONES, verbose=0),
    ):
        with pytest.warns(UserWarning, match="'theirs', 'too'") as record:
            call()
        assert len(record) == 1
    sampler(ONES)  # once for a sampler
    small = keras.Sequential([keras.Input((2,)), drop(), keras.layers.Dropout(0.5)])
    with pytest.warns(UserWarning, match="stay at inference"):
        kdrop.subnetworks(small, np.ones((1, 2), "float32"))
