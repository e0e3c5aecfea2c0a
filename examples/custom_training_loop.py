"""A training loop that saves memory: the backward pass recomputes the network.

`StepClock` makes both computations use the same masks.

python examples/custom_training_loop.py
"""

import keras
import numpy as np
import tensorflow as tf

import kdrop

keras.utils.set_random_seed(0)
x = np.random.default_rng(0).normal(size=(1024, 8)).astype("float32")
y = x[:, :1] * x[:, 1:2]
optimizer = keras.optimizers.Adam(0.003)


def network(dropout):
    model = keras.Sequential([keras.Input((8,))])
    for number in 1, 2:
        model.add(keras.layers.Dense(128, activation="relu"))
        model.add(dropout(0.1, seed=1, name=f"drop_{number}"))
    model.add(keras.layers.Dense(1))
    return model


def gradients(model, inputs, targets, remat):
    def forward(inputs):
        return model(inputs, training=True)

    with kdrop.StepClock().start(model):  # around the backward pass, too
        with tf.GradientTape() as tape:
            outputs = (keras.remat(forward) if remat else forward)(inputs)
            loss = tf.reduce_mean((outputs - targets) ** 2)
        return loss, tape.gradient(loss, model.trainable_variables)


# Is the gradient of a step the same if the network is computed again?
for dropout in keras.layers.Dropout, kdrop.InvertedDropout:
    model = network(dropout)
    copy = keras.models.clone_model(model)  # the same seeds, and no mask drawn yet
    copy.set_weights(model.get_weights())
    _, (expected, *_) = gradients(copy, x, y, remat=False)
    _, (recomputed, *_) = gradients(model, x, y, remat=True)
    error = np.linalg.norm(recomputed - expected) / np.linalg.norm(expected)
    print(f"{dropout.__name__:16} relative error of the gradient {error:.2f}")


# Without XLA, TensorFlow may recompute with weights that are already updated.
@tf.function(jit_compile=True)
def step(inputs, targets):
    loss, change = gradients(model, inputs, targets, remat=True)
    optimizer.apply(change, model.trainable_variables)
    return loss


for _ in range(30):
    losses = [step(x[i : i + 64], y[i : i + 64]) for i in range(0, 1024, 64)]
print(f"mean loss of the last epoch: {np.mean(losses):.3f}")
