"""The devices that share a run: of one machine, or of several processes.

Several devices of one machine are TensorFlow's `MirroredStrategy`, several processes
are JAX's, with `keras.distribution`. A batch is cut into equal parts, one for each
device, and the masks and the order of the examples do not depend on the number of
devices.
"""

import json
import os
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
from kdrop.training.experiment import setting

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
        first, *others = map(json.loads, self._gather(json.dumps(settings).encode()))
        for process, other in enumerate(others, start=1):
            for name in first:
                if other.get(name) != first[name]:
                    raise UserError(
                        f"`{name}` is {other.get(name)} in process {process}, but "
                        f"{first[name]} in process 0: all processes need the same "
                        "settings."
                    )

    def agree(self, decision: bool) -> bool:
        """The decision of the first process, in all processes."""
        return self._gather(b"1" if decision else b"0")[0] == b"1"

    def broadcast_folder(self, folder: Path) -> None:
        """Copy the checkpoint in the first process's folder to the other processes."""
        if self.processes == 1:
            return
        files = [*folder.glob("*.keras"), *folder.glob("*.json")]
        names = json.dumps([path.name for path in files]).encode()
        for name in json.loads(self._gather(names)[0]):
            content = (folder / name).read_bytes() if self.process == 0 else b""
            content = self._gather(content)[0]
            if self.process:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)

    def _gather(self, content: bytes) -> list[bytes]:
        """The contents of all processes, in all processes."""
        if self.processes == 1:
            return [content]
        from jax.experimental.multihost_utils import process_allgather

        sizes = np.ravel(process_allgather(np.array(len(content))))
        padded = content.ljust(max(sizes), b"\0")
        rows = np.asarray(process_allgather(np.frombuffer(padded, np.uint8)))
        return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]


ALONE = Devices()


@dataclass(frozen=True)
class DeviceOptions:
    """The arguments of `mirror`, on TensorFlow, and of `join`, on JAX."""

    replicas: int | None = setting(
        None, "accelerators, or else cores, that share a batch", "all, or one core"
    )
    processes: int | None = setting(None, "processes, with KERAS_BACKEND=jax", "one")
    process_id: int | None = setting(None, "this process, from 0", "the launcher's")
    coordinator: str | None = setting(
        None, "host:port of process 0", "JAX_COORDINATOR_ADDRESS"
    )
    wait: int = setting(60, "seconds for all processes to start")


def available(options: DeviceOptions) -> Devices:
    """The devices of this machine on TensorFlow, of all processes on JAX."""
    if backend.name() == "jax":
        if options.replicas is not None:
            raise UserError("`replicas` needs TensorFlow: JAX takes all devices.")
        return join(
            options.processes, options.process_id, options.coordinator, options.wait
        )
    if (options.processes or 1) > 1 or options.coordinator:
        raise UserError(
            "Several processes need the JAX backend: KERAS_BACKEND=jax python train.py "
            "--processes N --process-id I --coordinator HOST:PORT"
        )
    return mirror(options.replicas)


def mirror(replicas: int | None = None) -> Devices:
    """The given number of accelerators or, if there are none, of processor cores."""
    import tensorflow as tf

    accelerators = tf.config.list_physical_devices("GPU")
    most = len(accelerators) or os.cpu_count() or 1
    if replicas is None:
        replicas = max(1, len(accelerators))
    if not 1 <= replicas <= most:
        kinds = "accelerators" if accelerators else "processor cores and no accelerator"
        raise UserError(
            f"`replicas` is {replicas}, but must be from 1 to {most}: this machine has "
            f"{most} {kinds}."
        )
    if replicas == 1:
        return ALONE
    kind = "GPU" if accelerators else "CPU"
    if not accelerators:
        (cpu,) = tf.config.list_physical_devices("CPU")
        cores = [tf.config.LogicalDeviceConfiguration()] * replicas
        tf.config.set_logical_device_configuration(cpu, cores)
    names = [f"{kind}:{number}" for number in range(replicas)]
    return Devices(replicas, scope=tf.distribute.MirroredStrategy(names).scope)


def join(
    processes: int | None = None,
    process_id: int | None = None,
    coordinator: str | None = None,
    wait: int = 60,
) -> Devices:
    """All devices of one or several processes, on the JAX backend.

    With any of the first three arguments, or `JAX_COORDINATOR_ADDRESS`, JAX reads the
    others from Slurm or Open MPI. Without, this process runs alone.
    """
    import jax

    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if processes and process_id and not 0 <= process_id < processes:
        rule = f"of {processes} processes must be from 0 to {processes - 1}"
        raise UserError(f"`process_id` is {process_id}, but {rule}.")
    if processes != 1 and (processes or process_id is not None or coordinator):
        if coordinator:
            _check_coordinator(coordinator, process_id, wait)
        try:
            jax.distributed.initialize(
                coordinator,
                processes,
                process_id,
                initialization_timeout=wait,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            )
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


def _check_coordinator(coordinator: str, process_id: int | None, wait: int) -> None:
    """Wait until the coordinator accepts a connection, unless this may be it."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"`coordinator` is {coordinator!r}, but must be HOST:PORT.")
    deadline = time.monotonic() + wait
    while process_id:
        try:
            return socket.create_connection((host, int(port)), timeout=5).close()
        except OSError as error:  # refused at once until process 0 listens
            if time.monotonic() > deadline:
                raise UserError(
                    f"The coordinator {coordinator} does not answer ({error}): start "
                    "process 0 there, or correct `coordinator`."
                ) from None
        time.sleep(0.2)
