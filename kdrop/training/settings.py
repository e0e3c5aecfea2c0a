"""The settings of a comparison of experiments, and of the devices that train them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kdrop.errors import SAVED_MODEL, UserError, check_model_name, checked_formats
from kdrop.training.experiment import Experiment
from kdrop.training.fields import check_settings, setting

MAX_RUNS = 500  # each holds the file of its lock
# Test examples of the vote: 50 samples of 1,000 CIFAR-10 images take about a minute.
VOTE_SIZES = {"spiral": 3000, "cifar10": 1000, "mnist": 10000}
COUNT = "[1, 1024]"  # of devices or processes


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What to train and compare, and where the models go."""

    experiments: Sequence[Experiment]  # of one data set
    seeds: int = setting(
        1, "runs of each layer, with seeds from `seed` on", "[1, 100]", group="training"
    )
    passes: int = setting(
        50,
        "Monte Carlo samples that vote, 0: no vote",
        "[0, 10000]",
        group="evaluation",
    )
    vote_size: int = setting(1000, "test examples to vote on", "[1, 1000000]")
    output: Path = setting(Path("saved_models"), "folder of the models", group="output")
    name: str | None = setting(
        None, "of the model's folder; of several their prefix", "", "data set and layer"
    )
    format: str = setting(SAVED_MODEL, "also onnx,litert, besides the SavedModel")
    resume: bool = setting(False, "continue after the last saved epoch")
    tensorboard: Path | None = setting(None, "folder for TensorBoard", "", "no logs")
    data_dir: Path | None = setting(
        None, "folder of data sets", "", "TFDS_DATA_DIR", group="data"
    )

    def __post_init__(self):
        check_settings(self)
        if len(self.runs()) > MAX_RUNS:
            rule = f"must make at most {MAX_RUNS} runs, not {len(self.runs())}"
            raise UserError(f"`seeds` is {self.seeds}, but with these layers {rule}.")
        self.formats()
        if self.name is not None:
            try:
                for name in (self.name, *(folder.name for folder in self.folders())):
                    check_model_name(name)
            except UserError as error:
                raise UserError(f"`name` is wrong: {error}") from None

    def formats(self) -> list[str]:
        """The formats besides the SavedModel."""
        return checked_formats([name.strip() for name in self.format.split(",")])

    def folders(self) -> list[Path]:
        """The folder of each experiment's model."""
        names = [experiment.slug() for experiment in self.experiments]
        if self.name is not None:
            prefix = self.experiments[0].data
            names = [self.name + name.removeprefix(prefix) for name in names]
            names = [self.name] if len(names) == 1 else names
        return [self.output / name for name in names]

    def seeded(self, experiment: Experiment) -> list[Experiment]:
        """The runs of an experiment, one for each seed."""
        seeds = range(experiment.seed, experiment.seed + self.seeds)
        return [replace(experiment, seed=seed) for seed in seeds]

    def runs(self) -> list[Experiment]:
        return [run for each in self.experiments for run in self.seeded(each)]


@dataclass(frozen=True)
class DeviceOptions:
    """Which devices share a run: of TensorFlow the first field, of JAX the others."""

    replicas: int | None = setting(
        None,
        "accelerators, or else cores, for a batch",
        COUNT,
        "all, or one core",
        group="devices",
    )
    processes: int | None = setting(None, "all, with KERAS_BACKEND=jax", COUNT, "one")
    process_id: int | None = setting(None, "this one's", "[0, 1023]", "the launcher's")
    coordinator: str | None = setting(
        None, "host:port of process 0", unset="JAX_COORDINATOR_ADDRESS"
    )
    wait: int = setting(60, "seconds for all processes to start", "[0, 86400]")

    def __post_init__(self):
        check_settings(self)
