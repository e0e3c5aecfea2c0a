"""Terms of the loss; `NormPenalty` is tested with the networks."""

import keras
import numpy as np
import pytest

from kdrop import models


def test_label_smoothing_spreads_a_part_of_each_target(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4, "softmax")])
    model.compile("sgd", models.SmoothedCrossentropy(label_smoothing=0.2))
    model.save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    inputs = np.random.default_rng(0).normal(size=(6, 2)).astype("float32")
    targets, weights = np.arange(6) % 4, np.arange(6.0)
    logs = np.log(model.predict(inputs, verbose=0))
    losses = -0.8 * logs[np.arange(6), targets] - 0.2 * logs.mean(axis=1)
    for shaped in (targets, targets[:, None]):
        loss = model.evaluate(inputs, shaped, verbose=0)
        np.testing.assert_allclose(loss, losses.mean(), rtol=1e-5)
    weighted = model.evaluate(inputs, targets, sample_weight=weights, verbose=0)
    np.testing.assert_allclose(weighted, (losses * weights).mean(), rtol=1e-5)


@pytest.mark.parametrize(("shape", "axis"), [((2, 3, 4), -1), ((2, 3), 0)])
def test_label_smoothing_takes_one_target_an_example(shape, axis):
    loss = models.SmoothedCrossentropy(label_smoothing=0.1, axis=axis)
    with pytest.raises(ValueError, match=r"must have the shape \(batch, classes\)"):
        loss(np.zeros(2, "int32"), np.ones(shape, "float32"))
