"""The command that trains.

    python -m pretrain.launch --config palm_tiny.py                   # in runs/palm_tiny
    python -m pretrain.launch --config palm_tiny.py --steps 100 --optim.peak-lr 1e-3 --mesh.fsdp 4
    python -m pretrain.launch --run runs/palm_tiny                    # resume, from its config.json

On a run directory that holds checkpoints it resumes by itself. Ctrl-C or SIGTERM saves and stops. A
mistake ends in one sentence and exit status 2.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain import config, host
from pretrain.config import Mistake
from pretrain.distributed import Processes, join
from pretrain.rundir import RunDirectory

if TYPE_CHECKING:  # importing it imports JAX, which --help and most mistakes can do without
    from pretrain.run import Run


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says; the exit status."""
    try:
        return launch(sys.argv[1:] if arguments is None else arguments)
    except Mistake as mistake:
        print(f"pretrain.launch: {mistake}", file=sys.stderr)
        return 2


def launch(arguments: Sequence[str]) -> int:
    """Build the run, take its directory, train in it. Raises Mistake."""
    options, overrides = parser().parse_known_args(arguments)
    run = configured(options, overrides)
    import jax

    if options.cpu_devices is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", options.cpu_devices)
    join(Processes(coordinator=options.coordinator, processes=options.processes, process=options.process))
    from pretrain.progress import open_terminal
    from pretrain.train import train

    process = jax.process_index()
    terminal = open_terminal(run.steps, process)
    directory = RunDirectory(options.run or default_directory(options.config), process)
    with directory.lock(terminal.say):
        remember(run, directory, terminal.say)
        compile_cache(run.compile_cache)
        return train(run, directory, terminal)


def parser() -> argparse.ArgumentParser:
    """The options of the command itself; all others are fields of the run."""
    options = argparse.ArgumentParser(
        prog="pretrain.launch", description=__doc__, add_help=False, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    options.error = _refuse  # type: ignore[method-assign]  # argparse's own prints usage and exits
    options.add_argument("--config", help="config file: a path, or a name in ./configs or of the package")
    options.add_argument("--run", help="run directory; default runs/NAME of the config")
    options.add_argument("--cpu-devices", type=int, help="train on that many fake devices of the CPU")
    options.add_argument("--coordinator", help="host:port of process 0, where there are several processes")
    options.add_argument("--processes", type=int, help="how many processes there are")
    options.add_argument("--process", type=int, help="which of them this is, from 0")
    return options


def configured(options: argparse.Namespace, overrides: Sequence[str]) -> "Run":
    """The run that the command line describes, checked; `--help` prints every option and exits."""
    if {"-h", "--help"} & set(overrides):
        print(parser().format_help())
        options.config = options.config or "palm_tiny.py"
    if options.config is None and options.run is None:
        raise Mistake("name a config with --config, or the directory of a run to resume with --run.")
    if options.config is not None:
        run = config.load(options.config)
    else:
        run = config.from_json(RunDirectory(options.run).read_json("config.json"))
    from pretrain.run import Run

    if not isinstance(run, Run):
        raise Mistake(f"{options.config} binds `config` to a {type(run).__name__}: it must be a Run.")
    run = config.override(run, overrides, "pretrain.launch", "fields of the run, with their values now")
    run.check()
    return run


def default_directory(name: str) -> Path:
    """runs/palm_tiny for configs/palm_tiny.py."""
    return Path("runs", Path(name).stem)


def remember(run: "Run", directory: RunDirectory, report: Callable[[str], None]) -> None:
    """Write config.json; where the directory has one of another run, say in what the two differ.

    Raises Mistake where the model differs: its checkpoints could not be read.
    """
    if directory.config.exists():
        old = config.from_json(directory.read_json("config.json"))
        changes = list(config.diff(old, run))
        model = [change for change in changes if change.startswith("model")]
        if model:
            raise Mistake(
                f"{directory.path} holds a run of another model ({'; '.join(model)}): give another "
                "directory with --run, or that model's config."
            )
        for change in changes:
            report(f"changed since this run was last started: {change}")
    directory.write_json("config.json", config.to_json(run))


def compile_cache(directory: str | None) -> None:
    """Keep compiled programs in `directory`, so that the next start of a like run is quick."""
    import jax

    if directory is not None:
        jax.config.update("jax_compilation_cache_dir", str(Path(directory).expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _refuse(message: str) -> None:
    raise Mistake(f"{message} (see --help).")


if __name__ == "__main__":
    host.prepare()
    sys.exit(main())
