"""A model of text, integers and booleans, exported for several tests."""

import keras

import kdrop
from kdrop.serving import export

LABELS = ("red", "green", "blue")


def mixed(folder):
    """Export a model of text, integers and booleans that also answers with text."""
    keras.utils.set_random_seed(0)
    words = keras.layers.TextVectorization(output_sequence_length=4)
    words.adapt(["red fish", "blue"])
    inputs = {
        "text": keras.Input((1,), dtype="string", name="text"),
        "age": keras.Input((1,), dtype="int32", name="age"),
        "new": keras.Input((1,), dtype="bool", name="new"),
    }
    numbers = [words(inputs["text"]), inputs["age"], inputs["new"]]
    numbers = [keras.ops.cast(each, "float32") for each in numbers]
    joined = keras.layers.Concatenate()(numbers)
    joined = kdrop.InvertedDropout(0.5, seed=1, name="drop")(joined)
    color = keras.layers.Dense(3, activation="softmax")(joined)
    name = keras.layers.StringLookup(vocabulary=LABELS, oov_token="ü", invert=True)
    outputs = {"color": color, "name": name(keras.ops.argmax(color, axis=-1) + 1)}
    return export(keras.Model(inputs, outputs), folder, passes=5)
