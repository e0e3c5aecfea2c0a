"""Kill train.py at each of its file operations, and resume it.

    python tests/training/kills.py FOLDER FIRST_OPERATION STEP

Prints a line of JSON for each kill: the operation, the exit status of the resumed
command, the versions that there are, and what else is left.
"""

import builtins
import contextlib
import functools
import io
import itertools
import json
import os
import shutil
import signal
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))

import train
from kdrop.training import comparison

ARGUMENTS = (
    "--dropout none,InvertedDropout --train-size 300 --batch-size 50 --hidden 8 "
    "--epochs 2 --steps-per-epoch 5 --passes 0 --seeds 2"
).split()
MODELS = ("spiral-none", "spiral-inverted-dropout")
OPERATIONS = ("rename", "replace", "unlink", "remove", "rmdir", "mkdir", "open")


def count_operations(kill_at, names):
    """Count what changes files, and die in place of one of these operations."""
    numbers = itertools.count(1)

    def counted(operation, name):
        def call(*arguments, **settings):
            mode = arguments[1] if len(arguments) > 1 else settings.get("mode", "r")
            reads = isinstance(mode, str) and not set(mode) & set("wax+")
            reads = reads and name in ("io.open", "builtins.open")
            reads |= name == "os.open" and not mode & (os.O_WRONLY | os.O_RDWR)
            elsewhere = "dir_fd" not in settings and "saved_models" not in str(
                arguments
            )
            if not reads and not elsewhere:
                number = next(numbers)
                with REAL_OPEN(names, "a") as file:
                    file.write(f"{number} {name} {str(arguments[0])[-60:]}\n")
                if number == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments, **settings)

        return call

    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name), f"os.{name}"))
    io.open = builtins.open = counted(io.open, "io.open")


REAL_OPEN = open


def in_child(folder, arguments, prepare=lambda: None):
    """Exit status of the command in a process of its own, and what it printed."""
    log = folder.parent / "log"
    child = os.fork()
    if not child:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(folder)
        prepare()
        status = 99
        with contextlib.suppress(BaseException):
            status = train.main(arguments)
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, log.read_text()


def stop_before_export():
    def stop(*_):
        raise KeyboardInterrupt

    comparison.export_best = stop


def main(folder, first, step):
    trained, copy = folder / "trained", folder / "copy"
    trained.mkdir(parents=True)
    status, output = in_child(trained, ARGUMENTS, stop_before_export)
    assert status == 130, output
    arguments, names = [*ARGUMENTS, "--resume"], folder / "names"
    for kill_at in itertools.count(first, step):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(trained, copy)
        names.unlink(missing_ok=True)
        count = functools.partial(count_operations, kill_at, names)
        killed, _ = in_child(copy, arguments, count)
        resumed, output = (0, "") if killed == 0 else in_child(copy, arguments)
        models = copy / "saved_models"
        result = {
            "operation": names.read_text().splitlines()[-1],
            "killed": killed,
            "resumed": resumed,
            "trained_again": "epoch 1/2" in output,
            "versions": [sorted(os.listdir(models / name)) for name in MODELS],
            "left": [x for x in sorted(os.listdir(models)) if x not in MODELS],
        }
        print(json.dumps(result), flush=True)
        if killed == 0:
            break


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), *map(int, sys.argv[2:]))
