"""Train networks with dropout, see what it does, and keep them as SavedModels.

python train.py                            # the spiral: none, inverted, vanilla
python train.py cifar10 --train-size 5000  # the same three on a small AlexNet
python train.py cifar10 --dropout InvertedDropout --rate 0.5 --epochs 40 --seed 3
python train.py --seeds 5                  # mean and deviation over five seeds
python train.py --resume                   # go on after a stop
"""

import logging
import os
import signal
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

# Until the work begins there is nothing to stop cleanly, and TensorFlow's start writes
# to the terminal whatever its log level is.
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
logging.getLogger("tensorflow").setLevel(logging.ERROR)
terminal, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
os.dup2(nowhere, 2)
try:
    import tyro
    from rich.console import Console

    from kdrop.data import BadInput
    from kdrop.experiment import Experiment
    from kdrop.studies import compare
finally:
    os.dup2(terminal, 2)

DESCRIPTION = "Train networks with dropout, see what it does, keep SavedModels."
SIDE_BY_SIDE = ("none", "InvertedDropout", "VanillaDropout")


@dataclass(frozen=True)
class Command(Experiment):
    data: Annotated[str, tyro.conf.Positional] = "spiral"  # spiral, cifar10 or mnist
    dropout: Annotated[  # ty: ignore[incompatible-attribute-override]
        str | None,
        tyro.conf.arg(help="a layer of kdrop, or none; own: three runs side by side"),
    ] = None
    seeds: int = 1  # runs of each kind, with seeds from --seed on
    output: Path = Path("saved_models")  # where the models go
    name: str | None = None  # of the saved model; own: data set and layer
    resume: bool = False  # go on from the last finished epoch of the same settings
    tensorboard: Path | None = None  # folder for TensorBoard's logs
    data_dir: Path | None = None  # of tensorflow-datasets; own: TFDS_DATA_DIR

    def __post_init__(self):
        """The experiments check themselves."""


def main() -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    command = tyro.cli(Command, description=DESCRIPTION)
    console = Console(width=None if sys.stdout.isatty() else 132)
    settings: dict[str, Any] = {
        field.name: getattr(command, field.name) for field in fields(Experiment)
    }
    kind = settings.pop("dropout")
    kinds = SIDE_BY_SIDE if kind is None else (kind,)
    try:
        paths = compare(
            [Experiment(dropout=kind, **settings) for kind in kinds],
            seeds=command.seeds,
            output=command.output,
            name=command.name,
            resume=command.resume,
            data_dir=command.data_dir,
            tensorboard=command.tensorboard,
            console=console,
        )
    except BadInput as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, say
        print(f"train.py: {error}; --resume goes on from there", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. The same command with --resume goes on.", file=sys.stderr)
        return 130
    for path in paths:
        console.print(f"saved {path}", soft_wrap=True, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
