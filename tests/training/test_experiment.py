"""One run: settings, training, keeping and resuming."""

import dataclasses
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from rich.console import Console

from kdrop import layers
from kdrop.errors import UserError
from kdrop.training import experiment as module
from kdrop.training.data import Data, Part
from kdrop.training.experiment import Experiment, build, load_data, train
from kdrop.training.progress import Recorder, Unfinished

SMALL = Experiment(train_size=300, epochs=6, batch_size=50, hidden=(16,))


class Stop(keras.callbacks.Callback):
    """Ends the run at an epoch, as a kill would."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 == self.epoch:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def each_epoch_is_reported_and_saved(monkeypatch):
    monkeypatch.setattr(module, "REPORT_STEPS", 1)
    monkeypatch.setattr("kdrop.training.progress.SAVE_SECONDS", 0)


def run(settings, folder, resume=False, callbacks=(), console=None):
    recorder = Recorder(console or Console(quiet=True), settings.dropout)
    unfinished = Unfinished(folder)
    assert resume == folder.exists()
    return train(settings, load_data(settings), unfinished, recorder, callbacks)


@pytest.mark.parametrize("dropout", ["none", "InvertedDropout", "VanillaDropout"])
def test_a_stopped_run_goes_on_to_the_same_result(dropout, tmp_path):
    settings = dataclasses.replace(SMALL, dropout=dropout)
    whole = run(settings, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(settings, tmp_path / "stopped", callbacks=[Stop(4)])
    resumed = run(settings, tmp_path / "stopped", resume=True)
    assert_same_weights(whole, resumed)
    assert whole.history["epoch"] == [1, 2, 3, 4, 5, 6]
    for name in set(whole.history) - {"seconds"}:
        assert whole.history[name] == resumed.history[name]
    assert np.all(np.diff(resumed.history["seconds"]) > 0)


class Rates(keras.callbacks.Callback):
    """The rates of a model at each execution of the training step."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append([x.rate for x in self.model.layers if hasattr(x, "rate")])


@pytest.mark.parametrize(
    ("name", "factor"),
    {
        "constant": lambda t: 1,
        "linear": lambda t: 1 - t,
        "cosine": lambda t: (1 + np.cos(np.pi * t)) / 2,
        "early": lambda t: max(0, 1 - 6 * t),
        "late": lambda t: t >= 1 / 6,
        "curriculum": lambda t: 1 - np.exp(-10 * t),
        "annealed": lambda t: 1 - t,
        "scheduled_drop_path": lambda t: t,
    }.items(),
)
def test_schedules_start_from_the_networks_rate(name, factor):
    schedule = module.SCHEDULES[name](0.4)
    for progress in (0.0, 0.1, 0.5, 1.0):
        expected = 0.4 * factor(progress)
        assert schedule(progress) == pytest.approx(expected, abs=1e-12)


