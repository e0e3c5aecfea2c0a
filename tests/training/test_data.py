import math
import os
import threading

import numpy as np
import pytest
import requests
import tensorflow as tf
import tensorflow_datasets as tfds
from prepared import SHAPES, numbered, prepare, record, write

from kdrop.errors import UserError
from kdrop.training import data
from kdrop.training.data import load

UNEVEN = np.repeat(np.arange(10), [36, 6, 17, 8, 19, 7, 26, 9, 12, 10])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    rng = np.random.default_rng(0)
    even = rng.permutation(np.arange(300) % 10)
    prepare(folder, "cifar10", even, np.arange(50) % 10)
    prepare(folder, "mnist", rng.permutation(UNEVEN), np.arange(30) % 10)
    return folder


def numbers(part):
    first = part.inputs.reshape(len(part.inputs), -1).astype(int)
    return (first[:, 0] + 256 * first[:, 1]).tolist()


def counts(part):
    return np.bincount(part.targets, minlength=10)


# The images


def test_images_are_stratified_exactly_and_seeded(folder):
    chosen = load("cifar10", 100, 0.2, seed=1, data_dir=folder)
    assert counts(chosen.train).tolist() == [8] * 10
    assert counts(chosen.validation).tolist() == [2] * 10
    train, validation = numbers(chosen.train), numbers(chosen.validation)
    assert len(set(train + validation)) == 100
    again = load("cifar10", 100, 0.2, seed=1, data_dir=folder)
    assert (numbers(again.train), numbers(again.validation)) == (train, validation)
    other = load("cifar10", 100, 0.2, seed=2, data_dir=folder)
    assert set(numbers(other.train)) != set(train)
    larger = load("cifar10", 210, 0, seed=1, data_dir=folder)
    assert set(numbers(larger.train)) > set(train + validation)


def test_images_keep_their_labels_and_the_test_set_its_order(folder):
    digits = load("mnist", data_dir=folder, validation=0)
    truth = np.random.default_rng(0)
    truth.permutation(300)  # cifar10's
    truth = truth.permutation(UNEVEN)
    np.testing.assert_array_equal(digits.train.targets, truth[numbers(digits.train)])
    assert sorted(numbers(digits.train)) == list(range(150))
    assert numbers(digits.test) == list(range(30))
    assert digits.test.targets.tolist() == list(range(10)) * 3
    assert digits.labels == tuple("0123456789")
    assert digits.train.inputs.dtype == "uint8"
    assert digits.train.targets.dtype == "int32"


@pytest.mark.parametrize("size", [70, 99, 150])
def test_uneven_classes_stay_within_one_of_their_share(folder, size):
    digits = load("mnist", size, 0.5, data_dir=folder)
    both = counts(digits.train) + counts(digits.validation)
    assert both.sum() == size
    assert (abs(both - size * np.bincount(UNEVEN) / UNEVEN.size) < 1).all()
    assert (abs(counts(digits.validation) - both / 2) < 1).all()


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_a_missing_data_set_is_downloaded(name, monkeypatch, tmp_path):
    urls = []
    monkeypatch.setattr(requests, "head", lambda url, timeout: urls.append(url))
    with tfds.testing.mock_data(num_examples=200):
        parts = load(name, data_dir=tmp_path, seed=2)
    assert urls and urls[0].startswith("https://")
    shape = SHAPES[name][1]
    assert parts.name == name and len(parts.labels) == 10
    assert parts.train.inputs.shape == (180, *shape)
    assert parts.validation.inputs.shape == (20, *shape)
    assert parts.test.inputs.shape == (200, *shape)


@pytest.mark.slow
@pytest.mark.skipif("TFDS_DATA_DIR" not in os.environ, reason="needs the real CIFAR-10")
def test_real_cifar10():
    parts = load("cifar10", 5000)
    assert counts(parts.train).tolist() == [450] * 10
    assert counts(parts.validation).tolist() == [50] * 10
    assert counts(parts.test).tolist() == [1000] * 10
    assert parts.labels[:3] == ("airplane", "automobile", "bird")
    # the published channel means of the 50,000 images, standard deviations about 63
    assert parts.train.inputs.mean((0, 1, 2)) == pytest.approx(
        [125.3, 123.0, 113.9], abs=5 * 40 / math.sqrt(4500)
    )


