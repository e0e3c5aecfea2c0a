"""Find images unlike the training data by the disagreement of the sub-networks.

python examples/out_of_distribution.py [PICTURE]
"""

import sys
import tempfile
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np

import kdrop

rng = np.random.default_rng(0)


def images(shape, number):
    """Noisy images of one shape at random places."""
    down, right = np.mgrid[:12, :12][:, None] - rng.integers(3, 9, (2, number, 1, 1))
    pixels = {
        "horizontal bar": abs(down) < 1,
        "vertical bar": abs(right) < 1,
        "disc": down**2 + right**2 < 9,
        "cross": (abs(down) < 1) | (abs(right) < 1),
    }[shape]
    return (pixels + rng.normal(0, 0.3, pixels.shape)).astype("float32")


known = ("horizontal bar", "vertical bar", "disc")
x = np.concatenate([images(shape, 300) for shape in known])
new = {shape: images(shape, 100) for shape in (*known, "cross")}

keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((12, 12)), keras.layers.Flatten()])
for number in 1, 2:
    model.add(keras.layers.Dense(256, activation="relu"))
    model.add(kdrop.InvertedDropout(0.5, seed=0, name=f"drop_{number}"))
model.add(keras.layers.Dense(3, activation="softmax"))
model.compile("adam", "sparse_categorical_crossentropy")
model.fit(x, np.repeat(range(3), 300), epochs=20, verbose=0)

information = {}
print("Means of 100 new images: mutual information, largest probability at inference")
for shape, x in new.items():
    votes = kdrop.summarise(kdrop.sample(model, x, passes=100, seed=0, verbose=0))
    information[shape] = votes.mutual_information
    probability = model.predict(x, verbose=0).max(axis=1)
    print(f"{shape:14} {information[shape].mean():.3f} {probability.mean():.2f}")

figure, panels = plt.subplots(1, 4, figsize=(6, 2), layout="constrained")
for panel, (shape, x) in zip(panels, new.items(), strict=True):
    panel.imshow(x[0], cmap="gray")
    panel.set_title(f"{shape}\n{information[shape][0]:.2f}")
    panel.axis("off")
picture = Path(*sys.argv[1:2] or [tempfile.mkdtemp(), "out_of_distribution.png"])
figure.savefig(picture)
print("picture:", picture)
