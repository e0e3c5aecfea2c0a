"""The command line: what it parses, what it rejects, and its help."""

import re
from dataclasses import fields

import pytest

from kdrop.errors import UserError
from kdrop.models import MODELS
from kdrop.training.arguments import options_in_errors, parse
from kdrop.training.experiment import PRESETS, SCHEDULES, Experiment
from kdrop.training.settings import Comparison, DeviceOptions


def test_without_arguments_three_runs_on_the_spiral_are_compared():
    comparison, devices = parse([])
    kinds = ("none", "InvertedDropout", "VanillaDropout")
    expected = [Experiment.preset("spiral", dropout=kind) for kind in kinds]
    assert comparison == Comparison(experiments=expected, vote_size=3000)
    assert devices == DeviceOptions()


def test_options_become_settings():
    line = "mnist --dropout InvertedDropout --rate .5 .25 --hidden 64 32 --mirror "
    line += "--no-jit-compile --decay 1e-3 --steps-per-epoch 7 --output models --resume"
    comparison, devices = parse([*line.split(), "--processes=2", "--wait", "5"])
    (experiment,) = comparison.experiments
    assert experiment == Experiment.preset(
        "mnist", rate=(0.5, 0.25), hidden=(64, 32), mirror=True, jit_compile=False,
        decay=1e-3, steps_per_epoch=7,
    )  # fmt: skip
    assert [str(path) for path in comparison.folders()] == [
        "models/mnist-inverted-dropout"
    ]
    assert comparison.resume and comparison.vote_size == 10000
    assert devices == DeviceOptions(processes=2, wait=5)


def test_a_network_without_hidden_layers_is_an_option():
    comparison, _ = parse(["--dropout", "none", "--hidden"])
    assert comparison.experiments[0].hidden == ()


@pytest.mark.parametrize("kind", ["none", "None"])
def test_none_in_any_case_is_the_run_without_dropout(kind):
    comparison, _ = parse(["--dropout", f"{kind}, none"])
    assert [each.dropout for each in comparison.experiments] == ["none"]


def test_the_run_without_dropout_has_no_rates_beside_others():
    rates = ["--rate", "0.4", "--schedule", "early"]
    comparison, _ = parse(["--dropout", "none,VanillaDropout", *rates])
    assert [each.rate for each in comparison.experiments] == [(), (0.4,)]
    assert [each.schedule for each in comparison.experiments] == ["constant", "early"]


