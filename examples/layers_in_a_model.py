"""Put drop layers into a Keras model, train it, and change their rates.

KERAS_BACKEND=jax python examples/layers_in_a_model.py   # or tensorflow, the default
"""

import keras
import numpy as np

import kdrop

inputs = np.random.default_rng(0).normal(size=(2000, 20)).astype("float32")
targets = (inputs[:, 0] * inputs[:, 1] > 0).astype("int32")
model = keras.Sequential(
    [
        keras.Input((20,)),
        keras.layers.Dense(256, activation="relu"),
        kdrop.InvertedDropout(0.5, seed=1, name="drop_1"),
        keras.layers.Dense(2, activation="softmax"),
    ]
)
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])

# In training the layer drops half of its inputs and doubles the others.
layer = model.get_layer("drop_1")
print("in training ", np.asarray(layer(np.ones((1, 12)), training=True)))
print("at inference", np.asarray(layer(np.ones((1, 12)), training=False)))

model.fit(inputs[:1000], targets[:1000], epochs=20, verbose=0)
accuracy = model.evaluate(inputs[1000:], targets[1000:], verbose=0)[1]
print(f"test accuracy: {accuracy:.3f}")

# A rate changes by assignment, without compiling the model again.
layer.rate = 0.3
model.fit(inputs[:1000], targets[:1000], epochs=2, verbose=0)
print("rates of all drop layers:", [drop.rate for drop in kdrop.drop_layers(model)])
