"""The devices that share a run: of one machine, or of several processes.

Nothing distributed is done here. Several devices of one machine are TensorFlow's
`MirroredStrategy`, several processes are JAX's, with `keras.distribution`. A batch is
cut into equal parts, one for each device, and what a seed draws does not depend on it.
"""

import ipaddress
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kdrop.errors import UserError

ENDED = "another process has ended; --resume goes on from the last finished epoch"
UNREACHED = (
    "another process cannot be reached: it has ended, or all ports between the "
    "machines have to be open"
)
HEARTBEAT_SECONDS = 20  # without a sign of life for so long, a process is gone


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
        """What `pipeline.batches` is to read of each batch."""
        return {
            "devices": self.count,
            "process": self.process,
            "processes": self.processes,
        }

    def agree(self, settings: Mapping[str, object]) -> None:
        """Raise `UserError` in all processes unless all have the same settings."""
        if self.processes == 1:
            return
        first = json.loads(self.from_first(json.dumps(settings).encode()))
        ours = json.loads(json.dumps(settings))
        strange = [name for name in first if first[name] != ours.get(name)]
        others = np.flatnonzero(_gathered(np.array(len(strange))))
        if strange:
            name = strange[0]
            raise UserError(
                f"--{name.replace('_', '-')} is {ours.get(name)} here, but "
                f"{first[name]} in process 0: all processes take the same settings."
            )
        if len(others):
            raise UserError(
                f"process {others[0]} has other settings than process 0: all "
                "processes take the same."
            )

    def decide(self, own: bool) -> bool:
        """What the first process decides, in all of them."""
        return own if self.processes == 1 else self.from_first(bytes([own])) == b"\1"

    def from_first(self, content: bytes) -> bytes:
        """The first process's content, in all of them."""
        from jax.experimental import multihost_utils

        broadcast = multihost_utils.broadcast_one_to_all
        size = int(broadcast(np.array(len(content))))
        padded = np.frombuffer(content.ljust(size, b"\0")[:size], np.uint8)
        return np.asarray(broadcast(padded)).astype(np.uint8).tobytes()

    def hand_out(self, folder: Path) -> None:
        """Copy a run's folder of the first process to the others."""
        if self.processes == 1:
            return
        files = (
            [] if self.process else [*folder.glob("*.keras"), *folder.glob("*.json")]
        )
        names = json.loads(
            self.from_first(json.dumps([file.name for file in files]).encode())
        )
        for name in names:
            own = (folder / name).read_bytes() if self.process == 0 else b""
            content = self.from_first(own)
            if self.process:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)


def _gathered(value: np.ndarray) -> np.ndarray:
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(value))


