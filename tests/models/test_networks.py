"""Networks: their layers, training and files."""

import keras
import numpy as np
import pytest
import tensorflow
from small_models import SMALL, build, kinds, parameters, rates

from kdrop import models

QUICK = [name for name in SMALL if name != "alexnet"]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in QUICK[1:]]


def norms(model):
    """The length of the weights into each hidden unit, convolutions included."""
    kernels = [x.kernel.numpy() for x in model.layers[:-1] if hasattr(x, "kernel")]
    return [np.sqrt((k**2).sum(axis=tuple(range(k.ndim - 1)))) for k in kernels]


def examples(model, count=6):
    generator = np.random.default_rng(0)
    shape = (count, *model.input_shape[1:])
    return generator.uniform(0, 255, shape).astype("float32")


def test_every_builder_is_tested():
    assert set(SMALL) == set(models.MODELS)
    assert all(models.MODELS[name].__name__ == name for name in models.MODELS)


def test_spiral_mlp_is_the_document_network():
    model = models.spiral_mlp(keras.layers.Dropout, 0.1, hidden=(512,), l2=5e-4)
    assert kinds(model) == ["Normalization", "Dense", "Dropout", "Dense"]
    assert [x.shape for x in parameters(model)] == [(2, 512), (512,), (512, 3), (3,)]
    model.layers[1].bias.assign(np.linspace(-1, 1, 512))
    kernel, bias = parameters(model, last=False)
    expected = 5e-4 * np.sum(kernel**2) + 5e-4 * np.sum(bias**2)
    np.testing.assert_allclose(sum(model.losses), expected, rtol=1e-6)


def test_mnist_mlp_layers():
    model = models.mnist_mlp(keras.layers.Dropout, input_rate=0.2)
    flat = ["Normalization", "Flatten", "Dropout"]
    assert kinds(model) == flat + ["Dense", "Dropout"] * 2 + ["Dense"]
    assert sum(x.size for x in parameters(model)) == 1_863_690
    assert rates(model) == {"drop_input": 0.2, "drop_1": 0.25, "drop_2": 0.25}


@pytest.mark.slow
def test_alexnet_has_the_parameters_of_torchvision():
    shape = (224, 224, 3)
    model = models.alexnet(keras.layers.Dropout, 0.25, classes=1000, input_shape=shape)
    assert sum(np.prod(w.shape) for w in model.trainable_weights) == 61_100_840
    convolutions = [x for x in model.layers if isinstance(x, keras.layers.Conv2D)]
    sizes = [(55, 55), (27, 27), (13, 13), (13, 13), (13, 13)]
    assert [x.output.shape[1:3] for x in convolutions] == sizes
    assert [x.filters for x in convolutions] == [64, 192, 384, 256, 256]
    start = kinds(model).index("Flatten")
    assert model.layers[start].output.shape == (None, 9216)
    classifier = ["Dropout", "Dense", "Dropout", "Dense", "Dense"]
    assert kinds(model)[start + 1 :] == classifier
    assert rates(model) == {"drop_1": 0.25, "drop_2": 0.25}


@pytest.mark.slow
def test_alexnet_resizes_images_of_another_size():
    keras.utils.set_random_seed(0)
    small = build("alexnet", input_shape=(32, 20, 3))
    large = build("alexnet")
    assert "Resizing" not in kinds(large)
    large.set_weights(small.get_weights())
    for model in (small, large):
        model.get_layer("standardise").adapt_variance.assign([1e4] * 3)
        model.get_layer("standardise").finalize_state()
    images = examples(small, 4)
    resized = tensorflow.image.resize(images, (224, 224))
    outputs = small.predict(images, verbose=0)
    expected = large.predict(resized, verbose=0)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-6)
    assert len(np.unique(outputs, axis=0)) == 4


def test_alexnet32_layers():
    model = models.alexnet32(keras.layers.Dropout, width=8, hidden=(40, 30))
    convolutions = [x for x in model.layers if isinstance(x, keras.layers.Conv2D)]
    sizes = [(32, 32, 8), (16, 16, 24), (8, 8, 48), (8, 8, 32), (8, 8, 32)]
    assert [x.output.shape[1:] for x in convolutions] == sizes
    start = kinds(model).index("Flatten")
    assert model.layers[start].output.shape == (None, 512)
    classifier = ["Dense", "Dropout", "Dense", "Dropout", "Dense"]
    assert kinds(model)[start + 1 :] == classifier
    block = ["Conv2D", "MaxPooling2D", "BatchNormalization", "ReLU", "Dropout"]
    assert kinds(model)[1:11] == block * 2
    assert kinds(model)[start - 1] == "Dropout"
    assert list(rates(model).values()) == [0.05, 0.05, 0.1, 0.25, 0.25]


