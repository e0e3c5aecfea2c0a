"""What train.py does: experiments side by side, the best seed of each exported."""

import contextlib
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import keras
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from kdrop.ensemble.calibration import MEASURES, PREDICTIONS, vote
from kdrop.ensemble.sampling import sample
from kdrop.errors import UserError
from kdrop.serving.saved_model import check_writable, export
from kdrop.training import plots
from kdrop.training.data import Data, Part
from kdrop.training.devices import Devices
from kdrop.training.experiment import (
    ALONE,
    EVALUATION_BATCH,
    Experiment,
    Run,
    load_data,
    network,
    train,
)
from kdrop.training.pipeline import batches
from kdrop.training.progress import Recorder, Unfinished

PASSES = 50
# Test examples to vote on where not all: 50 passes of these take about a minute.
SIZES = {"cifar10": 1000}
UNFINISHED = ".unfinished"  # a folder that no model server reads
PART_NAMES = {"train": "train", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Compared:
    """One experiment's runs over the seeds."""

    runs: Sequence[Run]

    @property
    def name(self) -> str:
        return self.runs[0].experiment.dropout

    @property
    def best(self) -> Run:
        """The run with the best validation result, or training result without one."""

        def result(run):
            for part in ("validation", "train"):
                if f"{part}_accuracy" in run.metrics:
                    return run.metrics[f"{part}_accuracy"], -run.metrics[f"{part}_loss"]

        return max(self.runs, key=result)


def compare(
    experiments: Sequence[Experiment],
    *,
    seeds: int = 1,
    output: Path,
    name: str | None = None,
    resume: bool = False,
    passes: int = PASSES,
    vote_size: int | None = None,
    data_dir: Path | None = None,
    tensorboard: Path | None = None,
    devices: Devices = ALONE,
    console: Console,
) -> list[Path]:
    """Train each experiment with each seed, show the tables, export the best of each.

    All experiments share one data set. Where a run drops, `passes` sub-networks vote
    on the first `vote_size` examples of the test part. Finished epochs are kept until
    everything is exported, so that a stopped comparison can be resumed.

    Returns:
        The exported folders, one for each experiment; of several processes, only the
        first exports.
    """
    devices.agree(_asked(experiments, seeds, resume, devices))
    if devices.process:  # only the first has anything to show or to leave behind
        console, tensorboard = Console(quiet=True), None
        output = Path(tempfile.mkdtemp(prefix="kdrop-"))
    if seeds < 1:
        raise UserError(f"--seeds is {seeds}, but must be at least 1.")
    if passes < 0:
        raise UserError(f"--passes is {passes}, but must not be below 0.")
    if vote_size is not None and vote_size < 1:
        raise UserError(f"--vote-size is {vote_size}, but must be at least 1.")
    folders = [output / folder for folder in _names(experiments, name)]
    check_writable(output)
    for folder in folders:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is in the way: it is not a folder.")
    seeded = [
        [replace(each, seed=each.seed + number) for number in range(seeds)]
        for each in experiments
    ]
    data = load_data(experiments[0], data_dir)
    voted_on = _first(
        data.test, vote_size or SIZES.get(data.name, len(data.test.targets))
    )
    for each in experiments:
        network(each, data)  # what cannot be built is refused before hours of training
    compared, kept = [], []
    for group in seeded:
        runs: list[Run] = []
        for each in group:
            label = each.dropout + (f" seed {each.seed}" if seeds > 1 else "")
            unfinished = Unfinished(output / UNFINISHED / each.key())
            if resume and not unfinished.folder.exists():
                console.print(f"{label}  nothing to resume with these settings")
            if not resume and unfinished.discard():
                console.print(f"{label}  starts anew: --resume would have gone on")
            if resume:
                devices.hand_out(unfinished.folder)
            kept.append(unfinished)
            recorder, callbacks = Recorder(console, label), []
            if tensorboard is not None:
                log = str(tensorboard / each.key())
                callbacks.append(_Board(recorder, log))
            try:
                run = train(each, data, unfinished, recorder, callbacks, devices)
            finally:
                recorder.stop()
            # What several processes share cannot be computed by the first alone.
            votes = passes and devices.processes == 1
            runs.append(_voted(run, voted_on, passes, console) if votes else run)
            # One model is kept in memory, however many seeds there are.
            best = Compared(runs).best
            runs = [
                run if run is best else replace(run, model=None, vote=None)
                for run in runs
            ]
        compared.append(Compared(runs))
    if devices.process:
        shutil.rmtree(output)
        return []
    console.print(table(compared))
    if (voted := vote_table(compared, passes, _part(voted_on, data))).row_count:
        console.print(voted)
    paths = []
    for number, (each, folder) in enumerate(zip(compared, folders, strict=True)):
        note = kept[number * seeds]
        if note.exported is None:
            note.exported = _export(each, compared, data, folder, passes, voted_on)
        paths.append(note.exported)
    for unfinished in kept:
        unfinished.discard()
    with contextlib.suppress(OSError):  # another run's may be there
        (output / UNFINISHED).rmdir()
    return paths


def _asked(experiments, seeds, resume, devices) -> dict[str, str]:
    """What all processes have to be asked alike."""
    settings = [asdict(experiment.resolved()) for experiment in experiments]
    asked = {"processes": devices.processes, "seeds": seeds, "resume": resume}
    for name in settings[0]:
        asked[name] = ", ".join(dict.fromkeys(str(each[name]) for each in settings))
    return asked


def _names(experiments: Sequence[Experiment], name: str | None) -> list[str]:
    """The folder of each experiment's model, below the output folder."""
    slugs = [experiment.slug() for experiment in experiments]
    if name is None:
        return slugs
    if Path(name).name != name or not name or name.startswith("."):
        raise UserError(f"--name is {name!r}, but must be the plain name of a folder.")
    if len(slugs) == 1:
        return [name]
    return [name + slug.removeprefix(experiments[0].data) for slug in slugs]


def table(compared: Sequence[Compared]) -> Table:
    """One row for each experiment: accuracy and loss at inference, over its seeds."""
    seeds = len(compared[0].runs)
    of = f", mean ± standard deviation of {seeds} seeds" if seeds > 1 else ""
    shown = Table(
        title=f"{compared[0].best.experiment.data}, at inference{of}",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    shown.add_column("dropout", no_wrap=True)
    metrics = compared[0].runs[0].metrics
    parts = [part for part in PART_NAMES if f"{part}_loss" in metrics]
    for heading in ("accuracy %", "loss"):
        for part in parts:
            shown.add_column(
                f"{PART_NAMES[part]}\n{heading}", justify="right", no_wrap=True
            )
    shown.add_column("train - test\naccuracy", justify="right", no_wrap=True)
    shown.add_column("\nseconds", justify="right", no_wrap=True)
    for each in compared:
        found = [run.metrics for run in each.runs]
        shown.add_row(
            each.name,
            *(_spread([100 * m[f"{p}_accuracy"] for m in found], 1) for p in parts),
            *(_spread([m[f"{p}_loss"] for m in found], 3) for p in parts),
            _spread(
                [100 * (m["train_accuracy"] - m["test_accuracy"]) for m in found], 1
            ),
            _spread([m["seconds"] for m in found], 0),
        )
    return shown


def _first(part: Part, size: int) -> Part:
    return Part(part.inputs[:size], part.targets[:size])


def _part(voted_on: Part, data: Data) -> str:
    few, all_ = len(voted_on.targets), len(data.test.targets)
    return "test set" if few == all_ else f"first {few:,} of {all_:,} test examples"


def _voted(run: Run, part: Part, passes: int, console: Console) -> Run:
    """The run with the vote of its sub-networks, if it drops anything."""
    assert run.model is not None
    test = batches(part, EVALUATION_BATCH, passes=1)
    seed, verbose = run.experiment.seed, int(console.is_terminal)
    found = vote(run.model, test, passes, seed, verbose)
    if found is None:
        return run
    metrics = {**run.metrics, **found.metrics(part.targets)}
    return replace(run, metrics=metrics, vote=found)


def vote_table(compared: Sequence[Compared], passes: int, part: str) -> Table:
    """Weight scaling beside the vote, for each experiment whose runs have one."""
    first = compared[0].best.experiment.data
    shown = Table(
        title=f"{first}, {part}: weight scaling and the vote of {passes} passes",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    shown.add_column("dropout", no_wrap=True)
    shown.add_column("predicted by", no_wrap=True)
    for heading in (
        "\naccuracy %",
        "negative log\nlikelihood",
        "expected\ncalibration error",
        "Brier\nscore",
    ):
        shown.add_column(heading, justify="right", no_wrap=True)
    for each in compared:
        found = [run.metrics for run in each.runs if "vote_accuracy" in run.metrics]
        for way, words in PREDICTIONS.items() if found else ():
            accuracy, *others = ([m[f"{way}_{n}"] for m in found] for n in MEASURES)
            shown.add_row(
                each.name,
                words,
                _spread([100 * value for value in accuracy], 2),
                *(_spread(values, 4) for values in others),
            )
    return shown


def _spread(values: Sequence[float], digits: int) -> str:
    mean = f"{statistics.fmean(values):z.{digits}f}"  # no negative zero
    if len(values) == 1:
        return mean
    # NaN where a run diverged: `statistics.stdev` would raise.
    with np.errstate(invalid="ignore"):
        return f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def _export(
    each: Compared,
    compared: Sequence[Compared],
    data: Data,
    folder: Path,
    passes: int,
    voted_on: Part,
) -> Path:
    best, test = each.best, data.test
    assert best.model is not None

    def draw(path):
        plots.curves(path / "curves.png", {c.name: c.best.history for c in compared})
        if best.vote is not None:
            _draw_vote(path, each, compared, voted_on, data)
        if test.inputs.ndim == 2:
            predictors = {c.name: _predictor(c.best.model) for c in compared}
            plots.regions(path / "regions.png", predictors, *test, data.labels)
            return
        found = _predictor(best.model)(test.inputs)
        title = f"{each.name}, test set"
        plots.predictions(path / "predictions.png", title, *test, found, data.labels)
        found = found.argmax(axis=1)
        plots.confusion(path / "confusion.png", title, test.targets, found, data.labels)

    places = [layer for layer in best.model.layers if layer.name.startswith("drop_")]
    record = {
        "settings": asdict(best.experiment),
        "rates": {x.name: float(x.rate) for x in places if hasattr(x, "rate")},
        "metrics": best.metrics,
        "passes": passes,
        "voted_on": len(voted_on.targets),
        "seeds": {run.experiment.seed: run.metrics for run in each.runs},
    }
    return export(
        best.model,
        folder,
        labels=data.labels,
        record=record,
        history=best.history,
        draw=draw,
        passes=passes or PASSES,
    )


def _draw_vote(path, each: Compared, compared: Sequence[Compared], test: Part, data):
    best, title = each.best, f"{each.name}, {_part(test, data)}"
    assert best.vote is not None
    found = {c.name: c.best.vote for c in compared}
    plots.passes(path / "passes.png", found, test.targets)
    forecasts = dict(zip(PREDICTIONS.values(), best.vote.predictions(), strict=True))
    plots.reliability(path / "reliability.png", title, forecasts, test.targets)
    samples = best.vote.samples
    if test.inputs.ndim > 2:
        picture = path / "certainty.png"
        plots.certainty(picture, title, *test, samples, data.labels)
        return

    def sampled(points):
        seed, batch = best.experiment.seed, 1000
        # One sub-network for the whole plane: no grain from point to point.
        return sample(
            *(best.model, points, len(samples), batch),
            seed=seed, consistent=True, verbose=0,
        )  # fmt: skip

    predict = _predictor(best.model)
    plots.uncertainty(path / "uncertainty.png", title, predict, sampled, test.inputs)


class _Board(keras.callbacks.TensorBoard):
    """TensorBoard by our epochs, of which Keras's hold several."""

    def __init__(self, recorder, log):
        super().__init__(log, write_graph=False)
        self.recorder = recorder

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(self.recorder.done, logs)


def _predictor(model):
    def predict(inputs):
        chunks = np.array_split(inputs, max(1, len(inputs) // 1000))
        return np.concatenate([model(np.float32(chunk)) for chunk in chunks])

    return predict
