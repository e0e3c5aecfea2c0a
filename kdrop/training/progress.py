"""What a run prints, records and saves while it trains."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from kdrop.errors import UserError
from kdrop.training.checkpoint import Checkpoint, History

SAVE_SECONDS = 1.0  # least time between checkpoints: saving costs about 0.1 s


@dataclass(eq=False)
class Recorder(keras.callbacks.Callback):
    """Prints a line for each epoch, records the history, and saves checkpoints.

    In a terminal a progress bar moves below the lines while `bar` is entered.
    """

    console: Console
    label: str  # what the lines begin with
    epochs: int  # of the whole run
    history: History  # of the epochs before, if the run is resumed
    checkpoint: Checkpoint
    scheduled: Sequence[Any] = ()  # layers whose rates are columns of the history
    agree: Callable[[bool], bool] = bool  # the first process's decision, in all

    def __post_init__(self):
        super().__init__()
        self.resumed_at = int(self.history["epoch"][-1]) if self.history else 0
        self.seconds_before = self.history["seconds"][-1] if self.history else 0.0
        epochs = TextColumn("epoch {task.completed:.0f}/{task.total}")
        self.bar = Progress(
            *(TextColumn(self.label), BarColumn(), epochs, TimeRemainingColumn()),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )

    def on_train_begin(self, logs=None):
        self.started = self.saved = time.perf_counter()
        self.task = self.bar.add_task("", total=self.epochs, completed=self.resumed_at)

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
        if self.history and self.history.keys() != row.keys():
            raise UserError(
                f"The history of {self.label} in {self.checkpoint.folder} has other "
                "columns: delete this folder to train the run from the start."
            )
        for name, value in row.items():
            self.history.setdefault(name, []).append(value)
        self.console.print(self._line(row), highlight=False)
        due = now - self.saved >= SAVE_SECONDS or epoch + 1 == self.epochs
        # On JAX all processes must save together, or they would wait for each other
        # in different collectives.
        if self.agree(due):
            self.checkpoint.save(self.model, self.history)
            self.saved = time.perf_counter()

    def _line(self, row):
        epoch = row["epoch"]
        seconds = row["seconds"] - self.seconds_before
        seconds *= (self.epochs - epoch) / (epoch - self.resumed_at)
        left = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
        other = row["loss"] - row["data_loss"]  # label smoothing can make it negative
        penalty = f" + reg {other:.3f}" if abs(other) >= 0.0005 else ""
        validation = f"  val {row['val_accuracy']:.3f}" if "val_accuracy" in row else ""
        rates = list(dict.fromkeys(f"{layer.rate:.2g}" for layer in self.scheduled))
        rates = rates if len(rates) < 4 else [rates[0], "...", rates[-1]]
        rate = f"  rate {'/'.join(rates)}" if rates else ""
        return (
            f"{self.label}  epoch {epoch:{len(str(self.epochs))}}/{self.epochs}"
            f"  loss {row['data_loss']:.3f}{penalty}  accuracy {row['accuracy']:.3f}"
            f"{validation}{rate}  {left} left"
        )
