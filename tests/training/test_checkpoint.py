"""Checkpoints: one survives any kill, and damaged ones are reported."""

from pathlib import Path

import keras
import numpy as np
import pytest

from kdrop.errors import UserError
from kdrop.training.checkpoint import COLUMNS, Checkpoint


def model(value):
    dense = keras.layers.Dense(1, kernel_initializer=keras.initializers.Constant(value))
    return keras.Sequential([keras.Input((2,)), dense])


def history(epochs):
    columns = {name: [0.5] * epochs for name in sorted(COLUMNS)}
    return {**columns, "epoch": list(range(1, epochs + 1))}


@pytest.fixture
def checkpoint(tmp_path):
    """One with two saved epochs."""
    checkpoint = Checkpoint(tmp_path / "run")
    for epoch in (1, 2):
        checkpoint.save(model(epoch), history(epoch))
    return checkpoint


def saved_file(checkpoint):
    (path,) = checkpoint.folder.glob("*.keras")
    return path


def test_load_returns_the_last_saved_epoch(checkpoint):
    loaded, columns = checkpoint.load()
    np.testing.assert_array_equal(loaded.get_weights()[0], [[2.0], [2.0]])
    assert columns == history(2)


def test_a_kill_while_saving_leaves_the_epoch_before(checkpoint, monkeypatch):
    def killed(model, path):
        Path(path).write_bytes(saved_file(checkpoint).read_bytes()[:1000])
        raise KeyboardInterrupt

    monkeypatch.setattr(keras.Model, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(model(3), history(3))
    loaded, columns = checkpoint.load()
    assert columns == history(2)
    np.testing.assert_array_equal(loaded.get_weights()[0], [[2.0], [2.0]])


def test_a_damaged_model_is_reported_and_left(checkpoint):
    path = saved_file(checkpoint)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read") as refusal:
        checkpoint.load()
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)
    assert path.stat().st_size == 1000


@pytest.mark.parametrize("content", ["{}", "null", '{"epoch": [1]}', "[", ""])
def test_a_damaged_history_is_reported(content, checkpoint):
    (checkpoint.folder / "history.json").write_text(content)
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load()


def test_discard_deletes_the_folder(checkpoint):
    assert checkpoint.discard()
    assert not checkpoint.folder.exists() and not checkpoint.discard()
    assert checkpoint.load() == (None, {})
