"""What a run prints, records and saves while it trains."""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from kdrop.errors import UserError

History = dict[str, list[float]]
SAVE_SECONDS = 1.0  # least time between checkpoints: saving costs about 0.1 s


class Checkpoint:
    """A run's model, optimizer state and history after its last saved epoch.

    The first `save` makes the folder, which is for this run alone.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def load(self) -> tuple[keras.Model | None, History]:
        """The saved model and its history, or `None` and an empty history."""
        saved = sorted(self.folder.glob("epoch-*.keras"))
        if not saved:
            return None, {}
        try:
            history = json.loads((self.folder / "history.json").read_text())
            epoch = int(saved[-1].stem.removeprefix("epoch-"))
            rows = history["epoch"].index(epoch) + 1
            history = {name: history[name][:rows] for name in history}
            history["seconds"][rows - 1]
            return keras.models.load_model(saved[-1]), history
        except Exception as error:  # a damaged file can raise anything
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            raise UserError(
                f"The checkpoint {saved[-1]} cannot be read ({reason}): delete "
                f"{self.folder} to train this run from the start."
            ) from error

    def save(self, model: keras.Model, history: History) -> None:
        """Save an epoch; a kill at any moment leaves this epoch or the one before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # The history first: `load` cuts one that is longer than the model's epochs.
        partial = self.folder / "history.partial"
        partial.write_text(json.dumps(history))
        partial.replace(self.folder / "history.json")
        partial = self.folder / "partial.keras"
        model.save(partial)
        saved = partial.replace(self.folder / f"epoch-{history['epoch'][-1]:07d}.keras")
        for older in self.folder.glob("epoch-*.keras"):
            if older != saved:
                older.unlink()

    @property
    def exported(self) -> Path | None:
        """The path that the run's model was exported to, if it was."""
        note = self.folder / "exported"
        return Path(note.read_text()) if note.exists() else None

    @exported.setter
    def exported(self, path: Path) -> None:
        (self.folder / "exported").write_text(str(path))

    def discard(self) -> bool:
        """Delete the folder and return whether there was one."""
        existed = self.folder.exists()
        shutil.rmtree(self.folder, ignore_errors=True)
        return existed


class Recorder(keras.callbacks.Callback):
    """Prints a line for each epoch, records the history, and saves checkpoints.

    The lines begin with `name`. In a terminal a progress bar moves below them.
    """

    def __init__(self, console: Console, name: str):
        super().__init__()
        self.console = console
        self.name = name
        self.bar = Progress(
            TextColumn(name),
            BarColumn(),
            TextColumn("epoch {task.completed:.0f}/{task.total}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def begin(
        self,
        epochs: int,
        history: History,
        checkpoint: Checkpoint,
        scheduled: Sequence[Any] = (),
        agree: Callable[[bool], bool] = bool,
    ) -> None:
        """Prepare a run, which continues the history if that is not empty.

        Args:
            scheduled: Layers whose rates are columns of the history.
            agree: Returns the decision of the first process in all processes.
        """
        self.epochs, self.checkpoint, self.agree = epochs, checkpoint, agree
        self.scheduled = scheduled
        self.history = {name: list(values) for name, values in history.items()}
        self.resumed_at = int(history["epoch"][-1]) if history else 0
        self.seconds_before = history["seconds"][-1] if history else 0.0

    def on_train_begin(self, logs=None):
        self.started = self.saved = time.perf_counter()
        self.task = self.bar.add_task("", total=self.epochs, completed=self.resumed_at)
        self.bar.start()

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        params: Any = self.params
        self.bar.update(self.task, completed=self.epoch + (batch + 1) / params["steps"])

    def on_epoch_end(self, epoch, logs: Any = None):
        now = time.perf_counter()
        measured = ("loss", "data_loss", "accuracy", "val_data_loss", "val_accuracy")
        row = {"epoch": epoch + 1, **{k: logs[k] for k in measured if k in logs}}
        row["learning_rate"] = float(self.model.optimizer.learning_rate)
        for layer in self.scheduled:
            row[f"rate_{layer.name}"] = layer.rate
        row["seconds"] = self.seconds_before + now - self.started
        for name, value in row.items():
            self.history.setdefault(name, []).append(value)
        self.console.print(self._line(row), soft_wrap=True, highlight=False)
        due = now - self.saved >= SAVE_SECONDS or epoch + 1 == self.epochs
        # On JAX all processes must save together, or they would wait for each other
        # in different collectives.
        if self.agree(due):
            self.checkpoint.save(self.model, self.history)
            self.saved = time.perf_counter()

    def on_train_end(self, logs=None):
        self.bar.stop()

    def _line(self, row):
        epoch = row["epoch"]
        seconds = row["seconds"] - self.seconds_before
        seconds_per_epoch = seconds / (epoch - self.resumed_at)
        minutes, seconds = divmod(round(seconds_per_epoch * (self.epochs - epoch)), 60)
        left = f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
        regularisation = max(row["loss"] - row["data_loss"], 0.0)  # not -0.000
        validation = f"  val {row['val_accuracy']:.3f}" if "val_accuracy" in row else ""
        rates = dict.fromkeys(f"{layer.rate:.2g}" for layer in self.scheduled)
        rate = f"  rate {'/'.join(rates)}" if rates else ""
        width = len(str(self.epochs))
        return (
            f"{self.name}  epoch {epoch:{width}}/{self.epochs}"
            f"  loss {row['loss']:.3f} = data {row['data_loss']:.3f}"
            f" + reg {regularisation:.3f}  accuracy {row['accuracy']:.3f}{validation}"
            f"  lr {row['learning_rate']:.2g}{rate}  {left} left"
        )
