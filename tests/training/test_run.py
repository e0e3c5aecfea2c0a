"""One run: training, resuming and evaluation."""

import io
import re

import keras
import numpy as np
import pytest
from rich.console import Console
from runs import StopAfter, run, small

from kdrop.errors import UserError
from kdrop.training.run import (
    Run,
    SeedRuns,
    build,
    load_data,
    network,
    steps_per_epoch,
)


@pytest.fixture(autouse=True)
def every_epoch_is_saved(monkeypatch):
    monkeypatch.setattr("kdrop.training.progress.SAVE_SECONDS", 0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with a penalty, its folder, and the lines that it printed."""
    folder = tmp_path_factory.mktemp("finished")
    console = Console(width=200, record=True, file=io.StringIO())
    result = run(small(l2=1e-2), folder / "run", console=console)
    return result, folder / "run", console.export_text().splitlines()


class Rates(keras.callbacks.Callback):
    """The rates of a model at each call of the training function."""

    def __init__(self):
        super().__init__()
        self.rates = []

    def on_train_batch_end(self, batch, logs=None):
        self.rates.append([x.rate for x in self.model.layers if hasattr(x, "rate")])


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        # Epochs that end in the middle of a pass over the data, of 5 batches.
        {"dropout": "VanillaDropout", "steps_per_epoch": 7},
        {"hidden": (16, 8), "rate": (0.2, 0.6), "schedule": "linear"},
        {
            **{"optimizer": "sgd", "weight_decay": 0.1, "warmup": 0.5},
            **{"label_smoothing": 0.1, "learning_rate": 0.1, "steps_per_epoch": 5},
        },
    ],
    ids=str,
)
def test_a_resumed_run_ends_with_the_same_weights(settings, tmp_path):
    experiment = small(**settings)
    rates, before, after = Rates(), Rates(), Rates()
    console = Console(width=200, record=True, file=io.StringIO())
    whole = run(experiment, tmp_path / "whole", [rates], console)
    with pytest.raises(KeyboardInterrupt):
        run(experiment, tmp_path / "stopped", [before, StopAfter(4)])
    resumed = run(experiment, tmp_path / "stopped", [after])
    for a, b in zip(
        whole.model.get_weights(), resumed.model.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert before.rates + after.rates == rates.rates
    steps = 6 * experiment.steps_per_epoch
    assert int(resumed.model.optimizer.iterations) == steps
    assert whole.history["epoch"] == [1, 2, 3, 4, 5, 6]
    for name in set(whole.history) - {"seconds"}:
        assert whole.history[name] == resumed.history[name]
    assert np.all(np.diff(resumed.history["seconds"]) > 0)
    if experiment.schedule == "linear":
        # The five steps of an epoch share a rate; that of the last epoch is 0.
        factors = [1 - step / 25 for step in range(0, 30, 5)]
        expected = np.outer(factors, [0.2, 0.6])
        np.testing.assert_allclose(rates.rates, expected, atol=1e-12)
        columns = [whole.history[f"rate_drop_{number}"] for number in (1, 2)]
        assert np.transpose(columns).tolist() == rates.rates
        assert "  rate 0.2/0.6  " in console.export_text()


def test_resuming_a_finished_run_trains_nothing(finished):
    whole, folder, _ = finished
    again = run(small(l2=1e-2), folder)
    assert again.history == whole.history
    assert again.metrics == whole.metrics


def test_a_line_shows_the_parts_of_the_loss(finished):
    result, _, lines = finished
    pattern = re.compile(
        r"InvertedDropout  epoch (\d)/6  loss (\S+) \+ reg (\S+)"
        r"  accuracy (\S+)  val (\S+)  \d+ s left"
    )
    history = result.history
    for epoch, line in enumerate(lines, start=1):
        number, loss, penalty, *_ = map(float, pattern.fullmatch(line).groups())
        assert number == epoch
        assert loss == pytest.approx(history["data_loss"][epoch - 1], abs=0.00051)
        total = history["loss"][epoch - 1]
        assert loss + penalty == pytest.approx(total, abs=0.0011)
    assert len(lines) == 6 and penalty > 0
    # Keras adds up the penalty of the weights at the last step.
    weights = result.model.layers[1].get_weights()
    expected = 1e-2 * sum(np.sum(w**2) for w in weights)
    assert penalty == pytest.approx(expected, rel=0.1)


def test_metrics_are_those_at_inference(finished):
    result, _, _ = finished
    data = load_data(result.experiment)
    for part in ("train", "validation", "test"):
        inputs, targets = getattr(data, part)
        probabilities = result.model.predict(inputs, verbose=0)
        accuracy = np.mean(probabilities.argmax(1) == targets)
        assert result.metrics[f"{part}_accuracy"] == pytest.approx(accuracy)
        loss = -np.log(probabilities[np.arange(len(targets)), targets]).mean()
        assert result.metrics[f"{part}_loss"] == pytest.approx(loss, rel=1e-5)


def test_without_a_number_of_steps_an_epoch_is_one_pass():
    data = load_data(small())
    for steps, expected in (None, 5), (7, 7):
        assert steps_per_epoch(small(steps_per_epoch=steps), data) == expected


def test_the_inputs_are_standardised_to_the_training_part():
    data = load_data(small())
    standardise = build(small(), data).get_layer("standardise")
    outputs = standardise(data.train.inputs).numpy()
    np.testing.assert_allclose(outputs.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(outputs.std(axis=0), 1, rtol=1e-4)


def test_the_learning_rate_rises_in_the_warmup_and_then_decays():
    experiment = small(warmup=0.35, learning_rate=0.01)
    schedule = build(experiment, load_data(experiment)).optimizer._learning_rate
    for step in (0, 4, 10, 16, 30):  # of 30, of which 10 rise
        cosine = (1 + np.cos(np.pi * (step - 10) / 20)) / 2
        expected = 0.01 * (step / 10 if step < 10 else cosine)
        assert float(schedule(step)) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_only_kernels_decay(optimizer, tmp_path):
    settings = {"weight_decay": 2.0, "decay": 0.0, "learning_rate": 0.01}
    result = run(small(epochs=1, optimizer=optimizer, **settings), tmp_path)
    updates = result.model.optimizer
    for variable in updates.variables[1:]:  # the moments, not the steps
        variable.assign(0 * variable)
    before = [weight.numpy() for weight in result.model.trainable_weights]
    updates.apply([0 * weight for weight in before])
    for old, weight in zip(before, result.model.trainable_weights, strict=True):
        factor = 0.98 if weight.name == "kernel" else 1.0
        np.testing.assert_allclose(weight, factor * old, rtol=1e-6)
        assert np.abs(old).max() > 0


def test_sgd_has_nesterov_momentum():
    config = build(small(optimizer="sgd"), load_data(small())).optimizer.get_config()
    assert (config["momentum"], config["nesterov"]) == (0.9, True)


def test_labels_are_smoothed_in_the_loss_and_not_in_the_data_loss():
    experiment = small(label_smoothing=0.3)
    data = load_data(experiment)
    model = build(experiment, data)
    measured = model.evaluate(*data.validation, verbose=0, return_dict=True)
    logs = np.log(model.predict(data.validation.inputs, verbose=0))
    targets = data.validation.targets
    plain = -logs[np.arange(len(targets)), targets].mean()
    smooth = 0.7 * plain - 0.3 * logs.mean()
    assert measured["data_loss"] == pytest.approx(plain, rel=1e-5)
    assert measured["loss"] == pytest.approx(smooth, rel=1e-5)


@pytest.mark.parametrize("decay", ["cosine", 0.1])
def test_the_learning_rate_decays(decay):
    experiment = small(decay=decay, learning_rate=0.01)
    schedule = build(experiment, load_data(experiment)).optimizer._learning_rate
    steps = 6 * 5
    for step in (0, 7, steps):
        cosine = 0.01 * (1 + np.cos(np.pi * step / steps)) / 2
        expected = cosine if decay == "cosine" else 0.01 / (1 + 0.1 * step)
        assert float(schedule(step)) == pytest.approx(expected, abs=1e-8)


def test_seeds_change_weights_and_masks():
    first, other = (build(small(seed=s), load_data(small())) for s in (1, 2))
    assert np.any(first.layers[1].kernel != other.layers[1].kernel)
    assert {layer.seed for layer in (first.layers[2], other.layers[2])} == {1, 2}


def test_settings_reach_the_network():
    experiment = small(
        l1=0.1, l2=0.2, max_norm=3.0, input_rate=0.3, rate=0.4, jit_compile=True
    )
    model = build(experiment, load_data(experiment))
    assert model.jit_compile
    assert [model.get_layer(f"drop_{x}").rate for x in ("input", 1)] == [0.3, 0.4]
    penalty = model.layers[2].kernel_regularizer.get_config()
    assert (penalty["l1"], penalty["l2"]) == pytest.approx((0.1, 0.2))
    assert model.layers[2].kernel_constraint.max_value == 3.0
    head = network(small(norm_penalty=0.4), load_data(experiment)).layers[-1]
    assert head.kernel_regularizer.coefficient == 0.4


def test_losses_of_layers_are_divided_by_the_number_of_examples():
    experiment = small(dropout="VariationalDropout")
    (layer,) = network(experiment, load_data(experiment)).layers[1:-1]
    assert layer.divergence_weight == 1 / 240


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dropout": "TokenDropout"}, "spiral_mlp.* TokenDropout needs tokens, which"),
        ({"model": "alexnet"}, "alexnet .*convolutions take images .*(2,)"),
        ({"rate": (0.1, 0.2)}, "`rate` must be one number, or one for each"),
    ],
)
def test_settings_that_do_not_fit_the_network_raise_one_sentence(settings, message):
    experiment = small(**settings)
    with pytest.raises(UserError, match=message) as refusal:
        network(experiment, load_data(experiment))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("setting", ["mirror", "shift", "cutout"])
def test_only_images_are_augmented(setting, tmp_path):
    with pytest.raises(UserError, match="Only images"):
        run(small(**{setting: 1}), tmp_path)


def test_the_best_of_the_seeds_has_the_best_validation_accuracy():
    def with_metrics(**metrics):
        return Run(small(), None, {}, metrics)

    pairs = [(0.8, 0.5), (0.9, 0.7), (0.9, 0.6), (0.7, 0.1)]
    runs = [
        with_metrics(validation_accuracy=a, validation_loss=b, train_accuracy=1 - a)
        for a, b in pairs
    ]
    assert SeedRuns(runs).best is runs[2]
    runs = [with_metrics(train_accuracy=a, train_loss=0.0) for a in (0.5, 0.7)]
    assert SeedRuns(runs).best is runs[1]


def test_metrics_are_those_of_evaluate(finished):
    result = finished[0]
    data = load_data(result.experiment)
    for name in ("train", "validation", "test"):
        part = getattr(data, name)
        measured = result.model.evaluate(*part, 500, verbose=0, return_dict=True)
        assert result.metrics[f"{name}_accuracy"] == pytest.approx(measured["accuracy"])
        loss = pytest.approx(measured["data_loss"], rel=1e-5)
        assert result.metrics[f"{name}_loss"] == loss


def test_a_diverged_run_has_no_calibration_error(finished, monkeypatch, tmp_path):
    assert 0 <= finished[0].metrics["test_calibration_error"] <= 1
    diverged = np.full((3000, 3), np.nan, "float32")
    monkeypatch.setattr(keras.Model, "predict", lambda *args, **kwargs: diverged)
    metrics = run(small(epochs=1), tmp_path / "run").metrics
    assert np.isnan(metrics["test_calibration_error"])
