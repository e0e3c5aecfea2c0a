"""The last saved epoch of a training run."""

import json
import shutil
from pathlib import Path

import keras

from kdrop.errors import UserError

History = dict[str, list[float]]


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

    def discard(self) -> bool:
        """Delete the folder and return whether there was one."""
        existed = self.folder.exists()
        shutil.rmtree(self.folder, ignore_errors=True)
        return existed
