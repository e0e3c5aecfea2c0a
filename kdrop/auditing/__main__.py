"""Audit the random layers of a saved model.

    python -m kdrop.auditing model.keras              # in float32 and bfloat16
    python -m kdrop.auditing model.keras --replicas --recompute

The status is 0 if every layer does what it is asked for, 1 if one does not, 2 for wrong
use. The inputs are made up from the model's; for others call `kdrop.audit`.
"""

import argparse
import sys
from pathlib import Path

import keras

from kdrop import backend
from kdrop.auditing.report import audit
from kdrop.errors import UserError, first_line, one_sentence


@one_sentence("kdrop.auditing", "hub")
def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "kdrop.auditing", None, __doc__, formatter_class=layout
    )
    parser.add_argument("model", type=Path, help="a .keras file")
    split = "audit on two replicas; a CPU is split in two"
    again = "audit where the backward pass computes a layer again"
    parser.add_argument("--replicas", action="store_true", help=split)
    parser.add_argument("--recompute", action="store_true", help=again)
    options = parser.parse_args()
    if not options.model.is_file():
        raise UserError(f"there is no file {options.model}")
    if options.replicas and backend.name() == "tensorflow":
        backend.two_replicas()  # before the model creates its variables
    try:
        model = keras.models.load_model(options.model, compile=False)
    except Exception as error:  # Keras has many
        reason = first_line(error)
        raise UserError(f"{options.model} cannot be loaded: {reason}") from None
    table = audit(model, replicas=options.replicas, recompute=options.recompute)
    print(table)
    sys.exit(0 if table.ok else 1)


if __name__ == "__main__":
    main()
