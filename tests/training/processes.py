"""Starts the processes of one training run, and waits for them."""

import contextlib
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "train.py"
STEPS = 6  # in an epoch, of an odd number of examples
QUICK = (
    "--dropout InvertedDropout --rate 0.5 --hidden 16 --train-size 101 --validation 0 "
    f"--batch-size 101 --epochs 20 --steps-per-epoch {STEPS}"
).split()


def free_port():
    """A port outside the range from which the system assigns ports to connections."""
    while True:
        port = random.randrange(20_000, 32_768)
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return port


@contextlib.contextmanager
def process_starter(folder, coordinator):
    """Yields a function that starts one of several processes; kills them at the end."""
    running = []

    def start(process, processes, *options, command=(SCRIPT, *QUICK)):
        arguments = f"--processes {processes} --process-id {process}".split()
        if processes > 1:
            arguments += ["--coordinator", coordinator]
        running.append(
            subprocess.Popen(
                [sys.executable, *map(str, [*command, *arguments, *options])],
                cwd=folder,
                env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return running[-1]

    try:
        yield start
    finally:
        for process in running:
            process.kill()
            process.communicate()


def wait_for(process, timeout=600):
    """Exit code, standard output and standard error of a process."""
    out, errors = process.communicate(timeout=timeout)
    return process.returncode, out, errors