def replicas(count: int | None = None) -> Devices:
    """Devices of this machine, on the TensorFlow backend.

    Args:
        count: How many accelerators or, where there are none, processor cores; all
            accelerators, or one core, if `None`.

    Raises:
        UserError: More than there are.
    """
    import tensorflow as tf

    accelerators = tf.config.list_physical_devices("GPU")
    kind = "GPU" if accelerators else "CPU"
    there = len(accelerators) or os.cpu_count() or 1
    if count is None:
        count = max(1, len(accelerators))
    if not 1 <= count <= there:
        what = "accelerators" if accelerators else "processor cores and no accelerator"
        raise UserError(
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


# Where the options are not given: what launchers tell each process.
VARIABLES = {
    "coordinator": ["JAX_COORDINATOR_ADDRESS"],
    "processes": ["JAX_NUM_PROCESSES", "OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS"],
    "process_id": ["JAX_PROCESS_ID", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID"],
}


def join(
    processes: int | None = None,
    process_id: int | None = None,
    coordinator: str | None = None,
    wait: int = 60,
) -> Devices:
    """All devices of one or several processes, on the JAX backend.

    Args:
        processes: How many processes there are.
        process_id: Which of them this is, from 0.
        coordinator: `host:port`, the machine of process 0 and a free port there.
        wait: Seconds for all processes to come together.

    Raises:
        UserError: An argument that is not as said, the coordinator is not there, or
            other machines would not reach this one by its name.
    """
    import jax

    coordinator = coordinator or _variable("coordinator")
    if coordinator:  # else the variables may be meant for another program
        processes = processes or int(_variable("processes") or 1)
        if process_id is None:
            process_id = int(_variable("process_id") or 0)
    processes, number = processes or 1, process_id or 0
    if not 0 <= number < processes:
        raise UserError(
            f"--process-id is {number}, but of {processes} processes must be from 0 to "
            f"{processes - 1}."
        )
    if processes > 1:
        if process_id is None or not coordinator:
            raise UserError(
                f"--processes is {processes}: each takes --process-id, from 0 to "
                f"{processes - 1}, and the same --coordinator HOST:PORT, the machine "
                "of process 0 and a free port there."
            )
        _meet(coordinator, number, wait)
        _explain_the_end(number, processes, coordinator)
        jax.distributed.initialize(
            coordinator,
            processes,
            number,
            initialization_timeout=wait,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
        if jax.default_backend() == "cpu":  # accelerators find their own ways
            _check_name(coordinator.rpartition(":")[0])
    if jax.device_count() == 1:
        return Devices()
    spread = keras.distribution.DataParallel(auto_shard_dataset=False)
    return Devices(jax.device_count(), number, processes, spread.scope)


def _variable(option: str) -> str | None:
    found = (os.environ.get(name) for name in VARIABLES[option])
    return next(filter(None, found), None)


def _check_name(coordinator: str) -> None:
    """Refuse to tell other machines an address of this one that is theirs, too.

    What sums over processors listens where the machine's own name points to.
    """
    if coordinator == "localhost" or coordinator.startswith("127."):
        return
    name = socket.gethostname()
    try:
        address = socket.getaddrinfo(name, None)[0][4][0]
    except OSError:
        address = "127.0.0.1"  # what is then taken
    if ipaddress.ip_address(address).is_loopback:
        raise UserError(
            f"{name}, the name of this machine, means {address} here, where no other "
            "machine reaches it: let it mean its address in /etc/hosts, or take "
            "--coordinator localhost:PORT for processes of one machine."
        )


def lost(error: BaseException | None) -> str | None:
    """What to tell where an error comes of another process's end, else `None`."""
    while error is not None:
        if "Gloo context initialization failed" in str(error):
            return UNREACHED
        if "Gloo" in str(error):
            return ENDED
        error = error.__cause__ or error.__context__
    if keras.backend.backend() == "jax":
        import jax

        if jax.distributed.is_initialized():
            # It may yet be so: JAX then aborts this process, and `watch.py` tells why.
            time.sleep(HEARTBEAT_SECONDS + 5)
    return None


def _meet(coordinator: str, number: int, wait: int) -> None:
    """Wait until the first process listens; the first makes sure that it can."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator is {coordinator!r}, but must be HOST:PORT.")
    if number == 0:
        try:
            socket.create_server(("", int(port))).close()
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise UserError(
                f"process 0 cannot listen on port {port} ({reason}): is there "
                "another process 0?"
            ) from None
        return
    until = time.monotonic() + wait
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise UserError(
                    f"the coordinator {coordinator} does not answer ({error}): start "
                    "process 0 there, or let --coordinator name its machine."
                ) from None
        time.sleep(0.2)


# What JAX writes before it aborts the process, and what that means.
ENDS = {
    "incarnation": "two processes have the id {number}, or one was started anew",
    "RegisterTask": "not all {count} processes came to {coordinator} in time",
    "": ENDED,
}


def _explain_the_end(number: int, count: int, coordinator: str) -> None:
    """Let a process of its own tell in a sentence why JAX aborts this one.

    JAX ends a process by an abort, of which no Python sees anything.
    """
    told = {"number": number, "count": count, "coordinator": coordinator}
    ends = json.dumps({mark: text.format(**told) for mark, text in ENDS.items()})
    script = Path(__file__).with_name("watch.py")
    reading, writing = os.pipe()
    subprocess.Popen([sys.executable, "-I", script, ends], stdin=reading, stderr=2)
    os.dup2(writing, 2)
    os.close(reading)
    os.close(writing)
