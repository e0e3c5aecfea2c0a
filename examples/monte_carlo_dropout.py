"""Monte Carlo dropout for a regression: ask many sub-networks for error bars.

python examples/monte_carlo_dropout.py [PICTURE]
"""

import sys
import tempfile
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np

import kdrop

rng = np.random.default_rng(0)
x = rng.uniform(-1, 1, size=(400, 1)).astype("float32")
y = np.sin(4 * x) + 0.05 * rng.normal(size=x.shape)

keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((1,))])
for number in 1, 2:
    model.add(keras.layers.Dense(128, activation="relu"))
    model.add(kdrop.InvertedDropout(0.1, seed=0, name=f"drop_{number}"))
model.add(keras.layers.Dense(1))
model.compile("adam", "mse")
model.fit(x, y, epochs=50, verbose=0)

# One prediction at inference, and those of 100 random sub-networks.
points = np.linspace(-2, 2, 201, dtype="float32")[:, None]
prediction = model.predict(points, verbose=0)
samples = kdrop.sample(model, points, passes=100, seed=0, verbose=0)
votes = kdrop.summarise(samples, task="regression")

print("The training data are in [-1, 1]. Outside, the sub-networks disagree.")
print("    x    sin(4 x)  prediction  mean of samples  standard deviation")
columns = points, np.sin(4 * points), prediction, votes.mean, votes.std
for row in list(zip(*map(np.ravel, columns), strict=True))[::25]:
    print("{:6.2f} {:9.2f} {:11.2f} {:13.2f} {:18.2f}".format(*row))

line = points[:, 0]
plt.figure(figsize=(6, 3.2), layout="constrained")
plt.scatter(x, y, s=6, c="grey", label="training data")
plt.plot(line, prediction, c="C1", label="prediction at inference")
low, _, high = votes.quantiles[..., 0]
plt.fill_between(line, low, high, alpha=0.3, label="5 % to 95 % of the sub-networks")
plt.legend()
picture = Path(*sys.argv[1:2] or [tempfile.mkdtemp(), "error_bars.png"])
plt.savefig(picture)
print("picture:", picture)
