"""What a run shows and records while it trains."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from kdrop.training.checkpoint import Checkpoint, History

SAVE_SECONDS = 1.0  # least time between checkpoints: saving costs about 0.1 s


class Recorder(keras.callbacks.Callback):
    """Prints a line for each epoch, records the history, and saves checkpoints.

    In a terminal a progress bar moves below the lines.

    Args:
        console: Where to print; `Console(quiet=True)` for nothing.
        name: Begins each line.
    """

    def __init__(self, console: Console, name: str):
        super().__init__()
        self.console = console
        self.name = name

    def begin(
        self,
        epochs: int,
        history: History,
        checkpoint: Checkpoint,
        scheduled: Sequence[Any] = (),
        agree: Callable[[bool], bool] = bool,
    ) -> None:
        """Prepare a run of so many epochs.

        Args:
            history: The history that a resumed run continues, else empty.
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
        self.bar = Progress(
            TextColumn(self.name),
            BarColumn(),
            TextColumn("epoch {task.completed:.0f}/{task.total}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("", total=self.epochs, completed=self.resumed_at)
        self.bar.start()

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        params: Any = self.params
        self.bar.update(self.task, completed=self.epoch + (batch + 1) / params["steps"])

    def on_epoch_end(self, epoch, logs: Any = None):
        now = time.perf_counter()
        row = {"epoch": epoch + 1, **_measures(logs)}
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
        self.stop()

    def stop(self) -> None:
        """Remove the progress bar, after an error too."""
        if hasattr(self, "bar"):
            self.bar.stop()

    def _line(self, row):
        epoch = row["epoch"]
        seconds_per_epoch = (row["seconds"] - self.seconds_before) / (
            epoch - self.resumed_at
        )
        left = duration(seconds_per_epoch * (self.epochs - epoch))
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


def _measures(logs) -> dict[str, float]:
    """The columns of the history that Keras measures."""
    names = ("loss", "data_loss", "accuracy", "val_data_loss", "val_accuracy")
    return {name: logs[name] for name in names if name in logs}


def duration(seconds: float) -> str:
    """A time in words, as in `1 min 15 s`."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
