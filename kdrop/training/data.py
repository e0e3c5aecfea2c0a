"""The data sets, each as NumPy arrays in three disjoint parts."""

import contextlib
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from kdrop.errors import UserError, check_choice

PROBE_SECONDS = 2.0


class Part(NamedTuple):
    """Examples of one part of a data set, in memory.

    Images are uint8 `(n, height, width, channels)`, points float32 `(n, 2)`,
    targets int32 `(n,)`.
    """

    inputs: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class Data:
    """A data set in three disjoint parts; the validation part may be empty."""

    name: str
    train: Part
    validation: Part
    test: Part
    labels: tuple[str, ...]


def spiral(
    train_size: int | None = None,
    validation: float = 0.2,
    seed: int = 0,
    points: int = 2000,
) -> Data:
    """Three arms of a noisy spiral: half of the points to train on, half to test.

    On arm c of 3 the radius r runs evenly over [0, 1] and the angle is
    `2.5 * (4 * c + 4 * r + 0.2 * N(0, 1))`. No classifier does better than .910
    accuracy on it, at a cross-entropy of .213.

    Args:
        train_size: Points of the training half to use, with the arms in proportion;
            all if `None`.
        validation: Fraction of `train_size` to validate on, in [0, 1).
        seed: The same seed gives the same points.
        points: Points on each arm.

    Raises:
        UserError: A size that the training half does not hold, or too small for an arm.
    """
    rng = np.random.default_rng(seed)
    arm = np.repeat(np.arange(3), points)
    radius = np.tile(np.linspace(0, 1, points), 3)
    angle = 2.5 * (4 * arm + 4 * radius + 0.2 * rng.standard_normal(arm.size))
    place = np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1)
    shuffled = rng.permutation(arm.size)
    inputs = place[shuffled].astype("float32")
    targets = arm[shuffled].astype("int32")
    half = arm.size // 2
    train, held = _cut("spiral", targets[:half], train_size, validation, rng)
    return Data(
        "spiral",
        Part(inputs[train], targets[train]),
        Part(inputs[held], targets[held]),
        Part(inputs[half:], targets[half:]),
        labels=("arm 0", "arm 1", "arm 2"),
    )


def cifar10(
    train_size: int | None = None,
    validation: float = 0.1,
    seed: int = 0,
    folder: str | os.PathLike | None = None,
) -> Data:
    """60,000 colour photographs of 32 x 32 pixels in 10 classes (Krizhevsky, 2009).

    Args:
        train_size: Images of the 50,000 for training to use, with the classes in
            proportion; all if `None`. A larger choice of the same seed holds the
            smaller one.
        validation: Fraction of `train_size` to validate on, in [0, 1).
        seed: The same seed chooses the same images.
        folder: Where tensorflow-datasets keeps its data; the variable
            `TFDS_DATA_DIR`, or its own default, if `None`. What is not prepared
            there is downloaded to it.

    Raises:
        UserError: No such folder, no network to download from, damaged data, or a size
            that the set does not hold or that is too small for its classes.
    """
    host = "www.cs.toronto.edu"
    return _images("cifar10", host, train_size, validation, seed, folder)


def mnist(
    train_size: int | None = None,
    validation: float = 0.1,
    seed: int = 0,
    folder: str | os.PathLike | None = None,
) -> Data:
    """70,000 handwritten digits of 28 x 28 pixels (LeCun et al., 1998).

    60,000 are for training; arguments and errors are those of `cifar10`.
    """
    host = "storage.googleapis.com"
    return _images("mnist", host, train_size, validation, seed, folder)


SETS = {"spiral": spiral, "cifar10": cifar10, "mnist": mnist}


def load(name: str, **settings) -> Data:
    """The data set called `name`, with the settings that its function takes."""
    check_choice("data set", name, SETS)
    return SETS[name](**settings)


