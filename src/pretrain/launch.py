"""The command that trains.

    python -m pretrain.launch --config palm_tiny.py                   # in runs/palm_tiny
    python -m pretrain.launch --config palm_tiny.py --steps 100 --optim.peak-lr 1e-3 --mesh.fsdp 4
    python -m pretrain.launch --run runs/palm_tiny                    # resume, from its config.json

On a run directory that holds checkpoints it resumes by itself. Ctrl-C or SIGTERM saves and stops. A
mistake ends in one sentence and exit status 2.
"""

import argparse
import contextlib
import difflib
import os
import sys
import traceback
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, cast

from pretrain import command, config, host
from pretrain.config import Mistake
from pretrain.distributed import Processes, joined
from pretrain.interrupt import stoppable
from pretrain.rundir import RunDirectory

if TYPE_CHECKING:  # importing it imports JAX, which a mistake in the options can do without
    from pretrain.run import Run


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says; the exit status."""
    return command.run("pretrain.launch", launch, arguments)


def launch(arguments: Sequence[str]) -> int:
    """Train, and give back what is held, whatever ends it."""
    with contextlib.ExitStack() as held, stoppable(held.close):
        return start(arguments, held)


def start(arguments: Sequence[str], held: contextlib.ExitStack) -> int:
    """Build the run, take its directory, which is given back with `held`, and train in it."""
    options, overrides = parser().parse_known_args(arguments)
    run = configured(options, overrides)
    import jax

    if options.cpu_devices is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", options.cpu_devices)
    processes = Processes(
        coordinator=options.coordinator, processes=options.processes, process=options.process,
        cluster=options.cluster,
    )  # fmt: skip
    with joined(processes):
        from pretrain.progress import open_terminal
        from pretrain.train import train

        process = process_index()
        terminal = open_terminal(run.steps, process, cast(TextIO, Output(sys.stdout)))
        directory = RunDirectory(options.run or default_directory(options.config), process)
        held.enter_context(directory.lock(terminal.say))
        compare(run, directory, terminal.say)
        compile_cache(run.compile_cache, terminal.say)
        return train(run, directory, terminal)


def parser() -> command.Options:
    """The options of the command itself; all others are fields of the run."""
    usage = "%(prog)s --config NAME [--run DIR] [OPTION ...] [FIELD OF THE RUN ...]"
    options = command.Options("pretrain.launch", __doc__, usage, add_help=False)
    options.add_argument(
        "--config", help="config file: a path, or a name in ./configs or of the package"
    )
    options.add_argument("--run", help="run directory; default runs/NAME of the config")
    options.add_argument(
        "--cpu-devices", type=int, help="train on that many fake devices of the CPU"
    )
    options.add_argument(
        "--coordinator", help="host:port of process 0, where there are several processes"
    )
    options.add_argument("--processes", type=int, help="how many processes there are")
    options.add_argument("--process", type=int, help="which of them this is, from 0")
    options.add_argument(
        "--cluster",
        action="store_true",
        help="join the other processes as JAX finds them, on a TPU pod",
    )
    return options


def configured(options: argparse.Namespace, overrides: Sequence[str]) -> "Run":
    """The run that the command line describes, checked; `--help` prints every option and exits."""
    if {"-h", "--help"} & set(overrides):
        print(parser().format_help())
        options.config = options.config or (None if options.run else "palm_tiny.py")
    if options.cpu_devices is not None and options.cpu_devices < 1:
        raise Mistake(f"--cpu-devices is {options.cpu_devices}: make it 1 or more.")
    if options.config is None and options.run is None:
        suggest(options, overrides, {})
        raise Mistake(
            "name a config with --config, or the directory of a run to resume with --run."
        )
    from pretrain.run import load

    run = load(options.config) if options.config else saved(RunDirectory(options.run))
    config.check_types(run)  # before the overrides, which take the types from it
    suggest(options, overrides, config.leaves(run))
    run = config.override(
        run, overrides, "pretrain.launch", "fields of the run, with their values now"
    )
    run.check()
    return run


def suggest(options: argparse.Namespace, overrides: Sequence[str], fields: Container[str]) -> None:
    """Raises Mistake for an override that is no field and nearly an option of the command itself."""
    known = [f"--{name.replace('_', '-')}" for name in vars(options)]
    for argument in overrides:
        option = argument.split("=")[0]
        near = difflib.get_close_matches(option, known, n=1, cutoff=0.8)
        if near and option.removeprefix("--").replace("-", "_") not in fields:
            raise Mistake(f"there is no option {option} (did you mean {near[0]!r}?).")


def saved(directory: RunDirectory) -> "Run":
    """The config of a run directory. Raises Mistake where it is missing or damaged."""
    from pretrain.run import Run

    value = directory.read_json("config.json")
    try:
        found = config.from_json(value)
        if not isinstance(found, config.Node):
            raise Mistake("it holds no config")
        config.check_types(found)
        if not isinstance(found, Run):
            raise Mistake(f"it holds a {type(found).__name__}: it must be a Run")
    except Mistake as mistake:
        reason = str(mistake).rstrip(".")
        raise Mistake(
            f"{directory.config} cannot be read ({reason}): mend it, or delete it and name the run's "
            "config with --config."
        ) from None
    return found


def default_directory(name: str) -> Path:
    """runs/palm_tiny for configs/palm_tiny.py."""
    return Path("runs", Path(name).stem)


def compare(run: "Run", directory: RunDirectory, report: Callable[[str], None]) -> None:
    """Say in what the run differs from the one that the directory holds, if it holds one.

    Raises Mistake where the model differs: its checkpoints could not be read.
    """
    if not directory.config.exists():
        return
    held = saved(directory)
    changes = list(config.diff(held, run))
    model = [change for change in changes if change.startswith("model")]
    families = [type(one.model).__name__ for one in (held, run)]
    if model:
        said = "; ".join(model) if families[0] == families[1] else " -> ".join(families)
        raise Mistake(
            f"{directory.path} holds a run of another model ({said}): give another "
            "directory with --run, or that model's config."
        )
    for change in changes:
        report(f"changed since this run was last started: {change}")


def process_index() -> int:
    """Of this process in its run, once JAX has found its devices. Raises Mistake where there are none."""
    import jax

    try:
        return jax.process_index()
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise Mistake(
            f"JAX finds no device (JAX_PLATFORMS is {asked!r}): unset it, or install what that "
            "platform needs."
        ) from error


def compile_cache(directory: str | None, report: Callable[[str], None]) -> None:
    """Keep compiled programs in `directory`, so that the next start of a like run is quick."""
    import jax

    if directory is None:
        return
    path = Path(directory).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        report(f"compile_cache {path} cannot be made ({error.strerror}): every start compiles anew")
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


class Output:
    """Standard output. Once nobody reads it any more it leads nowhere, and the run goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes the text."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lost(error)
            return len(text)

    def flush(self) -> None:
        """Writes what is buffered."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lost(error)

    def _lost(self, error: OSError) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        with contextlib.suppress(OSError):
            print(
                f"pretrain.launch: standard output is gone ({error.strerror}); the run goes on without.",
                file=sys.stderr,
            )


def leave() -> NoReturn:
    """Run the command and end the process, at once if it failed.

    A program that is still being compiled cannot be stopped, and Python would wait for it; so would
    JAX for the other processes of the run.
    """
    # A service may be started without them, and a file of the run would then get their number.
    with Path(os.devnull).open("w") as null:
        sys.stdout, sys.stderr = sys.stdout or null, sys.stderr or null
        try:
            status = main()
        except Exception:
            traceback.print_exc()
            status = 1
        if status:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError):
                    stream.flush()
            os._exit(status)
    sys.exit()


if __name__ == "__main__":
    host.prepare()
    leave()
