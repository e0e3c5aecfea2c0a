"""What a run shows while it trains, and what it keeps to go on after a stop."""

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

SAVE_SECONDS = 1.0  # a model whose epochs are shorter is saved this often

History = dict[str, list[float]]


class Unfinished:
    """The last finished epoch of a run, on disk: its model, optimiser and history.

    Args:
        folder: The run's own folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def load(self) -> tuple[keras.Model | None, History]:
        """The model and its history up to there, or `None` and nothing."""
        saved = sorted(self.folder.glob("epoch-*.keras"))
        if not saved:
            return None, {}
        try:
            history = json.loads((self.folder / "history.json").read_text())
            rows = history["epoch"].index(_epoch(saved[-1])) + 1
            history = {name: history[name][:rows] for name in history}
            history["seconds"][rows - 1]
            model = keras.models.load_model(saved[-1])
        except Exception as error:  # whatever a damaged file makes its reader raise
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            raise UserError(
                f"The saved epoch {saved[-1]} cannot be read ({reason}): with "
                f"{self.folder} deleted, the run starts anew."
            ) from error
        return model, history

    def save(self, model: keras.Model, history: History) -> None:
        """Keep an epoch, so that a kill at any moment leaves this or the one before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        epoch = int(history["epoch"][-1])
        # The history first: it may be ahead of the model, never behind.
        partial = self.folder / "history.partial"
        partial.write_text(json.dumps(history))
        partial.replace(self.folder / "history.json")
        partial = self.folder / "partial.keras"
        model.save(partial)
        saved = partial.replace(self.folder / f"epoch-{epoch:07d}.keras")
        for older in self.folder.glob("epoch-*.keras"):
            if older != saved:
                older.unlink()

    @property
    def exported(self) -> Path | None:
        """Where the run was exported to, if it was."""
        note = self.folder / "exported"
        return Path(note.read_text()) if note.exists() else None

    @exported.setter
    def exported(self, path: Path) -> None:
        (self.folder / "exported").write_text(str(path))

    def discard(self) -> bool:
        """Delete what is kept; whether there was anything."""
        kept = self.folder.exists()
        shutil.rmtree(self.folder, ignore_errors=True)
        return kept


def _epoch(path: Path) -> int:
    return int(path.stem.removeprefix("epoch-"))


class Recorder(keras.callbacks.Callback):
    """Writes a line for each report, keeps the history, and saves what is finished.

    In a terminal a bar moves below the lines; in a file there are the lines alone.
    """

    def __init__(self, console: Console, name: str):
        super().__init__()
        self.console = console
        self.name = name

    def begin(
        self,
        epochs: int,
        history: History,
        unfinished: Unfinished,
        scheduled: Sequence[Any] = (),
        decide: Callable[[bool], bool] = bool,
    ):
        """Start anew, or after the epochs that `history` holds, towards `epochs`.

        The history holds the rate of each `scheduled` layer, too. What depends on the
        clock is passed through `decide`, for several processes to do the same.
        """
        self.epochs, self.unfinished, self.decide = epochs, unfinished, decide
        self.scheduled = scheduled
        self.history = {name: list(values) for name, values in history.items()}

    def report_every(self, stride: int, steps: int):
        """Let each of Keras's epochs be `stride` of ours, and `steps` in all."""
        self.stride, self.steps = stride, steps

    def on_train_begin(self, logs=None):
        self.done = int(self.history["epoch"][-1]) if self.history else 0
        self.resumed_at = self.done
        self.before = self.history["seconds"][-1] if self.history else 0.0
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
        self.task = self.bar.add_task("", total=self.epochs, completed=self.done)
        self.bar.start()

    def on_train_batch_end(self, batch, logs=None):
        part = (batch + 1) / self.steps
        self.bar.update(self.task, completed=self.done + part * self.stride)

    def on_epoch_end(self, epoch, logs: Any = None):
        now = time.perf_counter()
        self.done += self.stride
        row = {"epoch": self.done, "loss": logs["loss"], "data_loss": logs["data_loss"]}
        row["accuracy"] = logs["accuracy"]
        if "val_accuracy" in logs:
            row["val_data_loss"] = logs["val_data_loss"]
            row["val_accuracy"] = logs["val_accuracy"]
        row["learning_rate"] = float(self.model.optimizer.learning_rate)
        for layer in self.scheduled:
            row[f"rate_{layer.name}"] = layer.rate
        row["seconds"] = self.before + now - self.started
        for name, value in row.items():
            self.history.setdefault(name, []).append(value)
        self.console.print(self._line(row, now), soft_wrap=True, highlight=False)
        due = now - self.saved >= SAVE_SECONDS or self.done == self.epochs
        # To save a model on JAX takes all processes: one that does so alone would meet
        # the others in another step, and all would wait for ever.
        if self.decide(due):
            self.unfinished.save(self.model, self.history)
            self.saved = time.perf_counter()

    def on_train_end(self, logs=None):
        self.stop()

    def stop(self):
        """Take the bar away."""
        if hasattr(self, "bar"):
            self.bar.stop()

    def _line(self, row, now):
        pace = (now - self.started) / (self.done - self.resumed_at)
        left = pace * (self.epochs - self.done)
        regularisation = max(row["loss"] - row["data_loss"], 0.0)  # not -0.000
        validation = f"  val {row['val_accuracy']:.3f}" if "val_accuracy" in row else ""
        rates = dict.fromkeys(f"{layer.rate:.2g}" for layer in self.scheduled)
        rate = f"  rate {'/'.join(rates)}" if rates else ""
        width = len(str(self.epochs))
        return (
            f"{self.name}  epoch {self.done:{width}}/{self.epochs}"
            f"  loss {row['loss']:.3f} = data {row['data_loss']:.3f}"
            f" + reg {regularisation:.3f}  accuracy {row['accuracy']:.3f}{validation}"
            f"  lr {row['learning_rate']:.2g}{rate}  {duration(left)} left"
        )


def duration(seconds: float) -> str:
    """A time in words."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