def test_a_schedule_spans_the_whole_run_resumed_or_not(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_stride", lambda epochs, steps: 3)
    settings = dataclasses.replace(
        SMALL, epochs=7, hidden=(16, 8), rate=(0.2, 0.6), schedule="linear"
    )
    rates, before, after = Rates(), Rates(), Rates()
    whole = run(settings, tmp_path / "whole", callbacks=[rates])
    # Seven epochs of five steps, which share a rate: the last ends at 0.
    factors = [1 - step / 30 for step in range(0, 35, 5)]
    np.testing.assert_allclose(rates.seen, np.outer(factors, [0.2, 0.6]), atol=1e-12)
    assert rates.seen[-1] == [0.0, 0.0]
    for place in (1, 2):  # reports at the epochs 3, 6 and 7
        column = [rates.seen[epoch - 1][place - 1] for epoch in (3, 6, 7)]
        assert whole.history[f"rate_drop_{place}"] == column
    with pytest.raises(KeyboardInterrupt):
        run(settings, tmp_path / "stopped", callbacks=[before, Stop(1)])
    resumed = run(settings, tmp_path / "stopped", resume=True, callbacks=[after])
    assert before.seen + after.seen == rates.seen
    assert_same_weights(whole, resumed)


def test_lines_tell_the_rates(tmp_path, capsys):
    settings = dataclasses.replace(
        SMALL, hidden=(8, 8, 8), rate=(0.2, 0.2, 0.5), schedule="constant"
    )
    run(settings, tmp_path / "run", console=Console(width=200))
    assert "  rate 0.2/0.5  " in capsys.readouterr().out


def test_resuming_a_finished_run_trains_nothing(tmp_path):
    whole = run(SMALL, tmp_path / "run")
    again = run(SMALL, tmp_path / "run", resume=True)
    assert again.history == whole.history
    assert again.metrics == whole.metrics


def test_a_kill_while_saving_leaves_the_epoch_before(tmp_path, monkeypatch):
    save = keras.Model.save
    saved = []

    def killed(model, path, **kwargs):
        save(model, path, **kwargs)
        saved.append(path)
        if len(saved) == 4:
            Path(path).write_bytes(Path(path).read_bytes()[:1000])
            raise KeyboardInterrupt

    monkeypatch.setattr(keras.Model, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        run(SMALL, tmp_path / "run")
    model, history = Unfinished(tmp_path / "run").load()
    assert history["epoch"] == [1, 2, 3]
    assert int(model.optimizer.iterations) == 3 * 5


def test_a_damaged_checkpoint_is_one_sentence_and_is_kept(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(SMALL, tmp_path / "run", callbacks=[Stop(3)])
    (saved,) = (tmp_path / "run").glob("*.keras")
    saved.write_bytes(saved.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read") as refusal:
        run(SMALL, tmp_path / "run", resume=True)
    assert str(saved) in str(refusal.value) and "\n" not in str(refusal.value)
    assert saved.stat().st_size == 1000


def test_lines_tell_the_parts_of_the_loss(tmp_path, capsys):
    settings = dataclasses.replace(SMALL, l2=1e-2)
    finished = run(settings, tmp_path / "run", console=Console(width=200))
    lines = capsys.readouterr().out.splitlines()
    form = re.compile(
        r"InvertedDropout  epoch (\d)/6  loss (\S+) = data (\S+) \+ reg (\S+)"
        r"  accuracy (\S+)  val (\S+)  lr (\S+)  \d+ s left"
    )
    for epoch, line in enumerate(lines, start=1):
        number, loss, data, penalty, accuracy, *_ = form.fullmatch(line).groups()
        assert int(number) == epoch
        assert float(loss) == pytest.approx(float(data) + float(penalty), abs=0.0011)
    assert len(lines) == 6 and float(penalty) > 0
    # The penalty is that of the weights, which Keras adds up at the last step.
    weights = finished.model.layers[1].get_weights()
    expected = 1e-2 * sum(np.sum(w**2) for w in weights)
    assert float(penalty) == pytest.approx(expected, rel=0.1)


def test_metrics_are_those_at_inference(tmp_path):
    finished = run(SMALL, tmp_path / "run")
    data = load_data(SMALL)
    for part in ("train", "validation", "test"):
        inputs, targets = getattr(data, part)
        probabilities = finished.model.predict(inputs, verbose=0)
        right = probabilities[np.arange(len(targets)), targets]
        accuracy = np.mean(probabilities.argmax(1) == targets)
        assert finished.metrics[f"{part}_accuracy"] == pytest.approx(accuracy)
        loss = -np.log(right).mean()
        assert finished.metrics[f"{part}_loss"] == pytest.approx(loss, rel=1e-5)


def test_the_inputs_are_standardised_to_the_training_part():
    data = load_data(SMALL)
    standardise = build(SMALL, data).get_layer("standardise")
    seen = standardise(data.train.inputs).numpy()
    np.testing.assert_allclose(seen.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(seen.std(axis=0), 1, rtol=1e-4)


@pytest.mark.parametrize("decay", [None, 0.1])
def test_the_learning_rate_decays(decay):
    settings = dataclasses.replace(SMALL, decay=decay, learning_rate=0.01)
    schedule = build(settings, load_data(settings)).optimizer._learning_rate
    steps = 6 * 5
    for step in (0, 7, steps):
        cosine = 0.01 * (1 + np.cos(np.pi * step / steps)) / 2
        expected = cosine if decay is None else 0.01 / (1 + 0.1 * step)
        assert float(schedule(step)) == pytest.approx(expected, abs=1e-8)


def test_rates_go_to_their_places():
    settings = dataclasses.replace(SMALL, hidden=(8, 8), rate=(0.1, 0.4))
    model = build(settings, load_data(settings))
    assert [model.get_layer(f"drop_{i}").rate for i in (1, 2)] == [0.1, 0.4]
    settings = dataclasses.replace(settings, rate=(0.1, 0.2, 0.3), input_rate=0.2)
    with pytest.raises(UserError, match="2 places"):
        build(settings, load_data(settings))


@pytest.mark.parametrize(("epochs", "steps"), [(151, 8), (500, 8), (40, 3), (10007, 1)])
def test_reports_come_at_least_twenty_times_a_run(epochs, steps):
    stride = module._stride(epochs, steps)
    assert 1 <= stride <= max(1, epochs / 20)
    assert stride * steps <= max(100, steps)


def test_a_number_of_epochs_without_divisors(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_stride", lambda epochs, steps: 3)
    settings = dataclasses.replace(SMALL, epochs=7)
    whole = run(settings, tmp_path / "whole")
    assert whole.history["epoch"] == [3, 6, 7]
    assert int(whole.model.optimizer.iterations) == 7 * 5
    with pytest.raises(KeyboardInterrupt):
        run(settings, tmp_path / "stopped", callbacks=[Stop(2)])
    resumed = run(settings, tmp_path / "stopped", resume=True)
    assert_same_weights(whole, resumed)


def assert_same_weights(one, other):
    weights = (each.model.get_weights() for each in (one, other))
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_seeds_give_other_weights_orders_and_masks(tmp_path):
    runs = [
        run(dataclasses.replace(SMALL, epochs=1, seed=s), tmp_path / str(s))
        for s in (1, 2)
    ]
    first, other = (build(each.experiment, load_data(SMALL)) for each in runs)
    assert np.any(first.layers[1].kernel != other.layers[1].kernel)
    assert runs[0].history["loss"] != runs[1].history["loss"]
    assert {layer.seed for layer in (first.layers[2], other.layers[2])} == {1, 2}


def test_settings_reach_the_model():
    settings = dataclasses.replace(
        SMALL, l1=0.1, l2=0.2, max_norm=3.0, input_rate=0.3, jit_compile=True
    )
    model = build(settings, load_data(settings))
    dense = model.layers[2]
    assert model.jit_compile
    assert model.get_layer("drop_input").rate == 0.3
    penalty = dense.kernel_regularizer.get_config()
    assert (penalty["l1"], penalty["l2"]) == pytest.approx((0.1, 0.2))
    assert dense.kernel_constraint.max_value == 3.0
    settings = dataclasses.replace(SMALL, norm_penalty=0.4)
    head = build(settings, load_data(settings)).layers[-1]
    assert head.kernel_regularizer.coefficient == 0.4


def test_only_images_are_augmented(tmp_path):
    with pytest.raises(UserError, match="Only images"):
        run(dataclasses.replace(SMALL, mirror=True), tmp_path / "run")


@pytest.mark.parametrize(
    "content", ["{}", "null", '{"epoch": [1]}', '{"epoch": [1, 2, 3]}', "["]
)
def test_a_damaged_history_is_one_sentence(content, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(SMALL, tmp_path / "run", callbacks=[Stop(3)])
    (tmp_path / "run" / "history.json").write_text(content)
    with pytest.raises(UserError, match="cannot be read"):
        run(SMALL, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    "name", ["DropConnectDense", "VariationalDropout", "ConcreteDropout"]
)
def test_layers_that_drop_connections_take_the_place_of_the_dense_ones(name):
    settings = dataclasses.replace(SMALL, dropout=name, l2=1e-3)
    built = module.network(settings, load_data(SMALL))
    kind = getattr(layers, name)
    assert [type(x) for x in built.layers[1:-1]] == [kind] * (len(built.layers) - 2)
    outputs = built(np.ones((2, 2), "float32"), training=True)
    np.testing.assert_allclose(np.sum(outputs, axis=1), 1, rtol=1e-5)
    assert built.losses  # the penalty on the weights is not lost


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"data": "cifar"}, "no data set 'cifar': did you mean cifar10"),
        ({"dropout": "InvertDropout"}, "did you mean InvertedDropout"),
        ({"model": "alexnet_32"}, "did you mean alexnet32"),
        ({"schedule": "curiculum"}, "did you mean curriculum"),
        ({"dropout": "none", "rate": (0.5,)}, "--rate is given, but --dropout none"),
        ({"dropout": "none", "schedule": "early"}, "--schedule is given, but"),
        ({"dropout": "none", "input_rate": 0.1}, "--input-rate is given, but"),
        ({"rate": (0.5, 1.0)}, r"--rate is 1.0, but must be in \[0, 1\)"),
        ({"rate": (float("nan"),)}, "rate is nan"),
        ({"input_rate": -0.1}, "--input-rate is -0.1"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": -5}, "--batch-size is -5"),
        ({"learning_rate": float("inf")}, "--learning-rate is inf"),
        ({"l2": -1.0}, "l2 is -1.0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_settings_are_one_sentence(settings, told):
    with pytest.raises(UserError, match=told) as refusal:
        Experiment(**settings)
    assert "\n" not in str(refusal.value)


def images(count=8):
    part = Part(np.zeros((count, 32, 32, 3), np.uint8), np.zeros(count, np.int32))
    return Data("cifar10", part, part, part, labels=tuple("abcdefghij"))


@pytest.mark.parametrize("name", sorted(module.MAPS))
def test_layers_for_maps_stand_behind_convolutions(name):
    settings = Experiment(data="cifar10", dropout=name, input_rate=0.1)
    for model, convolutions in ("alexnet32", 3), ("srivastava_cnn", 3):
        settings = dataclasses.replace(settings, model=model)
        built = module.network(settings, images())
        drops = [x for x in built.layers if x.name.startswith("drop_")]
        kinds = [type(layer).__name__ for layer in drops]
        dense = len(drops) - convolutions - 1
        plain = dataclasses.replace(settings, dropout="InvertedDropout")
        places = module.network(plain, images()).layers
        places = {x.name: x.rate for x in places if x.name.startswith("drop_")}
        assert {x.name: x.rate for x in drops} == places
        place = ["InvertedDropout"]
        assert kinds == place + [name] * convolutions + place * dense and dense
        assert getattr(drops[1], "block_size", 3) == 3
    settings = dataclasses.replace(settings, model="mnist_mlp")
    with pytest.raises(UserError, match=f"{name} takes .* mnist_mlp has no place"):
        module.network(settings, images())


def test_a_layer_without_a_rate_is_called_without():
    settings = dataclasses.replace(SMALL, dropout="StandoutDropout")
    built = module.network(settings, load_data(SMALL))
    layer = built.get_layer("drop_1")
    assert layer.alpha == 1.0
    assert 1 / (1 + np.exp(layer.beta)) == pytest.approx(0.3)  # the network's rate
    images_too = dataclasses.replace(settings, model="alexnet32", width=2)
    drops = [x for x in module.network(images_too, images()).layers if "drop" in x.name]
    assert [x.name for x in drops] == ["drop_4"]  # none behind convolutions
    for given in {"rate": (0.5,)}, {"schedule": "early"}:
        with pytest.raises(UserError, match="StandoutDropout has no rate to set"):
            dataclasses.replace(settings, **given)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"dropout": "TokenDropout"}, "TokenDropout drops tokens, which no network"),
        ({"dropout": "DropPath"}, "DropPath drops residual branches, which no"),
        ({"dropout": "DropConnectConv2D"}, "DropConnectConv2D takes feature maps, "),
        ({"model": "alexnet"}, "alexnet .*convolutions take images .*(2,)"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(settings, told):
    settings = dataclasses.replace(SMALL, **settings)
    with pytest.raises(UserError, match=told) as refusal:
        module.network(settings, load_data(SMALL))
    assert "\n" not in str(refusal.value)


def test_keys_tell_settings_apart():
    one = Experiment(data="spiral")
    assert one.key() == dataclasses.replace(one, epochs=500).key()  # the set's own
    assert one.key() != dataclasses.replace(one, rate=(0.2,)).key()
    assert one.slug() == "spiral-inverted-dropout"
    assert Experiment(data="cifar10", dropout="none").slug() == "cifar10-none"