# Bad input


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"train_size": 301}, r"`train_size` is 301, but must be in \[1, 300\]"),
        ({"train_size": 0}, "`train_size` is 0"),
        ({"train_size": 9, "validation": 0}, "9 examples .* 9 of the 10 classes"),
        ({"train_size": 50, "validation": 0.1}, "5 examples in the validation part"),
        ({"train_size": 50, "validation": 0.001}, "0 examples in the validation part"),
        ({"validation": 1.0}, "`validation` is 1.0"),
        ({"validation": math.nan}, r"nan, but must be in \[0, 1\)"),
    ],
)
def test_wrong_sizes_are_rejected(folder, settings, message):
    with pytest.raises(UserError, match=message):
        load("cifar10", **settings, data_dir=folder)


@pytest.mark.parametrize("way", ["argument", "variable"])
@pytest.mark.parametrize("name", ["missing", "file"])
def test_a_folder_that_is_no_folder_is_rejected(name, way, tmp_path, monkeypatch):
    path = tmp_path / name
    (tmp_path / "file").touch()
    if way == "variable":
        monkeypatch.setenv("TFDS_DATA_DIR", str(path))
        path = None
    with pytest.raises(UserError, match=f"{name} is not a folder"):
        load("cifar10", data_dir=path)


def refused(url, timeout):
    raise requests.ConnectionError


def silent(url, timeout):
    threading.Event().wait(5)


@pytest.mark.parametrize("answer", [refused, silent])
def test_without_network_the_error_says_what_to_do(answer, tmp_path, monkeypatch):
    monkeypatch.setattr(requests, "head", answer)
    monkeypatch.setattr(data, "PROBE_SECONDS", 0.1)

    def download(*args, **kwargs):
        raise AssertionError("download without network")

    builder = tfds.core.DatasetBuilder
    monkeypatch.setattr(builder, "download_and_prepare", download)
    with pytest.raises(UserError, match="TFDS_DATA_DIR.*`data_dir`.*spiral") as caught:
        load("cifar10", data_dir=tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_failed_download_is_reported(tmp_path, monkeypatch):
    def download(*args, **kwargs):
        raise requests.ConnectionError("connection lost")

    monkeypatch.setattr(requests, "head", lambda url, timeout: None)
    builder = tfds.core.DatasetBuilder
    monkeypatch.setattr(builder, "download_and_prepare", download)
    with pytest.raises(UserError, match="cifar10 could not be downloaded.*lost"):
        load("cifar10", data_dir=tmp_path)


def flipped(home):
    path = home / "mnist-train.tfrecord-00000-of-00001"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def truncated(home):
    path = home / "mnist-test.tfrecord-00000-of-00001"
    path.write_bytes(path.read_bytes()[:-10])


def no_image(home):
    """A record that is whole, of an image that is not."""
    path = home / "mnist-test.tfrecord-00000-of-00001"
    png = tf.io.encode_png(numbered(1, (28, 28, 1))[0]).numpy()
    write(path, [record(png[:40], 3)] * 20)


def missing_file(home):
    (home / "mnist-test.tfrecord-00000-of-00001").unlink()


def cut_description(home):
    path = home / "dataset_info.json"
    path.write_text(path.read_text()[:100])


def described(text):
    def replace(home):
        (home / "dataset_info.json").write_bytes(text)

    return replace


def folder_for_description(home):
    (home / "dataset_info.json").unlink()
    (home / "dataset_info.json").mkdir()


DESCRIPTIONS = [b"", b"{}", b"[]", b"null", b"3", b"\xff\x00", b'{"splits": [1]}']


@pytest.mark.parametrize(
    "damage",
    [
        *(flipped, truncated, no_image, missing_file, cut_description),
        *(folder_for_description, *map(described, DESCRIPTIONS)),
    ],
)
def test_damaged_data_is_reported(damage, tmp_path):
    damage(prepare(tmp_path, "mnist", np.arange(40) % 10, np.arange(20) % 10))
    with pytest.raises(UserError, match="data of mnist is damaged") as caught:
        load("mnist", data_dir=tmp_path, validation=0.25)
    message = str(caught.value)
    assert str(tmp_path / "mnist") in message
    assert "\n" not in message and "{{" not in message
