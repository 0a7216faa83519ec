"""The frame of a command: options that are read strictly, and mistakes that end it in one sentence."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from pretrain.config import Mistake


class Options(argparse.ArgumentParser):
    """Options of `python -m pretrain.NAME`, whole words only; what cannot be read is a Mistake."""

    def __init__(
        self, prog: str, description: str | None, usage: str | None = None, add_help: bool = True
    ):
        super().__init__(
            prog, usage, description, add_help=add_help, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip

    def error(self, message: str) -> NoReturn:
        """Raises Mistake, where argparse would print a usage and exit."""
        raise Mistake(f"{message} (see --help).")


def run(
    prog: str, command: Callable[[Sequence[str]], int], arguments: Sequence[str] | None = None
) -> int:
    """The exit status of `command(arguments)`, those of the process by default.

    2 and one sentence after a mistake. Ctrl-C, and a reader that goes away (`| head`), end it
    without a word.
    """
    try:
        status = command(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        return status
    except Mistake as mistake:
        print(f"{prog}: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Python flushes once more as it ends, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
