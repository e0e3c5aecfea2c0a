"""Export a model, load it with TensorFlow alone, and ask for its uncertainty.

python examples/serving.py
"""

import tempfile

import numpy as np
import tensorflow as tf

import kdrop
from kdrop.serving import export

inputs = np.random.default_rng(0).normal(size=(600, 2)).astype("float32")
labels = ("left", "right")
model = kdrop.models.spiral_mlp(kdrop.InvertedDropout, classes=2, seed=0)
model.get_layer("standardise").adapt(inputs)
model.compile("adam", "sparse_categorical_crossentropy")
model.fit(inputs, (inputs[:, 0] > 0).astype("int32"), epochs=20, verbose=0)

with tempfile.TemporaryDirectory() as folder:
    path = export(model, folder, labels=labels)
    print("version", path.name, "has", *sorted(each.name for each in path.iterdir()))
    served = tf.saved_model.load(str(path))

# Points on the left, on the right, and on the border of the two classes.
points = tf.constant([[-1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
probabilities = served.signatures["serve"](inputs=points)["probabilities"].numpy()
vote = served.signatures["sample"](inputs=points)
for row, point in enumerate(points.numpy()):
    best = probabilities[row].argmax()
    print(
        f"{point}: {labels[best]}, probability {probabilities[row, best]:.2f}, "
        f"of 50 sub-networks {vote['mean'][row, best]:.2f} ± "
        f"{vote['std'][row, best]:.2f}, entropy {vote['entropy'][row]:.2f}"
    )
print("To answer over HTTP: python -m kdrop.serving FOLDER")
