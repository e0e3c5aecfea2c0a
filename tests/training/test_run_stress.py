"""train.py under stress: kills, full disks, damaged files, two processes at once.

`pytest -m slow -s tests/training/test_run_stress.py` prints the figures.
"""

import collections
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from commands import SCRIPT

import kdrop  # noqa: F401, registers the layers of the models that are loaded

pytestmark = pytest.mark.slow

RUN = "--dropout InvertedDropout --train-size 300 --batch-size 50 --hidden 16 "
RUN += "--epochs 120 --steps-per-epoch 5 --passes 2"
SLUG = "spiral-inverted-dropout"
ENDS = {0, 2, 130, 143, -signal.SIGKILL}


def start(folder, *options, limit=None):
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [sys.executable, SCRIPT, *RUN.split(), *options],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limited if limit else None,
    )


def end(process):
    """Exit status and standard error, which is at most one sentence."""
    output, error = process.communicate(timeout=600)
    assert "Traceback" not in output + error and error.count("\n") <= 1, error
    assert process.returncode in ENDS
    return process.returncode, error


def exported(folder):
    """The weights of the only version; nothing else is left."""
    assert os.listdir(folder / "saved_models") == [SLUG]
    versions = [x for x in os.listdir(folder / "saved_models" / SLUG) if x[0] != "."]
    assert versions == ["1"]
    path = folder / "saved_models" / SLUG / "1/model.keras"
    return keras.models.load_model(path, compile=False).get_weights()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The weights of a run that nothing disturbs, and its seconds."""
    folder = tmp_path_factory.mktemp("whole")
    begin = time.monotonic()
    assert end(start(folder)) == (0, "")
    return exported(folder), time.monotonic() - begin


def assert_same(weights, expected):
    for ours, theirs in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def wait_for_checkpoint(folder, process):
    while not list(folder.glob("saved_models/.unfinished/*/epoch-*.keras")):
        assert process.poll() is None
        time.sleep(0.01)


def test_a_killed_run_resumes_after_an_epoch(whole, tmp_path):
    killed = start(tmp_path)
    wait_for_checkpoint(tmp_path, killed)
    killed.kill()
    killed.communicate()
    assert not list(tmp_path.glob("saved_models/*/1"))
    resumed = start(tmp_path, "--resume")
    output, error = resumed.communicate(timeout=600)
    assert (resumed.returncode, error) == (0, "")
    assert "nothing to resume" not in output and "epoch   1/120" not in output
    assert "epoch 120/120" in output
    assert_same(exported(tmp_path), whole[0])


def test_kills_and_signals_at_random_moments(whole, tmp_path):
    expected, seconds = whole
    figures = collections.Counter()
    for number in range(8):
        folder = tmp_path / str(number)
        folder.mkdir()
        models = folder / "saved_models"
        for kind in random.choices(["KILL", "TERM", "INT"], k=2):
            process = start(folder, "--resume")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=random.uniform(0.3, 1.1) * seconds)
            process.send_signal(signal.Signals[f"SIG{kind}"])
            process.communicate(timeout=600)
            status = process.returncode
            # Before it has imported all, and after its end, a signal has its usual way.
            assert status in ENDS | {-signal.SIGTERM, -signal.SIGINT}
            figures[status] += 1
            if models.exists() and os.listdir(models) == [SLUG]:
                break  # finished: to resume would be to train anew
        else:
            assert end(start(folder, "--resume")) == (0, "")
        assert_same(exported(folder), expected)
    print(f"\nrandom signals: exit statuses {dict(figures)}, all resumed bit-equal")


def test_kills_at_each_file_operation(tmp_path):
    script = Path(__file__).with_name("kills.py")
    command = [sys.executable, script, tmp_path / "kills", "1", "1"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    results = [json.loads(x) for x in output.splitlines() if x.startswith("{")]
    for result in results:
        assert result["resumed"] == 0 and not result["trained_again"], result
        assert result["left"] == [], result
        for names in result["versions"]:
            assert [name for name in names if name[0] != "."] == ["1"], result
    assert len(results) > 50
    print(f"\nkills at {len(results) - 1} file operations: one version each")


@pytest.mark.parametrize("limit", [100, 3_000, 20_000, 60_000, 120_000, 200_000])
def test_a_full_disk(limit, whole, tmp_path):
    status, error = end(start(tmp_path, limit=limit))
    assert status in (0, 2)
    if status:
        assert end(start(tmp_path, "--resume")) == (0, "")
    assert_same(exported(tmp_path), whole[0])
    print(f"\nfiles of at most {limit:,} bytes: exit {status} {error.strip()[:100]}")


def test_damaged_files(whole, tmp_path):
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    process = start(stopped)
    wait_for_checkpoint(stopped, process)
    process.kill()
    process.communicate()
    figures = collections.Counter()
    for number in range(12):
        copy = shutil.copytree(stopped, tmp_path / str(number))
        files = list(copy.glob("saved_models/.unfinished/*/*[ns]"))
        path = random.choice(files)
        content = bytearray(path.read_bytes())
        if number % 2:
            del content[random.randrange(len(content)) :]
        else:
            content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        path.write_bytes(content)
        status, error = end(start(copy, "--resume"))
        figures[path.suffix, status] += 1
        if status:
            assert "cannot be read" in error or "other columns" in error, error
        else:  # a flipped bit of the history may give another number
            assert_same(exported(copy), whole[0])
    print(f"\ndamaged files: {dict(figures)}")


def test_two_processes_at_once(whole, tmp_path):
    figures = collections.Counter()
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        options = ["--resume"] * (number % 2)
        pair = [start(folder, *options) for _ in range(2)]
        ends = sorted(end(process) for process in pair)
        figures[tuple(status for status, _ in ends)] += 1
        if ends[1][0]:
            assert "Another process trains" in ends[1][1]
            assert_same(exported(folder), whole[0])
        else:  # the second began when the first had ended
            assert len(os.listdir(folder / "saved_models" / SLUG)) == 2
    print(f"\ntwo at once: exit statuses {dict(figures)}")
