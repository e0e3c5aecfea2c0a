"""Passes on a process's standard error, and tells in a sentence why JAX aborted it.

It runs as a process of its own, `python watch.py ENDS`, since Python sees nothing of an
abort. ENDS is a JSON object: what an abort's message may hold, and its sentence.
"""

import json
import signal
import sys

ABORT = "the JAX distributed service detected fatal errors"
TRIES = "gloo/transport/tcp/debug_logger.cc"  # connections tried again


def main():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends when the other has
    ends, abort, told = json.loads(sys.argv[1]), "", False
    for raw in sys.stdin.buffer:
        line = raw.decode(errors="replace")
        if abort or ABORT in line:
            abort += line
        elif TRIES not in line:
            told |= line.startswith("train.py: ")
            print(line, end="", file=sys.stderr, flush=True)
    if abort and not told:
        sentence = next(text for mark, text in ends.items() if mark in abort)
        print(f"train.py: {sentence}", file=sys.stderr)


if __name__ == "__main__":
    main()
