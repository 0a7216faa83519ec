"""Checkpoints from Hugging Face and to it, and the proof that an export is what it should be.

    python -m pretrain.convert from-hf DIR CHECKPOINT    # a run directory at step 0
    python -m pretrain.convert to-hf CHECKPOINT DIR      # what `transformers` loads
    python -m pretrain.convert verify DIR CHECKPOINT     # both compute the same

DIR is a directory of Hugging Face: config.json, safetensors, tokenizer. CHECKPOINT is a run directory:
`generate --run` writes with it and `launch --run` trains it. What is written must not be there yet.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pretrain import command
from pretrain.config import Mistake


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert or verify as the command line says; the exit status, 1 where a proof fails."""
    return command.run("pretrain.convert", convert, arguments)


def convert(arguments: Sequence[str]) -> int:
    """What the command does."""
    options = parser().parse_args(arguments)
    import jax

    # fp32 on a CPU is fp32, and the host has the memory; an accelerator would win nothing.
    jax.config.update("jax_platforms", "cpu")
    act: Callable[[argparse.Namespace], int] = options.act
    return act(options)


def parser() -> command.Options:
    """The three commands and their options."""
    options = command.Options("pretrain.convert", __doc__)
    kinds = options.add_subparsers(required=True, metavar="from-hf | to-hf | verify")
    places = {"DIR": "a directory of Hugging Face", "CHECKPOINT": "a run directory"}

    def add(name: str, act: Callable[[argparse.Namespace], int], *names: str) -> command.Options:
        made = kinds.add_parser(name, description=act.__doc__)
        for place in names:
            made.add_argument(place, type=Path, help=places[place])
        made.set_defaults(act=act)
        return made

    made = add("from-hf", from_hf, "DIR", "CHECKPOINT")
    made.add_argument(
        "--config", help="config file: the run is this one, but for model and tokenizer"
    )
    made.add_argument(
        "--vocab-multiple", type=int, default=1,
        help="pad the vocabulary to a multiple of it, for a mesh that splits it; default 1",
    )  # fmt: skip
    made = add("to-hf", to_hf, "CHECKPOINT", "DIR")
    made.add_argument(
        "--dtype", default="float32", help="dtype of the weights: float32 (default) or bfloat16"
    )
    made = add("verify", verify, "DIR", "CHECKPOINT")
    made.add_argument("--json", action="store_true", help="print one JSON object")
    return options


def from_hf(options: argparse.Namespace) -> int:
    """Make a run directory at step 0 of a directory of Hugging Face."""
    from pretrain.interop import folder
    from pretrain.run import load

    like = None if options.config is None else load(options.config)
    if options.vocab_multiple < 1:
        raise Mistake(f"--vocab-multiple is {options.vocab_multiple}: make it 1 or more.")
    print(folder.from_hf(options.DIR, options.CHECKPOINT, like, options.vocab_multiple))
    return 0


def to_hf(options: argparse.Namespace) -> int:
    """Write the newest checkpoint of a run as a directory that `transformers` loads."""
    from pretrain.interop import folder

    print(folder.to_hf(options.CHECKPOINT, options.DIR, options.dtype))
    return 0


def verify(options: argparse.Namespace) -> int:
    """Load a directory in `transformers`, and compare logits, greedy tokens and text with a run's model."""
    from pretrain.interop import proof

    verdict = proof.verify(options.DIR, options.CHECKPOINT)
    if options.json:
        print(json.dumps({"good": verdict.good} | dataclasses.asdict(verdict)))
        return 0 if verdict.good else 1
    parts = {
        f"logits differ by {verdict.logits:.1e} of the largest (at most {proof.TOLERANCE:.0e})": True,
        f"greedy tokens are {'equal' if verdict.greedy else 'NOT equal'}": True,
        f"text is spelt {'alike' if verdict.text else 'DIFFERENTLY'}": verdict.text is not None,
    }
    said = ", ".join(part for part, known in parts.items() if known)
    state = "good" if verdict.good else "NOT what the checkpoint is"
    print(f"{options.DIR} is {state}: in {verdict.architecture}, {said}")
    return 0 if verdict.good else 1


if __name__ == "__main__":
    sys.exit(main())
