import os
import sys
from pathlib import Path

# For benchmarks, studies and examples. Last, so that the installed kdrop is tested.
sys.path.append(str(Path(__file__).parent.parent))

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import pytest

# What is to hold on every backend; the rest is of TensorFlow. The words are the same on
# each, so that their statistics are.
EVERYWHERE = {
    f"test_{name}.py"
    for name in (
        "bits",
        "chance",
        "equal_names",
        "exact_ensemble",
        "fingerprint",
        "kernels",
        "layers",
        "layers_in_keras",
        "layers_saved",
        "loops",
        "processes",
        "rate_schedule",
        "masks_run",
        "sampled_calls",
        "sampling",
        "schedules",
        "sequences",
        "split",
        "steps",
        "uncertainty",
    )
}
if os.environ.get("CI_FULL") == "1":
    # Minutes long.
    EVERYWHERE |= {
        f"test_{name}.py"
        for name in (
            "audit",
            "audit_arguments",
            "insert",
            "processes_stress",
            "rates",
            "remaining",
            "replace",
            "replace_copy",
            "replace_paths",
            "sequences_in_keras",
            "steps_stress",
            "word_dropout",
            "wrappers",
            "zoneout",
        )
    }
if keras.backend.backend() != "tensorflow":
    tests = Path(__file__).parent.rglob("test_*.py")
    collect_ignore = [str(path) for path in tests if path.name not in EVERYWHERE]
else:
    import tensorflow as tf

    # Two devices on any machine, before TensorFlow starts: for `MirroredStrategy`.
    _CPU = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        _CPU, [tf.config.LogicalDeviceConfiguration()] * 2
    )


def pytest_addoption(parser):
    parser.addoption(
        "--blocks", type=int, default=1, help="test_bit_statistics.py: of 2^22 words"
    )
    parser.addoption(
        "--requests", type=int, default=400, help="test_server.py: number of requests"
    )


@pytest.fixture(scope="session")
def strategy():
    """One for all tests: the collectives of two in one process can collide."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture
def cifar10_folder():
    """A folder with CIFAR-10 as tensorflow-datasets prepares it; skips without one."""
    folder = os.environ.get("TFDS_DATA_DIR")
    if not folder or not os.path.isdir(os.path.join(folder, "cifar10")):
        pytest.skip("TFDS_DATA_DIR holds no cifar10")
    return folder


@pytest.fixture
def ordered_updates():
    """TensorFlow's graph optimizer keeps the order of reads and updates of weights.

    By default a block that `keras.remat` computes again may read a weight after the
    optimizer has changed it, without any drop layer too (TensorFlow 2.21).
    """
    import tensorflow as tf

    set_options = tf.config.optimizer.set_experimental_options
    set_options({"dependency_optimization": False})
    yield
    set_options({"dependency_optimization": True})
