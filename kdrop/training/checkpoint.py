"""The last saved epoch of a training run, and who may write it."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Generator
from pathlib import Path

import keras
from filelock import FileLock, Timeout

from kdrop.errors import UserError, first_line

History = dict[str, list[float]]
COLUMNS = {"epoch", "loss", "data_loss", "accuracy", "learning_rate", "seconds"}


class Checkpoint:
    """A run's model, optimizer state and history after its last saved epoch.

    The first `save` makes the folder, which is for this run alone. `progress.Recorder`
    decides when to save.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def saved(self) -> list[Path]:
        """The saved epochs, of which the last counts."""
        return sorted(self.folder.glob("epoch-*.keras"))

    def load(self) -> tuple[keras.Model | None, History]:
        """The saved model and its history, or `None` and an empty history."""
        if not self.saved:
            return None, {}
        path = self.saved[-1]
        try:
            history = json.loads((self.folder / "history.json").read_text())
            rows = int(path.stem.removeprefix("epoch-"))
            epochs = list(range(1, len(history["epoch"]) + 1))
            numbers = [x for column in history.values() for x in column]
            if (
                not COLUMNS <= set(history)
                or history["epoch"] != epochs
                or any(len(column) != len(epochs) for column in history.values())
                or not all(isinstance(x, int | float) for x in numbers)
                or not 1 <= rows <= len(epochs)
            ):
                raise ValueError("history.json does not have a row for each epoch")
            history = {name: history[name][:rows] for name in history}
            return keras.models.load_model(path), history
        except (MemoryError, PermissionError):  # the file may be sound
            raise
        except Exception as error:  # a damaged file can raise anything
            raise UserError(
                f"The checkpoint {path} cannot be read ({first_line(error)}): delete "
                f"{self.folder} to train this run from the start."
            ) from error

    def save(self, model: keras.Model, history: History) -> None:
        """Save an epoch; a kill at any moment leaves this epoch or the one before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # The history first: `load` cuts one that is longer than the model's epochs.
        write(self.folder / "history.json", json.dumps(history))
        partial = self.folder / "partial.keras"
        model.save(partial)
        saved = partial.replace(self.folder / f"epoch-{history['epoch'][-1]:07d}.keras")
        for older in self.saved:
            if older != saved:
                older.unlink()

    def digest(self) -> str:
        """A hash of the saved epoch, which no other run has; empty if none is saved."""
        if not self.saved:
            return ""
        return hashlib.sha256(self.saved[-1].read_bytes()).hexdigest()

    def discard(self) -> bool:
        """Delete the folder and return whether there was one."""
        existed = self.folder.exists()
        for path in self.saved:  # first: a folder without them is no checkpoint
            path.unlink()
        if self.folder.is_symlink():
            self.folder.unlink()
        shutil.rmtree(self.folder, ignore_errors=True)
        return existed


def write(path: Path, text: str) -> None:
    """Write a file, complete or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


@contextlib.contextmanager
def lock(folder: Path) -> Generator[None]:
    """Hold the right to write a folder, which the system releases with the process.

    Raises `UserError` if another process holds it, or a file is in its place.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError(f"{folder} is in the way: it must be a folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.with_name(f"{folder.name}.lock")
    held = FileLock(file, blocking=False)
    try:
        held.acquire()
    except Timeout:
        raise UserError(
            f"Another process trains {folder}: wait until it ends, or take another "
            "output folder."
        ) from None
    try:
        yield
    finally:
        # While we hold the lock: afterwards the file may be another process's lock.
        file.unlink(missing_ok=True)
        held.release()
