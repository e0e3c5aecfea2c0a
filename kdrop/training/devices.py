"""The devices that share a run: of one machine, or of several processes.

Several devices of one machine are TensorFlow's `MirroredStrategy`, several processes
are JAX's, with `keras.distribution`. The masks and the order of the examples do not
depend on the number of devices.
"""

import json
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kdrop import backend
from kdrop.errors import UserError
from kdrop.training.settings import DeviceOptions

HEARTBEAT_SECONDS = 20  # a process that is silent for so long counts as lost


@dataclass(frozen=True)
class Devices:
    """The devices that share a run, and this process's number among the processes."""

    count: int = 1  # over all processes, which have equally many
    process: int = 0
    processes: int = 1
    # A context in which to make, load and train the model.
    scope: Callable[[], AbstractContextManager[Any]] = nullcontext

    def check_equal(self, settings: Mapping[str, object]) -> None:
        """Raise `UserError` in all processes unless all have the same settings."""
        content = json.dumps(settings).encode()
        for process in range(1, self.processes):
            other = json.loads(self._broadcast(content, process))
            first = json.loads(self._broadcast(content))
            for name in first:
                if other.get(name) != first[name]:
                    raise UserError(
                        f"`{name}` is {other.get(name)} in process {process}, but "
                        f"{first[name]} in process 0: all processes need the same."
                    )

    def agree(self, decision: bool) -> bool:
        """The decision of the first process, in all processes."""
        return self._broadcast(b"1" if decision else b"0") == b"1"

    def broadcast_folder(self, folder: Path) -> None:
        """Copy the checkpoint in the first process's folder to the other processes."""
        if self.processes == 1:
            return
        files = [*folder.glob("*.keras"), *folder.glob("*.json")]
        names = json.dumps([path.name for path in files]).encode()
        for path in [folder / name for name in json.loads(self._broadcast(names))]:
            content = self._broadcast(b"" if self.process else path.read_bytes())
            if self.process:
                folder.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)

    def _broadcast(self, content: bytes, source: int = 0) -> bytes:
        """The content of one process, in all processes."""
        if self.processes == 1:
            return content
        from jax.experimental.multihost_utils import broadcast_one_to_all

        is_source = self.process == source
        size = int(broadcast_one_to_all(np.array(len(content)), is_source))
        padded = np.frombuffer(content[:size].ljust(size, b"\0"), np.uint8)
        return np.asarray(broadcast_one_to_all(padded, is_source)).tobytes()


ALONE = Devices()


def available(options: DeviceOptions) -> Devices:
    """The devices of this machine on TensorFlow, of all processes on JAX."""
    if backend.name() == "jax":
        if options.replicas is not None:
            raise UserError("`replicas` needs TensorFlow: JAX takes all devices.")
        return join(options)
    processes = options.processes or 1
    if processes > 1 or options.coordinator or options.process_id is not None:
        raise UserError(
            "Several processes need the JAX backend: set KERAS_BACKEND=jax, and give "
            "each `processes`, its `process_id`, and `coordinator` as HOST:PORT."
        )
    return mirror(options)


def mirror(options: DeviceOptions) -> Devices:
    """Accelerators of this machine or, if there are none, processor cores."""
    import tensorflow as tf

    accelerators = tf.config.list_physical_devices("GPU")
    most = len(accelerators) or os.cpu_count() or 1
    replicas = options.replicas or max(1, len(accelerators))
    if replicas > most:
        kinds = "accelerators" if accelerators else "processor cores and no accelerator"
        raise UserError(
            f"`replicas` is {replicas}, but must be from 1 to {most}: this machine has "
            f"{most} {kinds}."
        )
    if replicas == 1:
        return ALONE
    if not accelerators:
        (cpu,) = tf.config.list_physical_devices("CPU")
        cores = [tf.config.LogicalDeviceConfiguration()] * replicas
        tf.config.set_logical_device_configuration(cpu, cores)
    kind = "GPU" if accelerators else "CPU"
    names = [f"{kind}:{number}" for number in range(replicas)]
    return Devices(replicas, scope=tf.distribute.MirroredStrategy(names).scope)


def join(options: DeviceOptions) -> Devices:
    """All devices of one or several processes, on the JAX backend.

    With `processes`, `process_id`, `coordinator` or `JAX_COORDINATOR_ADDRESS`, JAX
    reads the others from Slurm or Open MPI. Without, this process runs alone.
    """
    import jax

    processes, process_id = options.processes, options.process_id
    coordinator = options.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if coordinator:
        _check_address(coordinator)
    if processes and (process_id or 0) >= processes:
        rule = f"of {processes} processes must be from 0 to {processes - 1}"
        raise UserError(f"`process_id` is {process_id}, but {rule}.")
    if processes != 1 and (processes or process_id is not None or coordinator):
        if coordinator and process_id:
            _wait_for(coordinator, options.wait)
        try:
            jax.distributed.initialize(
                coordinator, processes, process_id,
                initialization_timeout=options.wait,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            )  # fmt: skip
        except ValueError as error:  # an argument that no launcher supplies
            raise UserError(
                "Without a launcher, each process needs `processes`, `process_id` and "
                "the same `coordinator`, as HOST:PORT, the machine of process 0 and a "
                f"free port there ({error})"
            ) from error
    if jax.device_count() == 1:
        return ALONE
    scope = keras.distribution.DataParallel(auto_shard_dataset=False).scope
    return Devices(jax.device_count(), jax.process_index(), jax.process_count(), scope)


def _check_address(coordinator: str) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
        raise UserError(f"`coordinator` is {coordinator!r}, but must be HOST:PORT.")


def _wait_for(coordinator: str, seconds: int) -> None:
    """Wait until the coordinator accepts a connection."""
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection((host, int(port)), timeout=5).close()
        except OSError as error:  # refused at once until process 0 listens
            if time.monotonic() > deadline:
                raise UserError(
                    f"The coordinator {coordinator} does not answer ({error}): start "
                    "process 0 there, or correct `coordinator`."
                ) from None
        time.sleep(0.2)
