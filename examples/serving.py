"""Export a model, load it with TensorFlow alone, then serve it and ask over HTTP.

python examples/serving.py
"""

import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

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
points = [[-1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]  # left, right, and on the border

with tempfile.TemporaryDirectory() as folder:
    path = export(model, Path(folder, "sides"), labels=labels)
    print("exported version", path.name)

    # TensorFlow alone loads it.
    served = tf.saved_model.load(str(path))
    answer = served.signatures["serve"](inputs=tf.constant(points))
    vote = served.signatures["sample"](inputs=tf.constant(points))
    for row, probabilities in enumerate(answer["probabilities"].numpy()):
        best = probabilities.argmax()
        print(
            f"{points[row]}: {labels[best]}, probability {probabilities[best]:.2f}, "
            f"of 50 sub-networks {vote['mean'][row, best]:.2f} ± "
            f"{vote['std'][row, best]:.2f}, entropy {vote['entropy'][row]:.2f}"
        )

    # The server writes its address to its log, and answers over HTTP.
    command = [sys.executable, "-m", "kdrop.serving", path.parent, "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        address = next(line for line in server.stderr if "http://" in line).split()[-1]
        url = f"{address}/v1/models/sides:predict"
        body = json.dumps({"signature_name": "sample", "instances": points[2:]})
        with urllib.request.urlopen(url, body.encode()) as response:
            reply = json.load(response)
        for name, value in {**reply.pop("predictions")[0], **reply}.items():
            print(f"{name}: {value}")
    finally:
        server.terminate()
        server.communicate()
