"""The models in a folder, loaded again whenever their files change."""

import logging
import os
import threading
from pathlib import Path
from typing import Any

from kserve import ModelRepository
from kserve.errors import InvalidInput

from kdrop.errors import check_model_name, first_line
from kdrop.serving.served_model import ServedModel
from kdrop.serving.versions import (
    LinkError,
    check_link,
    files_of,
    model_folders,
    models_below,
    versions,
)

POLL_INTERVAL = 1.0  # seconds between scans of the folder, as in TensorFlow Serving

log = logging.getLogger("kdrop.serving")


class ServedFolder(ModelRepository):
    """The model in a folder, or the models in the folders below it.

    Of each model, the newest version that can be loaded is served. A request finishes
    on the version that it began with. An error stays with its model and its version.
    """

    def __init__(self, folder: Path):
        super().__init__(str(folder))
        self.folder = folder.resolve()
        self.models: dict[str, Any] = {}
        self._is_one_model: bool | None = None  # decided once, by the first models
        self._broken: dict[Path, object] = {}  # folders and their files, reported once

    def refresh(self) -> None:
        """Load new models, versions and files, and withdraw models that are gone."""
        if self._is_one_model is None and (first := model_folders(self.folder)):
            self._is_one_model = first == [self.folder]
        folders = [self.folder]
        if not self._is_one_model:  # a version among models is reported
            folders = models_below(self.folder) + [*versions(self.folder).values()]
            self._broken.pop(self.folder, None)
        for folder in dict.fromkeys(folders):
            try:
                check_model_name(folder.name)
                check_link(folder, self.folder)
                # A version that is loaded and unchanged, or could be loaded.
                any(self._load(path) for path in reversed(versions(folder).values()))
                self._broken.pop(folder, None)
            except Exception as error:
                self._report(folder, error)
        for name, model in [*self.models.items()]:
            if _is_gone(model.path.parent, self.folder):
                del self.models[name]
                log.info("withdrew %s, whose folder is gone", name)
        exists = os.path.lexists
        self._broken = {p: files for p, files in self._broken.items() if exists(p)}

    def _load(self, path: Path) -> bool:
        """Load a version if its files are new; return whether it is served."""
        loaded = self.models.get(path.parent.name)
        is_loaded = loaded is not None and loaded.path == path
        files = None
        try:
            check_link(path, path.parent)
            files = files_of(path, path.parent)
            if not (is_loaded and files == loaded.files):
                if files == self._broken.get(path):
                    return is_loaded
                model = ServedModel(path)
                model.files = files
                self.update(model)
                log.info("serving %s", path)
        except Exception as error:  # TensorFlow may raise any for a broken file
            self._report(path, error, files)
            return is_loaded
        self._broken.pop(path, None)
        return True

    def _report(self, path: Path, error: Exception, files: object = None) -> None:
        if path not in self._broken:
            name = "".join(x if x.isprintable() else "?" for x in str(path))  # one line
            reason = first_line(error)
            log.error("skipped %s, which cannot be loaded: %s", name, reason)
        self._broken[path] = files

    def watch(self, stop: threading.Event) -> None:
        """Refresh once every `POLL_INTERVAL` until `stop` is set."""
        while not stop.wait(POLL_INTERVAL):
            try:
                self.refresh()
            except Exception as error:  # the models that are loaded are served on
                self._report(self.folder, error)

    def unload(self, name: str) -> None:
        raise InvalidInput(f"{name} cannot be unloaded: delete its folder instead")


def _is_gone(folder: Path, root: Path) -> bool:
    """Whether a model's folder has no version, or is now a link out of the root.

    What merely cannot be read, perhaps for a moment, is not gone. Where only the loaded
    version is deleted, the model stays until the next refresh has loaded another.
    """
    try:
        check_link(folder, root)
        return not versions(folder)
    except OSError as error:
        return isinstance(error, (FileNotFoundError, NotADirectoryError, LinkError))