def test_names_of_the_folders():
    experiments = [Experiment.preset("spiral"), Experiment.preset("spiral", rate=0.1)]
    one = Comparison(experiments=experiments[:1], name="mine")
    assert [folder.name for folder in one.folders()] == ["mine"]
    two = Comparison(experiments=experiments, name="mine")
    assert [folder.name for folder in two.folders()] == ["mine-inverted-dropout"] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("spirl", "did you mean spiral"),
        ("--dropout InvertedDropuot", "did you mean InvertedDropout"),
        ("--rate 1.5", "--rate is 1.5, but must be in [0, 1)"),
        ("--rate 0.1 x", "--rate: invalid float value: 'x'"),
        ("--epochs ten", "--epochs: invalid int value: 'ten'"),
        ("--epochs", "--epochs: expected one argument"),
        ("--rate", "--rate: expected at least one argument"),
        ("--epocs 3", "'--epocs': did you mean --epochs?"),
        ("--batchsize=3", "'--batchsize': did you mean --batch-size?"),
        ("spiral mnist", "unrecognised argument mnist"),
        ("--batch-size 0", "--batch-size is 0, but must be in [1, 1000000]"),
        ("--seeds 0", "--seeds is 0, but must be in [1, 100]"),
        ("--passes -1", "--passes is -1"),
        ("--vote-size 0", "--vote-size is 0"),
        ("--schedule erly", "did you mean early"),
        ("--dropout none --schedule early", "--schedule is set, but --dropout is none"),
        ("--name ../mine", "--name is wrong: '../mine' cannot be the name of a model"),
        ("--name=", "'' cannot be the name of a model"),
        ("--name a:predict", "'a:predict' cannot be the name"),
        ("--name 12", "'12' cannot be the name"),
        ("--name ٣", "'٣' cannot be the name"),
        ("--name .mine", "'.mine' cannot be the name"),
        ("--name " + "x" * 300, "cannot be the name"),
        ("--hidden 8 99999999999999", "--hidden is 99999999999999, but must be in [1"),
        ("--epochs 9223372036854775808", "--epochs is 9223372036854775808, but must"),
        ("--batch-size 99999999999999999999", "--batch-size is 99999999999999999999,"),
        ("--seeds 99999999999999999999", "must be in [1, 100]"),
        (
            "--seeds 100 --dropout none,InvertedDropout,VanillaDropout,GaussianDropout,"
            "UniformDropout,AlphaDropout",
            "--seeds is 100, but with these layers must make at most 500 runs",
        ),
        (f"--seeds {10**30}", "must be in [1, 100]"),
        (f"--epochs {'9' * 5000}", "--epochs: invalid int value"),
        ("--train-size 0", "--train-size is 0, but must be in [1, 1000000]"),
        ("--steps-per-epoch -1", "--steps-per-epoch is -1"),
        ("--passes 10001", "--passes is 10001, but must be in [0, 10000]"),
        ("--vote-size 10000000", "--vote-size is 10000000"),
        ("--processes 0", "--processes is 0, but must be in [1, 1024]"),
        ("--replicas 0", "--replicas is 0, but must be in [1, 1024]"),
        ("--process-id -1", "--process-id is -1, but must be in [0, 1023]"),
        ("--wait -1", "--wait is -1, but must be in [0, 86400]"),
        ("--learning-rate 1e400", "--learning-rate is inf, but must be in (0, 1000]"),
        ("--learning-rate 0", "--learning-rate is 0.0"),
        ("--l1 nan", "--l1 is nan, but must be in [0, 1000000]"),
        ("--max-norm -1", "--max-norm is -1.0"),
        ("--shift -1", "--shift is -1"),
        ("--validation 1", "--validation is 1.0, but must be in [0, 1)"),
        ("--width 32", "--width is not for --model spiral_mlp"),
        ("cifar10 --width 0", "--width is 0, but must be in [1, 16384]"),
    ],
)
def test_wrong_arguments_raise_one_sentence(arguments, message):
    with pytest.raises(UserError) as refusal, options_in_errors():
        parse(arguments.split())
    assert message in str(refusal.value) and "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400


def test_only_names_of_settings_become_options():
    with pytest.raises(UserError, match="^--batch-size and `units`$"):
        with options_in_errors():
            raise UserError("`batch_size` and `units`")


def test_help_has_each_setting_with_its_default(capsys):
    with pytest.raises(SystemExit) as end:
        parse(["--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "None" not in text
    assert "(default: 20 for spiral, 40 for cifar10, 20 for mnist)" in text
    assert "(default: none,InvertedDropout,VanillaDropout)" in text
    for name in (*MODELS, *SCHEDULES, *PRESETS):
        assert re.search(rf"\b{name}\b", text)
    kinds = Experiment, Comparison, DeviceOptions
    names = [field.name for kind in kinds for field in fields(kind)]
    for name in set(names) - {"data", "experiments"}:
        option = f"--{name.replace('_', '-')}"
        assert re.search(rf"{option},? .*?\(default: \S", text), option


def test_help_is_in_groups_of_one_screen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        parse(["--help"])
    usage, _, options, *groups = capsys.readouterr().out.split("\n\n")
    assert usage == "usage: train.py [data] [options]"
    assert options.startswith("options:\n  -h, --help")
    of_option = {}
    for group in groups:
        heading, *lines = group.splitlines()
        assert heading.endswith(":") and len(lines) < 30
        assert max(map(len, lines)) < 80
        for line in lines:
            if found := re.match(r"  (?:--)?(\w[\w-]*)", line):
                of_option[found[1]] = heading[:-1]
    names = "what to train, network, data, training, regularisation, evaluation, "
    assert list(dict.fromkeys(of_option.values())) == [
        *(names + "output, devices").split(", ")
    ]
    kinds = Experiment, Comparison, DeviceOptions
    settings = {field.name for kind in kinds for field in fields(kind)}
    assert {name.replace("-", "_") for name in of_option} == settings - {"experiments"}
    for name, heading in {
        **{"data": "what to train", "hidden": "network", "data-dir": "data"},
        **{"epochs": "training", "seeds": "training", "l2": "regularisation"},
        **{"passes": "evaluation", "resume": "output", "wait": "devices"},
    }.items():
        assert of_option[name] == heading
