"""Train networks with dropout, see what it does, and keep them as SavedModels.

python train.py                            # the spiral: none, inverted, vanilla
python train.py cifar10 --train-size 5000  # the same three on a small AlexNet
python train.py cifar10 --dropout InvertedDropout --rate 0.5 --epochs 40 --seed 3
python train.py --schedule early           # drop in the first sixth of training only
python train.py --passes 200               # more sub-networks vote on the test set
python train.py --seeds 5                  # mean and deviation over five seeds
python train.py --resume                   # go on after a stop
python train.py cifar10 --replicas 2       # two devices of this machine

On two machines, of which the first is called here `first`, the same on both but for I:

KERAS_BACKEND=jax python train.py --processes 2 --process-id I --coordinator first:9876
"""

import contextlib
import io
import logging
import os
import re
import signal
import sys
import traceback
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, get_args

# Until the work begins there is nothing to stop cleanly, and TensorFlow's start writes
# to the terminal whatever its log level is.
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
logging.getLogger("tensorflow").setLevel(logging.ERROR)
terminal, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
os.dup2(nowhere, 2)
try:
    import keras
    import tyro
    from rich.console import Console

    from kdrop.errors import UserError
    from kdrop.training import devices
    from kdrop.training.comparison import compare
    from kdrop.training.experiment import DEFAULTS, Experiment
except ModuleNotFoundError as error:
    os.dup2(terminal, 2)
    print(f"train.py: {error}: pip install '.[train]'", file=sys.stderr)
    sys.exit(2)
finally:
    os.dup2(terminal, 2)

DESCRIPTION = "Train networks with dropout, see what it does, keep SavedModels."


@dataclass(frozen=True)
class Command(Experiment):
    data: Annotated[str, tyro.conf.Positional] = "spiral"  # spiral, cifar10 or mnist
    # layers of kdrop, or none, to be run side by side
    dropout: str = "none,InvertedDropout,VanillaDropout"
    passes: int = 50  # of the Monte Carlo vote of runs that drop; 0 for no vote
    vote_size: int | None = None  # test examples to vote on
    seeds: int = 1  # runs of each kind, with seeds from --seed on
    output: Path = Path("saved_models")  # where the models go
    name: str | None = None  # of the saved model's folder
    resume: bool = False  # go on from the last finished epoch of the same settings
    tensorboard: Path | None = None  # folder for TensorBoard's logs
    data_dir: Path | None = None  # of tensorflow-datasets
    replicas: int | None = None  # accelerators, or processor cores, that share a batch
    processes: int | None = None  # on one or several machines, with KERAS_BACKEND=jax
    process_id: int | None = None  # which of them this is, from 0
    coordinator: str | None = None  # host:port, of the machine of process 0
    wait: int = 60  # seconds for all processes to come together

    def __post_init__(self):
        """The experiments check themselves."""

    def experiments(self) -> list[Experiment]:
        """The runs that were asked for."""
        settings: dict[str, Any] = {
            field.name: getattr(self, field.name) for field in fields(Experiment)
        }
        kinds = [kind.strip() for kind in settings.pop("dropout").split(",")]
        kinds = ["none" if kind.lower() == "none" else kind for kind in kinds]
        kinds = list(dict.fromkeys(kinds))
        # Beside others, the run without dropout is not concerned with their rates.
        plain = dict(settings)
        if len(kinds) > 1:
            plain.update(rate=None, input_rate=None, schedule=None)
        return [
            Experiment(dropout=kind, **(plain if kind == "none" else settings))
            for kind in kinds
        ]


