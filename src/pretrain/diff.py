"""What two configs differ in: `python -m pretrain.diff palm_tiny.py llama_tiny.py`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from pretrain import command, config
from pretrain.config import Node
from pretrain.launch import saved
from pretrain.rundir import RunDirectory


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line a difference; the exit status, 2 after a mistake."""
    return command.run("pretrain.diff", diff, arguments)


def diff(arguments: Sequence[str]) -> int:
    """What the command does."""
    options = command.Options("pretrain.diff", __doc__)
    options.add_argument("configs", nargs=2, help="a config file or a run directory")
    for line in config.diff(*map(read, options.parse_args(arguments).configs)):
        print(line)
    return 0


def read(name: str) -> Node:
    """The config of a file, or of a run directory."""
    if Path(name).is_dir():
        return saved(RunDirectory(name))
    return config.load(name)


if __name__ == "__main__":
    sys.exit(main())
