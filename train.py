"""Train networks with dropout, compare them, and export them as SavedModels.

python train.py                            # the spiral: none, inverted, vanilla
python train.py cifar10 --train-size 5000  # the same three in a small AlexNet
python train.py --resume                   # continue after a stop
python train.py --help                     # every option, with its default
"""

import contextlib
import importlib.util
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
logging.getLogger("tensorflow").setLevel(logging.ERROR)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    for number in signal.SIGINT, signal.SIGTERM:  # there is nothing to save yet
        signal.signal(number, lambda number, _: os._exit(128 + number))
    from kdrop.errors import one_sentence, silent_stderr, stop_on_signals
    from kdrop.training.arguments import options_in_errors, parse

    try:
        with one_sentence("train.py", "train"), options_in_errors():
            comparison, options = parse(arguments)
            with silent_stderr():  # TensorFlow writes there whatever its log level
                importlib.reload(sys.modules["kdrop"])  # now with its names
                from rich.console import Console

                from kdrop.training.comparison import can_resume, compare
                from kdrop.training.devices import available
                from kdrop.training.findings import next_steps
            stop_on_signals()
            console = Console(width=None if sys.stdout.isatty() else 100)
            devices = available(options)
            stop_on_signals()  # JAX has a handler of its own
            for line in next_steps(compare(comparison, devices, console)):
                console.print(line, soft_wrap=True, highlight=False, markup=False)
    except SystemExit as end:
        return int(end.code or 0)
    except KeyboardInterrupt as stopped:
        again = "No epoch is saved: the same command starts anew."
        if can_resume(comparison):
            again = "The same command with --resume continues."
        print(f"Stopped. {again}", file=sys.stderr)
        return next(iter(stopped.args), 130)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    # Without names, which need TensorFlow, until `main` has parsed the arguments.
    if spec := importlib.util.find_spec("kdrop"):
        sys.modules.setdefault("kdrop", importlib.util.module_from_spec(spec))
    status = main()
    for number in signal.SIGINT, signal.SIGTERM:  # there is nothing to save any more
        signal.signal(number, signal.SIG_DFL)
    with contextlib.suppress(OSError):  # a pipe whose reader has ended
        sys.stdout.flush()
    if status:  # at once: otherwise JAX waits for the other processes
        os._exit(status)
