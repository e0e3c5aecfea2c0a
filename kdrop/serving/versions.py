"""The version folders of a model: which exist, and how the next one appears."""

import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from reprlib import repr as shortened

from kdrop.errors import UserError

PARTIAL = ".partial-"  # prefix of incomplete versions, which no model server loads
STALE_AFTER = 24 * 3600  # seconds after which an incomplete version is deleted


def check_name(name: str) -> None:
    """Raise `UserError` if a name could not stand in a URL, or could be a version."""
    allowed = re.fullmatch("[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name)
    if not allowed or name.isdecimal():
        raise UserError(
            f"{shortened(name)} cannot be the name of a model: it must have 1 to 100 "
            "of the characters A-Z, a-z, 0-9, _, - and ., begin with a letter, a digit "
            "or _, and not be a number"
        )


def versions(folder: Path) -> list[int]:
    """The versions in a model's folder, in ascending order."""
    names = [path.name for path in folder.glob("*")]
    return sorted(int(name) for name in names if name.isdecimal())


def model_folders(folder: Path) -> list[Path]:
    """The folder itself if it holds versions, else the folders in it that do."""
    if versions(folder):
        return [folder]
    visible = (path for path in folder.glob("*") if path.name[0] != ".")
    return sorted(path for path in visible if versions(path))


def check_writable(folder: Path) -> None:
    """Create the folder, or raise `UserError` if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"the output folder {folder} cannot be written: {error.strerror}"
        ) from None


def add_version(folder: Path, write: Callable[[Path], None]) -> Path:
    """Add the next version to a model's folder, complete or not at all.

    `write` fills a temporary folder. It is renamed to the next version, or deleted if
    `write` fails. Versions that exist are never changed.

    Raises:
        UserError: If the folder cannot be written.
    """
    check_writable(folder)
    for stale in folder.glob(f"{PARTIAL}*"):  # of a process that was killed
        if time.time() - stale.stat().st_mtime > STALE_AFTER:
            shutil.rmtree(stale, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=folder))
    try:
        write(partial)
        partial.chmod(0o755)  # a model server may run as another user
        while True:
            path = folder / str(max(versions(folder), default=0) + 1)
            try:
                return partial.rename(path)
            except OSError:
                if not path.exists():  # else another process has just created it
                    raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
