"""The data sets as NumPy arrays, each in three disjoint parts."""

import contextlib
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdrop.errors import UserError, check_choice, first_line
from kdrop.training.fields import check

# The image sets of tensorflow-datasets, and the servers that they are downloaded from.
# A new one needs a preset in `experiment` and a vote size in `settings`, too.
HOSTS = {"cifar10": "www.cs.toronto.edu", "mnist": "storage.googleapis.com"}
SETS = ("spiral", *HOSTS)
PROBE_SECONDS = 2.0


class Part(NamedTuple):
    """Examples of one part of a data set, in memory."""

    inputs: np.ndarray  # uint8 (n, height, width, channels) or float32 (n, 2)
    targets: np.ndarray  # int32 (n,)

    def first(self, size: int) -> "Part":
        """The first `size` examples, or all where there are fewer."""
        return Part(self.inputs[:size], self.targets[:size])


@dataclass(frozen=True)
class Data:
    """A data set in three disjoint parts; the validation part may be empty."""

    name: str
    train: Part
    validation: Part
    test: Part
    labels: tuple[str, ...]


def load(
    name: str,
    train_size: int | None = None,  # of the examples for training; all if `None`
    validation: float = 0.1,  # fraction of `train_size` to validate on, in [0, 1)
    seed: int = 0,  # the same seed gives the same examples
    # If `None`, `TFDS_DATA_DIR`, or `~/tensorflow_datasets` without it.
    data_dir: str | os.PathLike | None = None,
) -> Data:
    """The spiral, CIFAR-10 (Krizhevsky, 2009) or MNIST (LeCun et al., 1998).

    The choice of examples is stratified by class. With the same seed, a larger one
    includes a smaller one. A data set that the folder lacks is downloaded.

    Raises `UserError`: no such data set or folder, no network, damaged data, more
    examples than there are, or none of some class.
    """
    check_choice("data set", name, SETS)
    rng = np.random.default_rng(seed)
    whole, test, labels = _spiral(rng) if name == "spiral" else _images(name, data_dir)
    split = _split(name, whole, train_size, validation, rng)
    return Data(name, *split, test, labels)


def _spiral(rng):
    """Three arms of a noisy spiral: half of the points for training, half for test.

    On arm c of 3 the radius r is evenly spaced over [0, 1] and the angle is
    `2.5 * (4 * c + 4 * r + 0.2 * N(0, 1))`. The best possible classifier has an
    accuracy of .910 and a cross-entropy of .213.
    """
    radius = np.tile(np.linspace(0, 1, 2000), 3)
    arm = np.repeat(np.arange(3), 2000)
    angle = 2.5 * (4 * arm + 4 * radius + 0.2 * rng.standard_normal(arm.size))
    position = np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1)
    order = rng.permutation(arm.size)
    inputs, targets = position[order].astype("float32"), arm[order].astype("int32")
    parts = map(Part, np.split(inputs, 2), np.split(targets, 2))
    return *parts, ("arm 0", "arm 1", "arm 2")


def _split(name, whole, train_size, validation, rng) -> tuple[Part, ...]:
    """The training and the validation part, both stratified by class."""
    inputs, targets = whole
    count = len(targets) if train_size is None else train_size
    check("train_size", count, f"[1, {len(targets)}]")
    check("validation", validation, "[0, 1)")
    order = _stratified_order(targets, rng)[:count]
    order = order[_stratified_order(targets[order], rng)]
    size, classes = round(validation * count), len(np.unique(targets))
    parts = {"training": order[size:], "validation": order[:size]}
    for part, rows in parts.items():
        present = len(np.unique(targets[rows]))
        if present < classes and (validation or part == "training"):
            raise UserError(
                f"With `train_size` {count} and `validation` {validation} there are "
                f"{len(rows)} examples in the {part} part of {name}, with {present} of "
                f"the {classes} classes: it needs at least one of each."
            )
    return tuple(Part(inputs[rows], targets[rows]) for rows in parts.values())


def _stratified_order(targets, rng):
    """A random order in which every prefix has the classes in proportion.

    The k-th member of a class of n is at (k + 1/2) / n of the order, so that a
    prefix is Sainte-Lague's apportionment among the classes.
    """
    shuffled = rng.permutation(len(targets))
    position = np.empty(len(targets))
    for label in np.unique(targets):
        members = shuffled[targets[shuffled] == label]
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.lexsort((shuffled, position))


def _images(name, data_dir):
    """The images for training, those for test, and the class names."""
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR")
    home = Path(data_dir or "~/tensorflow_datasets").expanduser()
    if data_dir and not home.is_dir():
        raise UserError(f"The data folder {home} is not a folder.")
    # Here, so that the spiral does not need the optional package.
    import tensorflow_datasets as tfds

    try:
        builder: Any = tfds.builder(name, data_dir=home)
        if not builder.info.splits:
            _download(builder, home)
        # Each image is read once, so a cache would only take memory.
        config = tfds.ReadConfig(try_autocache=False)
        settings = dict(as_supervised=True, read_config=config, batch_size=1000)
        parts = []
        for split in ("train", "test"):
            batches = tfds.as_numpy(builder.as_dataset(split=split, **settings))
            images, labels = map(np.concatenate, zip(*batches, strict=True))
            parts.append(Part(images, labels.astype("int32")))
        names = tuple(builder.info.features["label"].names)
    except (UserError, PermissionError, MemoryError):
        raise
    except Exception as error:  # a damaged file can raise anything
        reason = re.sub(r"\{\{.*?\}\} | \[Op:.*", "", first_line(error))
        raise UserError(
            f"The data of {name} is damaged ({reason}): delete {home / name}, and it "
            "is downloaded again."
        ) from error
    return *parts, names


def _download(builder, home):
    from tensorflow_datasets import download

    if not _reachable(host := HOSTS[builder.name]):
        raise UserError(
            f"{home} lacks {builder.name} and {host} does not answer: let "
            "TFDS_DATA_DIR or `data_dir` name a folder that has it, or use the spiral, "
            "which needs no download."
        )
    # Off: without access to Google's bucket of prepared sets it retries for minutes.
    config = download.DownloadConfig(try_download_gcs=False)
    try:
        builder.download_and_prepare(download_config=config)
    except Exception as error:  # of the network, the server or the disk
        message = f"{builder.name} could not be downloaded: {first_line(error)}"
        raise UserError(message) from error


def _reachable(host):
    """Whether the server answers a request, through a proxy if there is one."""
    import requests

    answered = threading.Event()

    def ask():
        with contextlib.suppress(requests.RequestException):
            requests.head(f"https://{host}", timeout=PROBE_SECONDS)
            answered.set()

    # In a thread: the timeout of requests does not cover the look-up of the name.
    threading.Thread(target=ask, daemon=True).start()
    return answered.wait(PROBE_SECONDS)
