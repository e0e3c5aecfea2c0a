"""Train networks with dropout, compare them, and export them as SavedModels.

python train.py                            # the spiral: none, inverted, vanilla
python train.py cifar10 --train-size 5000  # the same three in a small AlexNet
python train.py cifar10 --dropout InvertedDropout --rate 0.5 --epochs 40 --seed 3
python train.py --schedule early           # drop in the first sixth of training only
python train.py --passes 200               # more Monte Carlo samples vote
python train.py --seeds 5                  # mean and deviation over five seeds
python train.py --resume                   # continue after a stop
python train.py cifar10 --replicas 2       # two devices of this machine

On two machines, the first of which is called `first` here, the same command with
--process-id 0 on `first` and --process-id 1 on the other:

KERAS_BACKEND=jax python train.py --processes 2 --process-id 0 --coordinator first:9876
"""

import contextlib
import logging
import os
import signal
import sys
import traceback

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
logging.getLogger("tensorflow").setLevel(logging.ERROR)


@contextlib.contextmanager
def silent_start():
    """Discard what TensorFlow writes to the terminal at import, whatever its level."""
    terminal, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)


def main() -> int:
    """Run the command and return its exit status."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # there is nothing to save yet
    try:
        with silent_start():
            from rich.console import Console

            from kdrop.errors import one_sentence
            from kdrop.training.arguments import options_in_errors, parse
            from kdrop.training.comparison import compare
            from kdrop.training.devices import available
    except ModuleNotFoundError as error:
        print(f"train.py: {error}: pip install '.[train]'", file=sys.stderr)
        return 2
    signal.signal(signal.SIGINT, signal.default_int_handler)
    console = Console(width=None if sys.stdout.isatty() else 132)
    try:
        with one_sentence("train.py", "train"), options_in_errors():
            comparison, options = parse(sys.argv[1:])
            for path in compare(comparison, available(options), console):
                console.print(f"saved {path}", soft_wrap=True, highlight=False)
    except SystemExit as end:
        return int(end.code or 0)
    except KeyboardInterrupt:
        print("Stopped. The same command with --resume continues.", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    with contextlib.suppress(OSError):  # a pipe whose reader has ended
        sys.stdout.flush()
    if status:  # at once: otherwise JAX waits for the other processes
        os._exit(status)
