"""One exported model for all tests of serving, and the folder that a server loads."""

import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from mixed_model import LABELS, mixed

import kdrop
from kdrop.serving import export


@pytest.fixture(scope="session")
def points():
    return np.random.default_rng(0).normal(size=(7, 2)).round(3).astype("float32")


@pytest.fixture(scope="session")
def model():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((2,), name="inputs"),
            keras.layers.Normalization(mean=1.0, variance=4.0),
            keras.layers.Dense(8, activation="relu"),
            kdrop.VanillaDropout(0.5, seed=1, name="drop"),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )


@pytest.fixture(scope="session")
def exported_path(model, tmp_path_factory):
    """The version folder of `model`. Copy it before you change it."""
    return export(
        model,
        tmp_path_factory.mktemp("exported") / "spiral",
        labels=LABELS,
        record={"settings": {"rate": 0.5}, "metrics": {"test_loss": float("nan")}},
        history={"epoch": [1, 2], "loss": [0.5, 0.25]},
        draw=lambda folder: (folder / "picture.png").write_bytes(b"drawn"),
        passes=20,
    )


@pytest.fixture(scope="session")
def signatures(exported_path):
    loaded = tf.saved_model.load(str(exported_path))  # it owns the variables
    yield loaded.signatures


class Plain(tf.Module):
    """Signatures of several inputs and outputs, slow ones, and some that V1 rejects."""

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, 2), tf.float32),
            tf.TensorSpec((None,), tf.int32),
        ]
    )
    def sample(self, inputs, seeds):
        summed = tf.reduce_sum(inputs, axis=1)
        return {"mean": summed + tf.cast(seeds, tf.float32), "std": inputs / 2}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.int32)])
    def total(self, inputs):
        return {"total": tf.reduce_sum(inputs)}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.int32)])
    def raw(self, inputs):
        return {"raw": tf.repeat(tf.constant(b"\xff"), tf.size(inputs))}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.int32)])
    def wait(self, rounds):
        def slower(number):
            return number + tf.cast(tf.sin(tf.cast(number, tf.float32)) < 2, tf.int32)

        last = tf.while_loop(lambda n: n < rounds[0], slower, [tf.constant(0)])[0]
        return {"last": tf.repeat(last, tf.size(rounds))}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.int32)])
    def wait_whole(self, rounds):
        return {"last": self.wait(rounds)["last"][0]}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.int32)])
    def wide(self, inputs):
        return {"wide": tf.repeat(inputs[:, None], 100, axis=1)}


@pytest.fixture(scope="session")
def plain_path(tmp_path_factory):
    """The version folder of a SavedModel that kdrop did not write. Copy it, too."""
    module, path = Plain(), tmp_path_factory.mktemp("plain") / "3"
    endpoints = {"serving_default": module.wait, "sample_seeded": module.sample}
    endpoints |= {"total": module.total, "raw": module.raw, "wide": module.wide}
    endpoints |= {"wait": module.wait, "wait_whole": module.wait_whole}
    tf.saved_model.save(module, str(path), signatures=endpoints)
    return path


@pytest.fixture(scope="session")
def models_folder(exported_path, plain_path, tmp_path_factory) -> Path:
    """Three models, and an incomplete version of one."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(exported_path, folder / "spiral" / "1")
    shutil.copytree(exported_path, folder / "spiral" / ".partial-9" / "1")
    shutil.copytree(plain_path, folder / "plain" / "3")
    mixed(folder / "mixed")
    return folder


@pytest.fixture(scope="session")
def client(models_folder):
    """A client of the server's application in this process."""
    pytest.importorskip("kserve", reason="KServe is not installed: the extra serve")
    from kserve.model_server import app
    from starlette.testclient import TestClient

    from kdrop.serving.limits import Limits
    from kdrop.serving.server import ServedFolder, Server, configure_logs

    configure_logs()
    models = ServedFolder(models_folder)
    models.refresh()
    Server(models, 0, Limits()).create_application()
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client