def _proportional(targets, rng):
    """A random order of which each beginning holds the classes in proportion.

    The k-th member of a class of n stands at (k + 1/2) / n: the first so many of the
    order are Sainte-Lague's apportionment among the classes.
    """
    shuffled = rng.permutation(len(targets))
    place = np.empty(len(targets))
    for label in np.unique(targets):
        members = shuffled[targets[shuffled] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.lexsort((shuffled, place))


def _cut(name, targets, train_size, validation, rng):
    """Indices to train on and to validate on, both with the classes in proportion."""
    count = len(targets) if train_size is None else train_size
    if not 1 <= count <= len(targets):
        raise UserError(
            f"The train size is {count}, but for {name} must be between 1 and "
            f"{len(targets)}."
        )
    if not 0 <= validation < 1:
        raise UserError(
            f"The validation fraction is {validation}, but must be in [0, 1)."
        )
    chosen = _proportional(targets, rng)[:count]
    chosen = chosen[_proportional(targets[chosen], rng)]
    held = round(validation * count)
    train, held_out = chosen[held:], chosen[:held]
    classes = len(np.unique(targets))
    for part, rows in ("training", train), ("validation", held_out):
        present = len(np.unique(targets[rows]))
        if present < classes and (validation or part == "training"):
            raise UserError(
                f"A train size of {count} with a validation fraction of {validation} "
                f"leaves {len(rows)} examples in the {part} part of {name}, with "
                f"{present} of the {classes} classes: it needs at least one of each."
            )
    return train, held_out


def _images(name, host, train_size, validation, seed, folder):
    named = folder or os.environ.get("TFDS_DATA_DIR")
    home = Path(named or "~/tensorflow_datasets").expanduser()
    if named and not home.is_dir():
        raise UserError(f"The data folder {home} is not a folder: make it or name one.")
    # Late, so that the spiral does without the optional package.
    import tensorflow_datasets as tfds
    from google.protobuf.json_format import ParseError

    try:
        builder = tfds.builder(name, data_dir=home)
        if not builder.info.splits:
            _download(builder, host, home)
        config = tfds.ReadConfig(try_autocache=False)  # each image is read once
        whole, test = (_read(builder, split, config) for split in ("train", "test"))
    except (tf.errors.OpError, ParseError) as error:
        reason = re.sub(r"\{\{.*?\}\} | \[Op:.*", "", str(error).splitlines()[0])
        raise UserError(
            f"The data of {name} is damaged ({reason}): delete {home / name}, "
            "and it is downloaded again."
        ) from error
    rng = np.random.default_rng(seed)
    train, held = _cut(name, whole.targets, train_size, validation, rng)
    return Data(
        name,
        Part(whole.inputs[train], whole.targets[train]),
        Part(whole.inputs[held], whole.targets[held]),
        test,
        labels=tuple(builder.info.features["label"].names),
    )


def _read(builder, split, config):
    # Decoding only what was asked for would save a fifth of the time.
    dataset = builder.as_dataset(split=split, as_supervised=True, read_config=config)
    images, labels = zip(*dataset.batch(1000).as_numpy_iterator(), strict=True)
    return Part(np.concatenate(images), np.concatenate(labels).astype("int32"))


def _download(builder, host, home):
    import tensorflow_datasets as tfds

    if not _reachable(host):
        raise UserError(
            f"{builder.name} is not prepared in {home} and {host} does not answer: let "
            "the variable TFDS_DATA_DIR or the option --data-dir name a folder that "
            "holds it, or use another data set (the spiral needs no download)."
        )
    # Google's bucket of prepared sets is asked with retries, for minutes if need be.
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        builder.download_and_prepare(download_config=config)
    except OSError as error:
        raise UserError(f"{builder.name} could not be downloaded: {error}") from error


def _reachable(host):
    """Whether a server answers, on the way that the download would take to it."""
    import requests

    answered = threading.Event()

    def ask():
        with contextlib.suppress(requests.RequestException):
            requests.head(f"https://{host}", timeout=PROBE_SECONDS)
            answered.set()

    # The time limit of requests does not hold for the look-up of the name.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PROBE_SECONDS)
    return answered.is_set()
