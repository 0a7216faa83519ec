"""Text from a trained model.

    python -m pretrain.generate --run runs/palm_tiny --prompt "def "
    python -m pretrain.generate --hf gpt2 --prompt "Once upon a time" --temperature 0.8 --top-p 0.95
    python -m pretrain.generate --run runs/palm_tiny --prompts prompts.txt --beams 4 --json

Greedy by default. Text appears as it is written, but for beam search, whose text is only known at its
end.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jax

from pretrain import command, config, sharding
from pretrain.config import Mistake
from pretrain.generate.beam import Beam
from pretrain.generate.choice import Choice, Draw, Greedy
from pretrain.generate.generator import Generator
from pretrain.generate.spelling import Spelling
from pretrain.generate.trained import HuggingFaceFolder, RunFolder, Setting, Trained

PROG = "pretrain.generate"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write as the command line says; the exit status."""
    return command.run(PROG, generate, arguments)


def generate(arguments: Sequence[str]) -> int:
    """Open the model, and continue every prompt."""
    made = parser()
    options, overrides = made.parse_known_args(arguments)
    if {"-h", "--help"} & set(overrides):
        print(made.format_help())
        config.override(Setting(), ["--help"], PROG, "how the model is computed")
    check(options)
    folder, choice, prompts = opened(options), chosen(options), texts(options)
    setting = config.override(folder.setting(), overrides, PROG, "how the model is computed")
    if options.cpu_devices is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", options.cpu_devices)
    trained = folder.open(setting, note)
    stop = stops(options, trained)
    model = trained.model
    with sharding.use(model.mesh, model.rules):
        generator = Generator(model.graph, model.node, model.compute, choice, stop)
        job = Job(trained, generator, prompts, options.tokens, options.seed, stop)
        try:
            for piece in job.as_json() if options.json else job.as_text():
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            print()  # the text ends within a line
            raise
    return 0


class Job:
    """Prompts that one model continues, and how their texts are shown."""

    def __init__(
        self, trained: Trained, generator: Generator, prompts: Sequence[str], tokens: int, seed: int,
        stop: Sequence[int],
    ):  # fmt: skip
        self._prompts, self._tokens, self._stop = prompts, tokens, set(stop)
        ids = [trained.ids(prompt) for prompt in prompts]
        self._room = generator.room(ids, tokens)
        self._spellings = [Spelling(trained.tokenizer, prompt) for prompt in ids]
        self._stream = generator.stream(trained.model.params, ids, tokens, seed)
        for number, room in enumerate(self._room, 1):
            if room < tokens:
                note(
                    f"prompt {number} leaves room for {room:,} tokens: the model has no more positions"
                )

    def as_text(self) -> Iterator[str]:
        """The first text as it comes, then the others."""
        yield self._prompts[0]
        others = list(self._prompts)
        for news in self._stream:
            for number, ids in enumerate(news):
                piece = self._spelt(number, ids)
                if number:
                    others[number] += piece
                else:
                    yield piece
        yield self._spellings[0].rest() + "\n"
        for number, text in enumerate(others[1:], 1):
            yield f"\n--- prompt {number + 1}\n{text}{self._spellings[number].rest()}\n"

    def as_json(self) -> Iterator[str]:
        """One object: of each text the prompt, what follows it, its ids, and why it ends."""
        found: list[list[int]] = [[] for _ in self._prompts]
        for news in self._stream:
            for ids, new in zip(found, news, strict=True):
                ids += new
        rows = [
            {
                "prompt": prompt,
                "text": self._spelt(number, found[number]) + self._spellings[number].rest(),
                "ids": found[number],
                "end": self._end(number, found[number]),
            }
            for number, prompt in enumerate(self._prompts)
        ]
        yield json.dumps({"texts": rows}) + "\n"

    def _spelt(self, number: int, ids: Sequence[int]) -> str:
        return self._spellings[number].add([i for i in ids if i not in self._stop])

    def _end(self, number: int, ids: Sequence[int]) -> str:
        if ids[-1] in self._stop:
            return "stop"
        return "tokens" if len(ids) == self._tokens else "positions"


