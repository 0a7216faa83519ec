"""What two configs differ in: `python -m pretrain.diff palm_tiny.py llama_tiny.py`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from pretrain import config
from pretrain.config import Mistake, Node
from pretrain.launch import saved
from pretrain.rundir import RunDirectory


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line a difference; the exit status, 2 after a mistake."""
    names = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if len(names) != 2 or any(name.startswith("-") for name in names):
            raise Mistake("name two configs, each a config file or a run directory.")
        for line in config.diff(*map(read, names)):
            print(line)
    except Mistake as mistake:
        print(f"pretrain.diff: {mistake}", file=sys.stderr)
        return 2
    return 0


def read(name: str) -> Node:
    """The config of a file, or of a run directory."""
    if Path(name).is_dir():
        return saved(RunDirectory(name))
    return config.load(name)


if __name__ == "__main__":
    sys.exit(main())
