"""Runs of one process and of two on the JAX backend, and whether they are the same."""

import numpy as np
from processes import free_port, process_starter, wait_for

# Trains for 50 epochs of one step, and draws a mask of each layer for a whole batch.
SHARED = """
import sys
import jax, keras, kdrop, numpy as np
from dataclasses import replace
from pathlib import Path
from jax.experimental.multihost_utils import process_allgather
from kdrop.training import devices, progress, run
from kdrop.training.data import Part
from kdrop.training.experiment import Experiment
from kdrop.training.settings import DeviceOptions

_, name, _, processes, _, process, *coordinator = sys.argv
EXPERIMENTS = {
    # An odd number of examples, so that one is repeated.
    "spiral": Experiment.preset(
        "spiral", train_size=101, validation=0.0, batch_size=101, epochs=50,
        steps_per_epoch=1, hidden=(16,),
    ),
    # Without batch normalisation, where a different order of sums would change losses.
    "cifar10": Experiment.preset(
        "cifar10", model="mnist_mlp", hidden=(64,), train_size=128, validation=0.0,
        batch_size=128, epochs=50, shift=2,
    ),
}
# The clocks of the processes differ: let one of them never save.
progress.SAVE_SECONDS = 1e9 if process == "0" else 0
options = DeviceOptions(None, int(processes), int(process), *coordinator[1:])
shared = devices.join(options)

def mask(layer, batch):
    shape = (batch, *layer.input.shape[1:])
    ones = np.ones((batch // shared.processes, *shape[1:]), "float32")
    if shared.processes > 1:
        layout = keras.distribution.distribution().get_data_layout(shape)
        ones = jax.make_array_from_process_local_data(layout.backend_layout, ones)
    state = [variable.value for variable in layer.non_trainable_variables]
    step = jax.jit(lambda *args: layer.stateless_call([], *args, training=True)[0])
    return process_allgather(step(state, ones), tiled=True)

class Stop(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = epoch == 20

experiment = EXPERIMENTS[name]
data = run.load_data(experiment)
data = replace(data, test=Part(data.test.inputs[:1000], data.test.targets[:1000]))
keras.utils.set_random_seed(0)  # JAX needs the same weights in all processes
with shared.scope():
    # `images` has several drop layers, on feature maps too.
    small = {"width": 4, "hidden": (16,), "input_shape": (32, 32, 3), "seed": 0}
    images = kdrop.models.alexnet32(kdrop.InvertedDropout, **small)
    networks = run.network(experiment, data), images
    results = {
        f"{network.name}/{layer.name}": mask(layer, experiment.batch_size // 2 * 2)
        for network in networks
        for layer in kdrop.drop_layers(network)
    }
folder = Path(f"{name}-{process}-of-{processes}")
runs = []
for seed in range(3):
    checkpoint = progress.Checkpoint(folder / str(seed))
    seeded = replace(experiment, seed=seed)
    if shared.processes > 1 and seed == 2:
        # The run of this seed is stopped, and resumed from its last epoch.
        progress.SAVE_SECONDS = 0
        run.train(seeded, data, checkpoint, callbacks=[Stop()], devices=shared)
        assert checkpoint.saved[-1].stem == "epoch-0000021"
    runs.append(run.train(seeded, data, checkpoint, devices=shared))
results["losses"] = [each.history["loss"] for each in runs]
results["accuracy"] = [each.metrics["test_accuracy"] for each in runs]
np.savez(folder.with_suffix(".npz"), **results)
"""


def run_alone_and_as_two(folder, name):
    """Leave the results of one process and of two in the folder."""
    command = "-c", SHARED, name
    with process_starter(folder, f"localhost:{free_port()}") as start:
        for process in [start(0, 1, command=command)] + [
            start(number, 2, command=command) for number in range(2)
        ]:
            code, _, errors = wait_for(process)
            assert code == 0, errors


def assert_as_one(folder, name):
    single = np.load(folder / f"{name}-0-of-1.npz")
    assert single["losses"].shape == (3, 50)  # seeds, epochs
    masks = {*single.files} - {"losses", "accuracy"}
    assert len(masks) == 5
    for number in range(2):
        pair = np.load(folder / f"{name}-{number}-of-2.npz")
        for layer in masks:
            assert 0.02 < np.mean(single[layer] == 0) < 0.98
            np.testing.assert_array_equal(pair[layer], single[layer])
        np.testing.assert_allclose(pair["losses"], single["losses"], rtol=1e-5)
        # One of the 1,000 may be at the border of two classes; seeds differ by more.
        difference = np.max(np.abs(pair["accuracy"] - single["accuracy"]))
        assert difference < 0.0011 and difference <= np.ptp(single["accuracy"])