def parser() -> command.Options:
    """The options of the command itself; all others are fields of `Setting`."""
    usage = "%(prog)s (--run DIR | --hf DIR) --prompt TEXT [OPTION ...] [FIELD OF THE SETTING ...]"
    made = command.Options(PROG, __doc__, usage, add_help=False)
    add = made.add_argument
    add("--run", help="run directory: its newest checkpoint that is whole")
    add("--hf", help="directory of a Hugging Face model: config.json, safetensors, and "
        "tokenizer.json or tokenizer.model")  # fmt: skip
    add("--prompt", action="append", default=[], help="text to continue; may be given again")
    add("--prompts", help="file with a prompt a line")
    add("--tokens", type=int, default=200, help="tokens to write at most; default 200")
    add("--temperature", type=float, help="draw from softmax(logits / temperature)")
    add("--top-k", type=int, help="draw from so many of the likeliest tokens")
    add("--top-p", type=float, help="draw from the fewest tokens with this probability together")
    add("--beams", type=int, help="beam search with so many beams")
    add("--length-penalty", type=float, help="a beam's log-probability is divided by length^this")
    add("--stop", type=int, action="append", help="id that ends a text; may be given again; default "
        "the tokenizer's end of document")  # fmt: skip
    add("--seed", type=int, default=0, help="of the draws; default 0")
    add("--cpu-devices", type=int, help="compute on so many fake devices of the CPU")
    add("--json", action="store_true", help="print one JSON object, at the end")
    return made


def check(options: argparse.Namespace) -> None:
    """Raises Mistake for a number that is out of range."""
    for name in ("tokens", "cpu_devices"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise Mistake(f"--{name.replace('_', '-')} is {value}: make it 1 or more.")
    if not 0 <= options.seed < 2**32:
        raise Mistake(f"--seed is {options.seed}: make it 0 or more and less than 2^32.")


def opened(options: argparse.Namespace) -> RunFolder | HuggingFaceFolder:
    """What --run or --hf names."""
    if (options.run is None) == (options.hf is None):
        raise Mistake("name one model: a run directory with --run, or Hugging Face's with --hf.")
    return HuggingFaceFolder(options.hf) if options.run is None else RunFolder(options.run)


def chosen(options: argparse.Namespace) -> Choice:
    """How tokens are chosen: a draw or a search where an option of theirs is given."""
    given = {name: value for name, value in vars(options).items() if value is not None}
    draw = {name: given[name] for name in ("temperature", "top_k", "top_p") if name in given}
    search = {name: given[name] for name in ("beams", "length_penalty") if name in given}
    if draw and search:
        raise Mistake(
            f"{spelt(search)} is of a search and {spelt(draw)} of draws: give one or the other."
        )
    if search and "beams" not in search:
        raise Mistake("--length-penalty is of a search: give --beams as well.")
    choice: Choice = Draw(**draw) if draw else Beam(**search) if search else Greedy()
    choice.check("")
    return choice


def spelt(names: Iterable[str]) -> str:
    """The options of these names."""
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def texts(options: argparse.Namespace) -> list[str]:
    """The prompts: those of the command line, then those of the file."""
    prompts = list(options.prompt)
    if options.prompts is not None:
        try:
            text = Path(options.prompts).expanduser().read_text("utf-8")
            prompts += text.removesuffix("\n").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise Mistake(f"--prompts {options.prompts} cannot be read: {error}.") from None
    if not prompts:
        raise Mistake(
            'give a prompt with --prompt, such as --prompt "def ", or a file with --prompts.'
        )
    for number, prompt in enumerate(prompts, 1):
        if not prompt.isascii() and prompt.encode("utf-8", "replace").decode() != prompt:
            raise Mistake(f"prompt {number} is not UTF-8: {prompt!r}.")
    return prompts


def stops(options: argparse.Namespace, trained: Trained) -> tuple[int, ...]:
    """The ids that end a text. Raises Mistake for one that the model does not have."""
    if options.stop is None:
        return trained.stop
    for i in options.stop:
        if not 0 <= i < trained.model.node.vocab:
            raise Mistake(
                f"--stop is {i}: the model's ids are 0 to {trained.model.node.vocab - 1}."
            )
    return tuple(options.stop)


def note(text: str) -> None:
    """Tell a person what is not a result."""
    print(f"{PROG}: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
