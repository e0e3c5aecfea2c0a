"""The layout of exported models: names, version folders, and how the next one appears.

FOLDER/NAME/VERSION/saved_model.pb      NAME is never a number, VERSION always is
"""

import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from kdrop.errors import UserError, check_model_name

PARTIAL = ".partial-"  # prefix of folders with incomplete versions, hidden from servers
LOCK = "lock"  # a file in them, locked while the process that exports is alive


def versions(folder: Path) -> dict[int, Path]:
    """The versions in a model's folder by number, in ascending order.

    As in TensorFlow Serving, the name of a version may begin with zeros.
    """
    names = os.listdir(folder) if folder.is_dir() else []
    numbers = [name for name in names if re.fullmatch("[0-9]{1,18}", name)]
    return {int(x): folder / x for x in sorted(numbers, key=lambda x: (int(x), x))}


def models_below(folder: Path) -> list[Path]:
    """The visible folders in a folder that hold versions."""

    def is_model(path):
        try:
            return bool(versions(path))
        except OSError:  # not readable
            return False

    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return [folder / x for x in names if x[0] != "." and is_model(folder / x)]


def model_folders(folder: Path) -> list[Path]:
    """The models below a folder, or else the folder itself if it holds versions.

    So a version that lies beside models is not served.
    """

    def is_complete(model):
        paths = versions(model).values()
        return any(os.path.exists(path / "saved_model.pb") for path in paths)

    below, numbers = models_below(folder), versions(folder).values()
    if any(is_complete(path) for path in below if path not in numbers):
        return below
    if is_complete(folder):
        return [folder]
    return below or ([folder] if numbers else [])


class LinkError(OSError):
    """A link leads out of the folder in which it must stay."""


def check_link(path: Path, folder: Path) -> None:
    """Raise an `OSError` for a link that is broken or leads out of the folder."""
    if path.is_symlink():
        target = Path(os.path.realpath(path, strict=True))
        if not target.is_relative_to(os.path.realpath(folder)):
            raise LinkError(f"{path.name} is a link that leads out of {folder}")


def files_of(folder: Path, model: Path) -> list[tuple[Path, int, int]]:
    """All that is in a folder of a model, each with its time and size.

    Raises an `OSError` for what a server must not open: links out of the model, links
    to folders, and what is neither a file nor a folder, such as a pipe.
    """
    files = []
    for path in sorted(folder.iterdir()):
        check_link(path, model)
        status = path.stat()
        if stat.S_ISDIR(status.st_mode) and not path.is_symlink():
            files += files_of(path, model)
        elif not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path.name} is neither a file nor a folder of its own")
        files.append((path, status.st_mtime_ns, status.st_size))
    return files


def check_writable(folder: Path) -> None:
    """Create the folder, or raise `UserError` if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = "it is a file" if os.path.isfile(folder) else error.strerror
        sentence = f"the folder {folder} cannot be written: {reason}"
        raise UserError(sentence) from None


def add_version(folder: Path, write: Callable[[Path], None]) -> Path:
    """Add the next version to a model's folder, complete or not at all.

    `write` fills a temporary folder. It is renamed to the next version, or deleted if
    `write` fails. Versions that exist are never changed. Raises `UserError` if the
    folder's name is no name of a model, or it cannot be written.
    """
    check_model_name(folder.name)
    check_writable(folder)
    remove_partial(folder)
    with _partial(folder) as version:
        write(version)
        version.chmod(0o755)  # a model server may run as another user
        while True:
            path = folder / str(max(versions(folder), default=0) + 1)
            try:
                return version.rename(path)
            except OSError:
                if not path.exists():  # else another process has just created it
                    raise


def remove_partial(folder: Path) -> None:
    """Delete what killed exports left in a model's folder, if it exists."""
    for partial in folder.glob(f"{PARTIAL}*"):
        with contextlib.suppress(OSError), (partial / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # its process is gone
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _partial(folder: Path):
    """Yield an empty folder for a version, in a locked temporary folder.

    At the end the temporary folder is deleted: a complete version was moved out of it.
    """
    while True:
        partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=folder))
        # Another process may delete the folder before it is locked.
        with contextlib.suppress(FileNotFoundError):
            lock = (partial / LOCK).open("w")
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (partial / LOCK).exists():
                break
            lock.close()
    try:
        (partial / "version").mkdir()
        yield partial / "version"
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        lock.close()
