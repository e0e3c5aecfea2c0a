"""Serve exported models over REST with KServe, in the protocols V1 and V2.

    python -m kdrop.serving saved_models/spiral-inverted-dropout  # one model
    python -m kdrop.serving saved_models --port 8501              # all models in it
    curl localhost:8501/v1/models/NAME:predict -d '{"instances": [[0.1, 0.2]]}'

The newest version of each model answers; docs/guide/serving.md shows requests.
"""

import argparse
import signal
import socket
import sys
from dataclasses import fields
from pathlib import Path

from kdrop.errors import UserError, one_sentence
from kdrop.serving.limits import Limits
from kdrop.serving.versions import model_folders


def _positive(text: str) -> int:
    """The type of an argument that is an integer from 1 to 2^31."""
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:11]) <= 2**31):
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 1 to 2^31")
    return int(text)


@one_sentence("kdrop.serving", "serve")
def main() -> None:
    parser = argparse.ArgumentParser("kdrop.serving", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", type=Path, help="folder of one or several models")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument(
        "--port", type=int, default=8501, help="0: any free port (default: %(default)s)"
    )
    for limit in fields(Limits):
        parser.add_argument(
            f"--{limit.name.replace('_', '-')}",
            type=_positive,
            default=limit.default,
            help=f"limit of {limit.metadata['help']} (default: %(default)s)",
        )
    options = parser.parse_args()
    folder, host, port = options.folder, options.host, options.port
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    if not model_folders(folder):
        raise UserError(
            f"{folder} contains no exported model: neither {folder}/VERSION nor "
            f"{folder}/NAME/VERSION exists, where VERSION is an integer"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, OverflowError, TypeError, UnicodeError) as error:
            raise UserError(f"{host} port {port} cannot be used: {error}") from None
        # KServe takes seconds to import: the arguments are checked first.
        from kdrop.serving import server

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: sys.exit(0))
        server.configure_logs()
        models = server.ServedFolder(folder)
        models.refresh()
        if not models.models:
            raise UserError(f"no model in {folder} can be loaded")
        limits = Limits(**{x.name: getattr(options, x.name) for x in fields(Limits)})
        server.run(models, listener, limits)


if __name__ == "__main__":
    main()
