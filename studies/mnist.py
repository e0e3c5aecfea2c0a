"""MNIST: regularisers, dropout rates and votes, after Srivastava et al. (2014)."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import kdrop
from kdrop.training.data import Data
from kdrop.training.experiment import Experiment
from kdrop.training.pipeline import batches
from kdrop.training.run import Run
from studies import figures, study
from studies.runner import Metrics
from studies.study import Arm, Results, Study, grid

VOTERS = (1, 2, 5, 10, 20, 50, 100)  # sub-networks of a vote
SAMPLES = 200  # Monte Carlo samples, shared out among the votes
PLATEAU = 1.1  # times the least error


def _base(examples: int, width: int, epochs: int) -> partial:
    """Two dense layers, trained on so many images and validated on half as many."""
    return partial(
        Experiment.preset, "mnist", dropout="none", hidden=(width, width),
        shift=0, epochs=epochs, batch_size=100, jit_compile=False,
        **study.split(examples, examples // 2),
    )  # fmt: skip


def mnist(quick: bool) -> Study:
    """The preset of `train.py mnist` with and without dropout, each at its best."""
    examples, epochs = (1000, 4) if quick else (50000, 20)
    base = partial(
        Experiment.preset, "mnist", epochs=epochs, **study.split(examples, 10000)
    )
    shifts, few = (0, 1, 2, 3), (1, 2)
    half, quarter, eighth = (
        dict(rate=rate, input_rate=0.4 * rate, max_norm=2.0)
        for rate in (0.5, 0.25, 0.125)
    )
    plain = {"dropout": "none"}
    changes = {
        "none": [
            *grid(plain, shift=shifts, label_smoothing=(0.0, 0.1)),
            *grid(plain, shift=few, label_smoothing=(0.2,)),
            *grid({**plain, "max_norm": 2.0}, shift=few, label_smoothing=(0.1,)),
        ],
        "dropout + max-norm": [
            *grid(half, shift=shifts),
            *grid(quarter, shift=shifts),
            *grid(quarter, shift=few, label_smoothing=(0.1,)),
            *grid(eighth, shift=few, label_smoothing=(0.1,)),
        ],
    }
    question = f"MNIST, {examples:,} training images: does dropout pay?"
    arms = study.arms(base, changes)
    return Study(question, arms, 2 if quick else 3, study.ERRORS, study.draw_pairs)


def regularisers(quick: bool) -> Study:
    """Srivastava et al. (2014), table 9."""
    examples, width, epochs = (1000, 256, 12) if quick else (10000, 512, 80)
    # Fourteen candidates each: a grid, and five next to the best ones, so that the best
    # do not lie at an end. An arm with two settings of its own has the base's learning
    # rate.
    base = partial(_base(examples, width, epochs), learning_rate=1e-3)
    dropout: dict[str, Any] = dict(dropout="InvertedDropout", input_rate=0.2)
    all_rates = [2e-4, 3e-4, 5e-4, 1e-3, 1.5e-3, 1.75e-3, 2e-3, 2.25e-3, 2.5e-3, 3e-3]
    all_rates += [4e-3, 5e-3, 1e-2, 2e-2]
    low, high = (3e-4, 1e-3, 3e-3), (1e-3, 3e-3, 1e-2)  # learning rates
    rates, norms, l2 = (0.2, 0.3, 0.5), (0.5, 1.0, 2.0), (3e-4, 1e-3, 3e-3)
    changes = {
        "none": grid(learning_rate=all_rates),
        "L2": [
            *grid(learning_rate=low, l2=l2),
            *grid(learning_rate=(1e-3, 3e-3), l2=(1e-4,)),
            *grid(learning_rate=(2e-3,), l2=(3e-4,)),
            *grid(learning_rate=(5e-3,), l2=(1e-4,)),
            *grid(learning_rate=(3e-3,), l2=(3e-5,)),
        ],
        "L1 + L2": [
            *grid(l1=(1e-7, 1e-6, 1e-5), l2=l2),
            *grid(l1=(1e-7, 1e-6), l2=(1e-4,)),
            *grid(l1=(1e-8, 3e-8, 3e-7), l2=(3e-4,)),
        ],
        "max-norm": [
            *grid(learning_rate=high, max_norm=norms),
            *grid(learning_rate=(1e-3, 3e-3), max_norm=(0.25,)),
            *grid(learning_rate=(5e-4, 2e-3), max_norm=(0.5,)),
            *grid(learning_rate=(1e-3,), max_norm=(0.7,)),
        ],
        "dropout": [
            *grid(dropout, learning_rate=high, rate=rates),
            *grid(dropout, learning_rate=(5e-4,), rate=rates),
            *grid(dropout, learning_rate=(2e-4, 3e-4), rate=(0.3,)),
        ],
        "dropout + L2": [
            *grid(dropout, rate=rates, l2=(3e-5, 1e-4, 3e-4)),
            *grid(dropout, rate=(0.1, 0.2), l2=(1e-3,)),
            *grid(dropout, rate=(0.1,), l2=(3e-4,)),
            *grid(dropout, rate=(0.2,), l2=(2e-4, 5e-4)),
        ],
        "dropout + max-norm": [
            *grid(dropout, rate=rates, max_norm=norms),
            *grid(dropout, rate=(0.1, 0.2), max_norm=(0.25,)),
            *grid(dropout, rate=(0.1,), max_norm=(0.5,)),
            *grid(dropout, rate=(0.2,), max_norm=(0.35, 0.7)),
        ],
    }
    question = f"MNIST, {examples:,} training images: which regulariser errs least?"
    return Study(question, study.arms(base, changes), 2 if quick else 3, study.ERRORS)


def rate(quick: bool) -> Study:
    """Srivastava et al. (2014), section 7.3."""
    examples, width, constant, epochs = 5000, 512, 128, 80
    rates = [n / 10 for n in range(10)]
    if quick:
        examples, width, constant, epochs = 500, 256, 64, 15
        rates = [0.0, 0.2, 0.5, 0.8, 0.9]

    def arm(series, rate, width):
        experiment = _base(examples, width, epochs)(
            dropout="InvertedDropout", rate=rate
        )
        return Arm(f"rate {rate:g}", (experiment,), series, rate)

    wide = [arm(f"width {width}", rate, width) for rate in rates]
    name = f"(1 - rate) × width = {constant}"
    scaled = [arm(name, rate, round(constant / (1 - rate))) for rate in rates]
    question = f"MNIST, {examples:,} training images: at which rate is the error least?"
    return Study(question, wide + scaled, 2 if quick else 5, study.ERRORS, _draw_rate)


def _draw_rate(path: Path, results: Results) -> str:
    panels, lines = {}, []
    for series, group in study.by_series(results).items():
        panels[series] = {
            part: {r.arm.x: r.values(study.error(part)) for r in group}
            for part in ("test", "train")
        }
        errors = {result.arm.x: result.summary()[0] for result in group}
        best = min(errors, key=lambda rate: errors[rate])
        high = [rate for rate in errors if errors[rate] > PLATEAU * errors[best]]
        first = min(x for x in errors if x > max([-1, *(h for h in high if h < best)]))
        last = max(x for x in errors if x < min([1, *(h for h in high if h > best)]))
        lines.append(
            f"{series}: {errors[best]:.2f} % at {best:g}, up to a tenth more from "
            f"{first:g} to {last:g}"
        )
    title = "\n".join(lines)
    ylim = 0, 3 * min(result.summary()[0] for result in results)
    figures.lines(path, title, panels, "Dropout rate", "Error (%)", ylim=ylim)
    return title


def votes(quick: bool) -> Study:
    """Srivastava et al. (2014), section 7.5."""
    examples, width, epochs = (1000, 256, 20) if quick else (5000, 512, 30)
    base = _base(examples, width, epochs)
    experiment = base(dropout="InvertedDropout", rate=0.5, input_rate=0.2)
    columns = {f"vote of {n}": study.metric(f"error_of_{n}", 100) for n in VOTERS}
    return Study(
        f"MNIST, {examples:,} training images, test error %: how many should vote?",
        [Arm("vote", (experiment,))],
        2 if quick else 5,
        {"weight scaling": study.error("test"), **columns},
        _draw_votes,
        measure_votes,
    )


def measure_votes(run: Run, data: Data) -> Metrics:
    """Error of a vote of so many, as a mean over votes that share no sample."""
    test, seed = batches(data.test, 500, epochs=1), run.experiment.seed
    samples = kdrop.sample(run.model, test, SAMPLES, seed=seed, verbose=0)
    sums = np.cumsum(samples, axis=0, dtype="float32")
    metrics = {}
    for voters in VOTERS:
        ends = sums[voters - 1 :: voters]
        totals = np.diff(ends, axis=0, prepend=np.zeros_like(ends[:1]))
        wrong = totals.argmax(axis=-1) != data.test.targets
        metrics[f"error_of_{voters}"] = float(wrong.mean())
    return metrics


def _draw_votes(path: Path, results: Results) -> str:
    (result,) = results
    scaled = np.array(result.values(study.error("test")))
    errors = {n: result.values(study.metric(f"error_of_{n}", 100)) for n in VOTERS}
    # In pairs: the vote and weight scaling of one network.
    more, error = figures.summary(errors[100] - scaled)
    title = (
        f"Weight scaling errs in {scaled.mean():.2f} %, one sub-network in "
        f"{np.mean(errors[1]):.2f} %,\na vote of 100 in {np.mean(errors[100]):.2f} % "
        f"({more:+.2f} ± {error:.2f} points against weight scaling)"
    )
    drawn = {"vote": errors, "weight scaling": dict.fromkeys(VOTERS, scaled)}
    x_label, label = "Sub-networks that vote", "Test error (%)"
    ticks = {"xscale": "log", "xticks": VOTERS, "xticklabels": map(str, VOTERS)}
    figures.lines(path, title, {"": drawn}, x_label, label, **ticks)
    return title
