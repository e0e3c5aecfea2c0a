"""The devices that share a run: of one machine, or of several processes.

Nothing distributed is done here. Several devices of one machine are TensorFlow's
`MirroredStrategy`, several processes are JAX's and `keras.distribution`. A batch is cut
into equal parts, one for each device, and what a seed draws does not depend on the cut.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from kdrop.data import BadInput


@dataclass(frozen=True)
class Devices:
    """Which devices share a run, and which part of it is this process's."""

    count: int = 1  # over all processes, as many in each
    process: int = 0
    processes: int = 1
    # In which the model is made, loaded and trained.
    scope: Callable[[], AbstractContextManager[Any]] = nullcontext

    @property
    def share(self) -> dict[str, Any]:
        """What `pipeline.batches` reads of each batch."""
        return {
            "devices": self.count,
            "process": self.process,
            "processes": self.processes,
        }


def replicas(count: int | None = None) -> Devices:
    """Devices of this machine, on the TensorFlow backend.

    Args:
        count: How many accelerators or, where there are none, processor cores; all
            accelerators, or one core, if `None`.

    Raises:
        BadInput: More than there are.
    """
    import tensorflow as tf

    accelerators = tf.config.list_physical_devices("GPU")
    kind = "GPU" if accelerators else "CPU"
    there = len(accelerators) or os.cpu_count() or 1
    if count is None:
        count = max(1, len(accelerators))
    if not 1 <= count <= there:
        what = "accelerators" if accelerators else "processor cores and no accelerator"
        raise BadInput(
            f"--replicas is {count}, but must be from 1 to {there}: this machine has "
            f"{there} {what}."
        )
    if count == 1:
        return Devices()
    if kind == "CPU":
        (cpu,) = tf.config.list_physical_devices("CPU")
        cores = [tf.config.LogicalDeviceConfiguration()] * count
        tf.config.set_logical_device_configuration(cpu, cores)
    strategy = tf.distribute.MirroredStrategy([f"{kind}:{n}" for n in range(count)])
    return Devices(count, scope=strategy.scope)
