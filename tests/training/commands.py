"""The command train.py in this process."""

import contextlib
import importlib.util
import io
import signal
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "train.py"


def train(arguments, folder):
    """Run the command in a folder; returns its exit status and standard output."""
    spec = importlib.util.spec_from_file_location("train", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.chdir(folder)
        status = module.main(arguments.split())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return status, output.getvalue()