# What holds where nothing is said and the data set has no setting of its own.
UNSAID = {
    "schedule": "the rate stays",
    "decay": "a cosine to 0",
    "vote_size": "1000 of cifar10, all of the others",
    "name": "data set and layer",
    "tensorboard": "no logs",
    "data_dir": "TFDS_DATA_DIR",
    "replicas": "all accelerators, else one core",
    "processes": "one",
    "process_id": "what the launcher told",
    "coordinator": "what the launcher told",
}
for field in fields(Command):
    if field.default is None:
        unsaid = UNSAID.get(field.name, "the network's")
        if field.name in DEFAULTS["spiral"]:
            own = [f"{DEFAULTS[name][field.name]} for {name}" for name in DEFAULTS]
            unsaid = ", ".join(own)
        hint = tyro.conf.arg(help_behavior_hint=f"(default: {unsaid})")
        hinted = Annotated[field.type, hint]  # ty: ignore[invalid-type-form]
        Command.__annotations__[field.name] = hinted

options = tyro.constructors.ConstructorRegistry()


@options.primitive_rule
def unless_said(info: Any) -> Any:
    """Reads `int | None` as an integer: the option that is not given is `None`."""
    if info.type_origin is not UnionType:
        return None
    given = tyro.constructors.PrimitiveTypeInfo.make(
        get_args(info.type)[0], info.markers
    )
    spec: Any = options.get_primitive_spec(given)
    return replace(spec, str_from_instance=lambda _: [""])


def read() -> Command:
    """The command line; what cannot be read is told in one sentence."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(Command, description=DESCRIPTION, registry=options)
    except SystemExit as end:
        if not end.code:
            raise
    # It comes in a box: a title, and between rules the sentence and a page of help.
    text = re.sub(r"\x1b\[[\d;]*m|[│╭╰╮╯]", "", told.getvalue()).partition("\n")[2]
    parts = re.split(r"^\s*[─-]{2,}\s*$", text, flags=re.MULTILINE)
    sentence = " ".join(next(part for part in parts if part.strip()).split())
    sentence = sentence.removeprefix("Error parsing ").rstrip(".")
    if meant := re.search(r"Perhaps you meant:\s+(--[\w-]+)", text):
        sentence += f": did you mean {meant[1]}?"
    raise UserError(sentence)


def spread(command: Command) -> devices.Devices:
    """The devices that the command asks for, on the backend that carries them."""
    if keras.backend.backend() == "tensorflow":
        if (command.processes or 1) > 1 or command.coordinator:
            raise UserError(
                "several processes take the JAX backend: KERAS_BACKEND=jax python "
                "train.py --processes N --process-id I --coordinator HOST:PORT"
            )
        return devices.replicas(command.replicas)
    if command.replicas is not None:
        raise UserError(
            "--replicas is for the TensorFlow backend: JAX takes all devices."
        )
    return devices.join(
        command.processes, command.process_id, command.coordinator, command.wait
    )


def main() -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    console = Console(width=None if sys.stdout.isatty() else 132)
    try:
        command = read()
        shared = spread(command)
        paths = compare(
            command.experiments(),
            seeds=command.seeds,
            output=command.output,
            name=command.name,
            resume=command.resume,
            passes=command.passes,
            vote_size=command.vote_size,
            data_dir=command.data_dir,
            tensorboard=command.tensorboard,
            devices=shared,
            console=console,
        )
    except ModuleNotFoundError as error:  # of those that are imported late
        print(f"train.py: {error}: pip install '.[train]'", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, say
        print(f"train.py: {error}; --resume goes on from there", file=sys.stderr)
        return 2
    except Exception as error:
        if (told := devices.lost(error)) is None:
            traceback.print_exc()
            return 1
        print(f"train.py: {told}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. The same command with --resume goes on.", file=sys.stderr)
        return 130
    for path in paths:
        console.print(f"saved {path}", soft_wrap=True, highlight=False)
    return 0


if __name__ == "__main__":
    try:
        code = main()
        sys.stdout.flush()
    except (OSError, SystemExit) as end:  # of a pipe that nobody reads, say
        code = getattr(end, "code", 1)
    if code:  # at once: JAX would wait for the other processes
        os._exit(code)
