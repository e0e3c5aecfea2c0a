"""The devices that share a run: of one machine, or of several processes.

Several devices of one machine are TensorFlow's `MirroredStrategy`, several processes
are JAX's, with `keras.distribution`. A batch is cut into equal parts, one for each
device, and the masks and the order of the examples do not depend on the number of
devices.
"""

import contextlib
import ipaddress
import json
import os
import socket
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kdrop import backend
from kdrop.errors import UserError
from kdrop.training.settings import setting

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
        if self.processes == 1:
            return
        from jax.experimental import multihost_utils

        first = json.loads(self._broadcast(json.dumps(settings).encode()))
        here = json.loads(json.dumps(settings))
        different = [name for name in first if first[name] != here.get(name)]
        counts = multihost_utils.process_allgather(np.array(len(different)))
        for name in different:
            raise UserError(
                f"`{name}` is {here.get(name)} in process {self.process}, but "
                f"{first[name]} in process 0: all processes need the same settings."
            )
        for process in np.flatnonzero(counts):
            raise UserError(
                f"Process {process} has other settings than process 0: all processes "
                "need the same."
            )

    def agree(self, decision: bool) -> bool:
        """The decision of the first process, in all processes."""
        if self.processes == 1:
            return decision
        return self._broadcast(b"1" * decision) == b"1"

    def broadcast_folder(self, folder: Path) -> None:
        """Copy the checkpoint in the first process's folder to the other processes."""
        if self.processes == 1:
            return
        files = [*folder.glob("*.keras"), *folder.glob("*.json")]
        names = json.loads(
            self._broadcast(json.dumps([f.name for f in files]).encode())
        )
        for name in names:
            content = (folder / name).read_bytes() if self.process == 0 else b""
            content = self._broadcast(content)
            if self.process:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)

    def _broadcast(self, content: bytes) -> bytes:
        """The first process's content, in all processes."""
        from jax.experimental import multihost_utils

        broadcast = multihost_utils.broadcast_one_to_all
        size = int(broadcast(np.array(len(content))))
        if not size:
            return b""
        padded = np.frombuffer(content.ljust(size, b"\0")[:size], np.uint8)
        return np.asarray(broadcast(padded)).astype(np.uint8).tobytes()


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
    """The devices of this machine on TensorFlow, of all processes on JAX.

    Raises:
        UserError: An option is wrong or belongs to the other backend.
    """
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
    """Devices of this machine, on the TensorFlow backend.

    Args:
        replicas: Number of accelerators or, where there are none, of processor cores;
            all accelerators, or one core, if `None`.

    Raises:
        UserError: More than the machine has.
    """
    import tensorflow as tf

    accelerators = tf.config.list_physical_devices("GPU")
    kind = "GPU" if accelerators else "CPU"
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
    if kind == "CPU":
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

    Args:
        processes: Number of processes.
        process_id: Number of this process, from 0.
        coordinator: `host:port`, the machine of process 0 and a free port there.
        wait: Seconds for all processes to start.

    Raises:
        UserError: An argument is wrong, the coordinator does not answer, or other
            machines could not reach this one by its name.
    """
    import jax

    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if processes and process_id and not 0 <= process_id < processes:
        raise UserError(
            f"`process_id` is {process_id}, but of {processes} processes must be from "
            f"0 to {processes - 1}."
        )
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
        if jax.default_backend() == "cpu" and coordinator:
            _check_host_name(coordinator.rpartition(":")[0])
    if jax.device_count() == 1:
        return ALONE
    distribution = keras.distribution.DataParallel(auto_shard_dataset=False)
    return Devices(
        jax.device_count(),
        jax.process_index(),
        jax.process_count(),
        lambda: _process_scope(distribution),
    )


@contextlib.contextmanager
def _process_scope(distribution: Any) -> Generator[None]:
    """The distribution's scope, which reports a lost process in a sentence."""
    try:
        with distribution.scope():
            yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if "Gloo" in str(cause):  # XLA's collectives between processors
                raise UserError(
                    "Another process has ended or cannot be reached (between machines "
                    "all ports must be open); --resume continues from the last "
                    "checkpoint."
                ) from error
            cause = cause.__cause__ or cause.__context__
        raise


def _check_coordinator(coordinator: str, process_id: int | None, wait: int) -> None:
    """Wait until the coordinator accepts a connection, unless it may be this process.

    Raises:
        UserError: The address is malformed, or nothing answers within `wait` seconds.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"`coordinator` is {coordinator!r}, but must be HOST:PORT.")
    deadline = time.monotonic() + wait
    while process_id:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except OSError as error:  # refused at once until process 0 listens
            if time.monotonic() > deadline:
                raise UserError(
                    f"The coordinator {coordinator} does not answer ({error}): start "
                    "process 0 there, or correct `coordinator`."
                ) from None
        time.sleep(0.2)


def _check_host_name(coordinator: str) -> None:
    """Reject a host name that resolves to loopback: peers would connect to themselves.

    On processors, the collectives listen at the address of the machine's host name.
    """
    if coordinator == "localhost" or coordinator.startswith("127."):
        return
    name = socket.gethostname()
    try:
        address = socket.getaddrinfo(name, None)[0][4][0]
    except OSError:
        address = "127.0.0.1"  # the collectives' default
    if ipaddress.ip_address(address).is_loopback:
        raise UserError(
            f"{name}, the name of this machine, resolves to {address}, where no other "
            "machine reaches it: let it resolve to the machine's address in "
            "/etc/hosts, or use localhost:PORT as `coordinator` for processes of one "
            "machine."
        )
