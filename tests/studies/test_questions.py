"""The questions of the studies: equal budgets, networks, figures and findings."""

import numpy as np
import pytest
from matplotlib.image import imread
from small_studies import SMALL, result

import studies.__main__ as main
from kdrop.training.data import Data, Part
from kdrop.training.run import Run, network
from studies import cifar, mnist, spiral
from studies.study import Result


def test_a_vote_is_compared_with_weight_scaling_in_pairs(tmp_path):
    study = mnist.votes(False)
    # The networks differ more than a vote and weight scaling of one of them.
    by_seed = {
        seed: {f"error_of_{n}": (5 - n / 100 + shift) / 100 for n in mnist.VOTERS}
        | {"error_of_100": (4 + shift + noise) / 100}
        | {"test_accuracy": 1 - (3.9 + shift) / 100}
        for seed, (shift, noise) in enumerate([(0, -0.06), (1, 0), (2, 0.06)])
    }
    arm = study.arms[0]
    results = [Result(arm, arm.candidates[0], {}, by_seed)]
    finding = study.draw(tmp_path / "figure.png", results)
    assert finding == (
        "Weight scaling errs in 4.90 %, one sub-network in 5.99 %,\n"
        "a vote of 100 in 5.00 % (+0.10 ± 0.03 points against weight scaling)"
    )


def test_a_recipe_with_dropout_is_compared_with_one_without_in_pairs(tmp_path):
    study = cifar.recipe(False)
    errors = (25, 26, 27, 28, 29), (24.5, 25.6, 26.7, 27.4, 28.8)
    results = [result(*e, arm=a) for e, a in zip(errors, study.arms, strict=True)]
    finding = study.draw(tmp_path / "figure.png", results)
    # R: t.test(dropped, plain, paired = TRUE)
    assert "-0.40 points" in finding and "5 pairs: -0.60 to -0.20" in finding


def test_what_dropout_does_with_few_points_is_in_the_title(tmp_path):
    study = spiral.points(True)
    errors = {"none": (30, 20, 10), "InvertedDropout": (27, 19, 9)}

    def title(errors):
        values = [e for each in errors.values() for e in each]
        arms = zip(values, study.arms, strict=True)
        results = [result(e, e, arm=arm) for e, arm in arms]
        for each in results:
            for metrics in each.by_seed.values():
                metrics["test_calibration_error"] = 0.01
        return study.draw(tmp_path / "figure.png", results)

    assert title(errors) == (
        "Dropout lowers the error from 30.0 to 27.0 % (150 points) and from 10.0 to "
        "9.0 % (2,400 points)"
    )
    assert title({**errors, "InvertedDropout": (27, 19, 11)}).startswith(
        "Dropout moves"
    )


def test_votes_share_no_sample(monkeypatch):
    samples = np.random.default_rng(3).dirichlet(np.ones(4), (200, 30))
    monkeypatch.setattr(mnist.kdrop, "sample", lambda *a, **settings: samples)
    targets = np.random.default_rng(4).integers(0, 4, 30)
    part = Part(np.zeros((30, 2), "float32"), targets)
    data = Data("spiral", part, part, part, tuple("abcd"))
    measured = mnist.measure_votes(Run(SMALL, None, {}, {}), data)
    for voters in mnist.VOTERS:
        votes = samples.reshape(-1, voters, 30, 4).mean(axis=1)
        wrong = np.mean([np.mean(vote.argmax(axis=1) != targets) for vote in votes])
        assert measured[f"error_of_{voters}"] == pytest.approx(wrong)


@pytest.mark.parametrize("name", main.STUDIES)
@pytest.mark.parametrize("quick", [True, False])
def test_each_study_compares_equal_budgets(name, quick):
    study = main.STUDIES[name](quick)
    assert len({arm.label for arm in study.arms}) == len(study.arms)
    assert (study.measure is not None) == (name == "votes")
    # The arms of `points` are compared at each number of points.
    groups = {arm: arm.x if name == "points" else arm.series for arm in study.arms}
    for group in set(groups.values()):
        arms = [arm.candidates for arm in study.arms if groups[arm] == group]
        assert len({len(candidates) for candidates in arms}) == 1
        each = [e for candidates in arms for e in candidates]
        assert len({(e.epochs, e.train_size, e.batch_size) for e in each}) == 1
        sizes = {"spiral": 3000, "mnist": 60000, "cifar10": 50000}
        assert all(e.train_size <= sizes[e.data] for e in each)
    if name == "mnist":
        # What label smoothing gains is not ascribed to dropout.
        for arm in study.arms:
            assert {0.0, 0.1} <= {e.label_smoothing for e in arm.candidates}
            assert {0, 1, 2, 3} == {e.shift for e in arm.candidates}
    if name in ("alexnet", "family", "spiral"):
        # No arm has a learning rate that the one without dropout may not have.
        plain, *others = [{e.learning_rate for e in a.candidates} for a in study.arms]
        assert all(rates <= plain for rates in others)


@pytest.mark.parametrize("name", main.STUDIES)
def test_each_study_is_built_and_drawn(name, tmp_path):
    study = main.STUDIES[name](True)
    rng = np.random.default_rng(5)
    names = ["test_accuracy", "test_loss", "train_accuracy"]
    names += ["test_calibration_error"]
    names += [f"error_of_{voters}" for voters in mnist.VOTERS]
    shape = {"spiral": (2,), "mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
    results = []
    for arm in study.arms:
        experiment = arm.candidates[0]
        inputs = np.zeros((1, *shape[experiment.data]), "float32")
        part = Part(inputs, np.zeros(1, "int32"))
        network(
            experiment, Data(experiment.data, part, part, part, tuple("abcdefghij"))
        )
        by_seed = {
            seed: dict(zip(names, rng.random(len(names)), strict=True))
            for seed in range(2)
        }
        results.append(Result(arm, experiment, {}, by_seed))
    finding = study.draw(tmp_path / "figure.png", results)
    assert imread(tmp_path / "figure.png").std() > 0.01
    if name not in ("votes", "points"):
        assert f"{min(result.summary()[0] for result in results):.2f}" in finding


def test_the_plateau_of_rates_ends_where_the_error_first_rises(tmp_path):
    study = mnist.rate(False)
    errors = [4.5, 3.95, 3.8, 3.75, 3.8, 3.9, 4.6, 5.0, 6.1, 3.9]
    errors += [4.8, 4.7, 4.6, 4.5, 4.4, 4.3, 4.2, 4.1, 4.0, 3.9]
    results = [result(e, e, arm=a) for a, e in zip(study.arms, errors, strict=True)]
    wide, scaled = study.draw(tmp_path / "figure.png", results).splitlines()
    assert wide == "width 512: 3.75 % at 0.3, up to a tenth more from 0.1 to 0.5"
    assert scaled.endswith("3.90 % at 0.9, up to a tenth more from 0.6 to 0.9")
