"""Schedule the rate as one schedules a learning rate: a warm-up, then a cosine to 0.

python examples/rate_schedule.py
"""

import keras
import numpy as np

import kdrop

inputs = np.random.default_rng(0).normal(size=(1000, 20)).astype("float32")
targets = (inputs[:, 0] * inputs[:, 1] > 0).astype("int32")
model = keras.Sequential(
    [
        keras.Input((20,)),
        kdrop.InvertedDropout(0.1, seed=1, name="drop_inputs"),
        keras.layers.Dense(256, activation="relu"),
        kdrop.InvertedDropout(0.0, seed=1, name="drop_hidden"),
        keras.layers.Dense(2, activation="softmax"),
    ]
)
model.compile("adam", "sparse_categorical_crossentropy")

# A schedule is any function from progress, 0.0 to 1.0, to a rate.
warm_up = kdrop.schedules.linear(0.0, 0.5)
cool_down = kdrop.schedules.cosine(0.5, 0.0)


def schedule(progress):
    if progress < 0.25:
        return warm_up(progress / 0.25)
    return cool_down((progress - 0.25) / 0.75)


# It sets the rate before each training step, here that of the hidden units alone.
hidden = model.get_layer("drop_hidden")
callback = kdrop.RateSchedule(schedule, layers=[hidden])
history = model.fit(inputs, targets, epochs=12, callbacks=[callback], verbose=0).history

print("epoch   rate at its end   training loss")
for epoch, (rate, loss) in enumerate(
    zip(history["rate"], history["loss"], strict=True)
):
    print(f"{epoch + 1:5} {rate:8.3f} {'#' * round(20 * rate):12} {loss:8.3f}")
print("rates:", {layer.name: layer.rate for layer in kdrop.drop_layers(model)})
