"""Images on several devices of one machine."""

import numpy as np
import pytest
from runs import Losses, run

from kdrop.training.experiment import Experiment

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("single_steps")]


def test_images_on_two_devices_train_as_on_one(tmp_path, pair, cifar10_folder):
    experiment = Experiment.preset(
        "cifar10", model="mnist_mlp", hidden=(64,), train_size=128, validation=0.0,
        batch_size=128, epochs=50, shift=2,
    )  # fmt: skip
    expected, losses = Losses(), Losses()
    one = run(experiment, tmp_path / "one", [expected])
    two = run(experiment, tmp_path / "two", [losses], devices=pair)
    assert len(losses.losses) == 50
    np.testing.assert_allclose(losses.losses, expected.losses, rtol=1e-5)
    # A few of the 10,000 test images lie on the border of two classes.
    assert abs(two.metrics["test_accuracy"] - one.metrics["test_accuracy"]) < 0.001
