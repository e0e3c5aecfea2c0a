"""Experiments: presets, checks and keys."""

import dataclasses
import inspect

import numpy as np
import pytest

from kdrop import layers
from kdrop.errors import UserError
from kdrop.layers.base import Drop
from kdrop.models import MODELS
from kdrop.training.experiment import (
    LAYERS,
    NETWORKS,
    PRESETS,
    SCHEDULES,
    WITHOUT_RATE,
    Experiment,
)


def test_the_tables_are_those_of_the_layers_and_the_networks():
    assert list(LAYERS) == layers.__all__
    settable = (Drop, layers.Zoneout)
    unset = [x for x in LAYERS if not issubclass(getattr(layers, x), settable)]
    assert list(WITHOUT_RATE) == ["none", *unset]
    settings = {field.name for field in dataclasses.fields(Experiment)}
    defaults = {
        name: {
            parameter.name: parameter.default
            for parameter in inspect.signature(builder).parameters.values()
            if parameter.kind == parameter.KEYWORD_ONLY and parameter.name in settings
        }
        for name, builder in MODELS.items()
    }
    assert NETWORKS == defaults and list(NETWORKS) == list(MODELS)


@pytest.mark.parametrize("data", PRESETS)
def test_a_preset_is_complete(data):
    experiment = Experiment.preset(data)
    # `None` has one meaning: an epoch has each example once.
    missing = [k for k, v in dataclasses.asdict(experiment).items() if v is None]
    assert missing in ([], ["steps_per_epoch"])
    assert Experiment.preset(data, epochs=3, seed=5) == dataclasses.replace(
        experiment, epochs=3, seed=5
    )


def test_a_preset_takes_the_settings_of_its_network():
    experiment = Experiment.preset("cifar10", model="srivastava_cnn")
    assert (experiment.hidden, experiment.max_norm) == ((2048, 2048), 4.0)
    assert (experiment.input_rate, experiment.width) == (0.1, 0)
    assert Experiment.preset("cifar10").width == 32
    residual = Experiment.preset("mnist", model="resnet32")
    assert (residual.hidden, residual.width) == ((), 16)


def test_networks_with_batch_normalisation_have_a_recipe_for_sgd():
    names = ("optimizer", "learning_rate", "warmup", "weight_decay")

    def recipe(data, **settings):
        experiment = Experiment.preset(data, **settings)
        return tuple(getattr(experiment, name) for name in names)

    assert recipe("cifar10") == ("sgd", 0.1, 0.1, 0.02)
    assert recipe("mnist", model="resnet32") == recipe("cifar10", decay="cosine")
    assert recipe("cifar10", model="alexnet") == ("adam", 0.001, 0.0, 0.0)
    assert recipe("cifar10", optimizer="adam") == ("adam", 0.001, 0.0, 0.0)
    assert recipe("cifar10", decay=0.1) == ("sgd", 0.1, 0.0, 0.02)
    assert recipe("cifar10", learning_rate=0.02) == ("sgd", 0.02, 0.1, 0.02)


def test_a_single_rate_is_a_tuple_of_one():
    assert Experiment.preset("spiral", rate=0.3).rate == (0.3,)
    assert Experiment.preset("spiral", rate=[0.1, 0.2], hidden=8).rate == (0.1, 0.2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": "cifar"}, "no data set 'cifar': did you mean cifar10"),
        ({"dropout": "InvertDropout"}, "did you mean InvertedDropout"),
        ({"model": "alexnet_32"}, "did you mean alexnet32"),
        ({"schedule": "curiculum"}, "did you mean curriculum"),
        ({"dropout": "none", "rate": 0.5}, "`rate` is set, but `dropout` is none"),
        ({"dropout": "none", "schedule": "early"}, "`schedule` is set, but"),
        ({"dropout": "none", "input_rate": 0.1}, "`input_rate` is set, but"),
        ({"dropout": "StandoutDropout", "rate": 0.5}, "which has no rate to set"),
        ({"rate": (0.5, 1.0)}, r"`rate` is 1.0, but must be in \[0, 1\)"),
        ({"rate": float("nan")}, "`rate` is nan"),
        ({"input_rate": -0.1}, "`input_rate` is -0.1"),
        ({"epochs": 0}, r"`epochs` is 0, but must be in \[1, 1000000\]"),
        ({"steps_per_epoch": 0}, "`steps_per_epoch` is 0"),
        ({"batch_size": -5}, "`batch_size` is -5"),
        ({"learning_rate": float("inf")}, "`learning_rate` is inf"),
        ({"decay": "linear"}, "`decay` is linear, but must be cosine or a number"),
        ({"decay": -0.1}, "`decay` is -0.1"),
        ({"l2": -1.0}, r"`l2` is -1.0, but must be in \[0, 1000000\]"),
        ({"seed": -1}, "`seed` is -1"),
        ({"optimizer": "adamw"}, "no optimizer 'adamw': did you mean adam"),
        ({"warmup": 1.0}, r"`warmup` is 1.0, but must be in \[0, 1\)"),
        ({"warmup": 0.1, "decay": 0.1}, "`warmup` is set, but `decay` is not cosine"),
        ({"weight_decay": -1.0}, "`weight_decay` is -1.0"),
        ({"label_smoothing": 1.0}, "`label_smoothing` is 1.0, but must be in"),
        ({"cutout": -1}, "`cutout` is -1"),
        ({"width": 8}, "`width` is not for `model` spiral_mlp"),
        ({"data": "cifar10", "width": 0}, r"`width` is 0, but must be in \[1, 16384\]"),
    ],
)
def test_wrong_settings_raise_one_sentence(settings, message):
    with pytest.raises(UserError, match=message) as refusal:
        Experiment.preset(**{"data": "spiral", **settings})
    assert "\n" not in str(refusal.value)


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
def test_schedules_scale_the_rate_of_the_network(name, factor):
    schedule = SCHEDULES[name](0.4)
    for progress in (0.0, 0.1, 0.5, 1.0):
        expected = 0.4 * factor(progress)
        assert schedule(progress) == pytest.approx(expected, abs=1e-12)


def test_keys_differ_between_settings():
    experiment = Experiment.preset("spiral")
    assert experiment.key() == Experiment.preset("spiral", epochs=20).key()
    changes = [
        {}, {"rate": 0.2}, {"optimizer": "sgd"}, {"warmup": 0.1}, {"cutout": 8},
        {"weight_decay": 0.1}, {"label_smoothing": 0.1},
    ]  # fmt: skip
    keys = {Experiment.preset("spiral", **change).key() for change in changes}
    assert len(keys) == len(changes)
    assert all(key.startswith("spiral-inverted-dropout-seed0-") for key in keys)
    assert Experiment.preset("cifar10", dropout="none").slug() == "cifar10-none"
    block = Experiment.preset("cifar10", dropout="DropBlock2D")
    assert block.slug() == "cifar10-drop-block-2d"