def test_resnet32_layers():
    model = models.resnet32(keras.layers.Dropout, 0.6, width=8, hidden=(40,))
    adds = [x for x in model.layers if isinstance(x, keras.layers.Add)]
    sizes = [(32, 32, 8), (16, 16, 16), (8, 8, 32)]
    assert [x.output.shape[1:] for x in adds] == [x for x in sizes for _ in range(2)]
    expected = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.6]
    assert list(rates(model).values()) == pytest.approx(expected)
    # Dropout follows a ReLU and precedes the last convolution of a branch.
    drop = model.get_layer("drop_1")
    inner = [x for x in model.layers if getattr(x, "input", None) is drop.output]
    assert kinds(model)[model.layers.index(drop) - 1] == "ReLU"
    assert [type(x).__name__ for x in inner] == ["Conv2D"]
    assert inner[0].output is adds[0].input[1]
    assert kinds(model)[-3:] == ["Dense", "Dropout", "Dense"]
    assert model.get_layer("drop_7").input.shape == (None, 40)
    convolutions = [x for x in model.layers if isinstance(x, keras.layers.Conv2D)]
    sides = [x.kernel_size[0] for x in convolutions]
    assert (sides.count(3), sides.count(1)) == (1 + 12, 2)


def test_srivastava_cnn_layers():
    model = models.srivastava_cnn(keras.layers.Dropout)
    block = ["Conv2D", "MaxPooling2D", "Dropout"]
    assert kinds(model) == (
        ["Normalization", "Dropout", *block * 3, "Flatten"]
        + ["Dense", "Dropout"] * 2
        + ["Dense"]
    )
    pools = [x for x in model.layers if isinstance(x, keras.layers.MaxPooling2D)]
    sizes = [(16, 16, 96), (8, 8, 128), (4, 4, 256)]
    assert [x.output.shape[1:] for x in pools] == sizes
    assert list(rates(model).values()) == [0.1, 0.25, 0.25, 0.5, 0.5, 0.5]
    assert sum(x.size for x in parameters(model)) == 13_741_578
    hidden = [x for x in model.layers[:-1] if hasattr(x, "kernel_constraint")]
    assert [x.kernel_constraint.max_value for x in hidden] == [4.0] * 5
    assert model.layers[-1].kernel_constraint is None


def test_concat_mlp_passes_all_hidden_outputs_to_the_last_layer():
    model = build("concat_mlp")
    first, second, last = (x for x in model.layers if hasattr(x, "kernel"))
    inputs = examples(model)
    hidden = np.maximum(inputs.reshape(len(inputs), -1) @ first.kernel, 0)
    deeper = np.maximum(hidden @ second.kernel, 0)
    logits = np.concatenate([hidden, deeper], axis=1) @ last.kernel
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = odds / odds.sum(axis=1, keepdims=True)
    outputs = model.predict(inputs, verbose=0)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-7)


def test_concat_mlp_drops_before_concatenating():
    model = build("concat_mlp", keras.layers.Dropout, (0.1, 0.2))
    (joint,) = (x for x in model.layers if isinstance(x, keras.layers.Concatenate))
    drops = [model.get_layer("drop_1").output, model.get_layer("drop_2").output]
    assert all(x is y for x, y in zip(joint.input, drops, strict=True))
    assert rates(model) == {"drop_1": 0.1, "drop_2": 0.2}


@pytest.mark.parametrize("name", QUICK[:1] + SLOW)
def test_max_norm_holds_after_a_training_step(name):
    model = build(name, keras.layers.Dropout, 0.2, max_norm=0.7)
    assert max(x.max() for x in norms(model)) > 0.8
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    model.train_on_batch(examples(model) / 255, np.zeros(6))
    longest = [x.max() for x in norms(model)]
    np.testing.assert_allclose(longest, 0.7, rtol=1e-5)


@pytest.mark.parametrize("name", QUICK[:1] + SLOW)
def test_one_class_trains_with_binary_crossentropy(name):
    keras.utils.set_random_seed(0)
    model = build(name, keras.layers.Dropout, 0.1, classes=1)
    inputs, targets = examples(model, 16), np.arange(16) % 2
    inputs[targets == 0] -= 600
    model.get_layer("standardise").adapt(inputs)
    model.compile(keras.optimizers.Adam(0.005), "binary_crossentropy")
    losses = [float(model.train_on_batch(inputs, targets)) for _ in range(20)]
    # No constant answer has a lower loss than log 2.
    assert np.mean(losses[-5:]) < np.log(2)
    outputs = model(inputs, training=False)
    assert outputs.shape == (16, 1)
    assert np.ptp(outputs) > 0.1


@pytest.mark.parametrize("name", QUICK[:1] + SLOW)
def test_save_and_load(name, tmp_path):
    model = build(name, keras.layers.Dropout, max_norm=3.0, l1=0.1, norm_penalty=0.2)
    inputs = examples(model)
    model.get_layer("standardise").adapt(inputs)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    expected = model.predict(inputs, verbose=0)
    np.testing.assert_array_equal(loaded.predict(inputs, verbose=0), expected)
    np.testing.assert_allclose(sum(loaded.losses), sum(model.losses), rtol=1e-6)
    assert rates(loaded) == rates(model)


@pytest.mark.parametrize("name", QUICK[:1] + SLOW)
def test_probabilities_are_float32_in_mixed_precision(name):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = build(name, keras.layers.Dropout)
    finally:
        keras.config.set_dtype_policy(before)
    inputs = examples(model)
    # A mean that float16 would round to the nearest 32.
    shift = inputs + 60_000 if name == "spiral_mlp" else inputs
    model.get_layer("standardise").adapt(shift)
    outputs = model.predict(shift, verbose=0)
    assert outputs.dtype == "float32"
    np.testing.assert_allclose(outputs.sum(axis=1), 1.0, atol=1e-6)
    assert len(np.unique(outputs, axis=0)) == len(outputs)
