"""Several processes: when a run is one of many, how they find each other, and how they part."""

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping

from pretrain.config import Mistake, Node

# A process that was killed is noticed after so long by those that wait for it.
HEARTBEAT_SECONDS = 60
# How long a process waits for the others at the start; they may still be installing or queueing.
START_SECONDS = 600
# How long it waits for them at the end, which all reach together.
END_SECONDS = 120


class Processes(Node):
    """How this process joins the others of its run; the defaults ask the environment."""

    coordinator: str | None = None  # host:port of process 0, reachable from all
    processes: int | None = None  # how many there are
    process: int | None = None  # which one this is, from 0
    cluster: bool = False  # one of several that JAX finds by itself: TPU pods, Open MPI

    def given(self) -> bool:
        """Whether all three values are. Raises Mistake where only some are, or they cannot be."""
        values = {
            "--coordinator": self.coordinator,
            "--processes": self.processes,
            "--process": self.process,
        }
        missing = [name for name, value in values.items() if value is None]
        if len(missing) == len(values):
            return False
        if missing:
            raise Mistake(
                f"{', '.join(missing)} missing: several processes need all of {', '.join(values)}."
            )
        self.address()
        assert self.processes is not None and self.process is not None  # none is missing
        if self.processes < 1:
            raise Mistake(f"--processes is {self.processes}: it is 1 or more.")
        if not 0 <= self.process < self.processes:
            raise Mistake(
                f"--process is {self.process} and --processes is {self.processes}: "
                f"it is one of 0 ... {self.processes - 1}."
            )
        return True

    def address(self) -> tuple[str, int]:
        """Host and port of the coordinator. Raises Mistake where it is not host:port."""
        host, _, port = (self.coordinator or "").rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise Mistake(
                f"--coordinator is {self.coordinator!r}: it is host:port, such as 10.0.0.1:9876."
            )
        return host.strip("[]"), int(port)


@contextlib.contextmanager
def joined(asked: Processes, environ: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Inside, the processes of the run are connected, if it has several; enter it before any device.

    They are several when `asked` says so, or the environment: with JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID (what launch/jobset.yaml sets), under SLURM in a step of
    more than one task, and on TPU hosts with more than one worker. The last two JAX detects itself.

    At the end of the block they wait for each other; not after an exception, as the others may
    never come. Raises Mistake where the others cannot be reached.
    """
    join(asked, environ)
    yield
    import jax

    jax.distributed.shutdown()


def join(asked: Processes, environ: Mapping[str, str]) -> None:
    """Start `jax.distributed` if the run has several processes."""
    told = asked if asked.given() else from_environment(environ)
    if not told.given() and not asked.cluster and not clustered(environ):
        return
    if told.given():
        reach(told)
    import jax

    try:
        jax.distributed.initialize(
            told.coordinator, told.processes, told.process,
            cluster_detection_method="deactivate" if told.given() else None,
            # The coordinator would otherwise listen on every interface of its host.
            coordinator_bind_address=told.coordinator,
            initialization_timeout=START_SECONDS, heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=END_SECONDS,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        raise Mistake(
            f"This process cannot join the others of its run ({error}): say where they are with "
            "--coordinator, --processes and --process."
        ) from error


def reach(told: Processes, seconds: float = START_SECONDS) -> None:
    """Wait until process 0 answers, or as process 0 until its address is known and can be listened on.

    Raises Mistake where that takes longer than `seconds`: JAX would abort with a stack trace.
    """
    attempt = _listen if told.process == 0 else _connect
    waiting, until = False, time.monotonic() + seconds
    while True:
        try:
            return attempt(*told.address())
        except OSError as error:
            if time.monotonic() > until:
                raise Mistake(
                    f"{told.coordinator} does not answer ({error.strerror or error}): see whether "
                    "process 0 runs, and whether --coordinator is its address."
                ) from None
            if not waiting:
                print(f"waiting for process 0 on {told.coordinator} ...", file=sys.stderr)
            waiting = True
        time.sleep(0.2)


def _connect(host: str, port: int) -> None:
    socket.create_connection((host, port), timeout=10).close()


def _listen(host: str, port: int) -> None:
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    try:
        socket.create_server(address, family=family).close()
    except OSError as error:
        raise Mistake(
            f"Process 0 cannot listen on {host}:{port} ({os.strerror(error.errno or 0)}): "
            "--coordinator is an address of its own host and a free port."
        ) from None


def from_environment(environ: Mapping[str, str]) -> Processes:
    """What the JAX_* variables say. Raises Mistake where they say half of it, or no numbers."""
    try:
        count, index = (
            int(environ[name]) if name in environ else None
            for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
        )
    except ValueError:
        raise Mistake("JAX_NUM_PROCESSES and JAX_PROCESS_ID must be whole numbers.") from None
    address = environ.get("JAX_COORDINATOR_ADDRESS")
    found = Processes(coordinator=address, processes=count, process=index)
    try:
        found.given()
    except Mistake as mistake:
        raise Mistake(
            f"The environment says with JAX_COORDINATOR_ADDRESS={address}, JAX_NUM_PROCESSES={count} "
            f"and JAX_PROCESS_ID={index} that there are several processes, but not how: {mistake}"
        ) from None
    return found


def clustered(environ: Mapping[str, str]) -> bool:
    """Whether this is one of several tasks of a SLURM step, or of several TPU hosts."""
    # SLURM_NTASKS would not do: it stands in the batch script too, which is one process.
    tasks, slices = (
        int(environ.get(name) or "1") for name in ("SLURM_STEP_NUM_TASKS", "MEGASCALE_NUM_SLICES")
    )
    hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES", "")
    return tasks > 1 or slices > 1 or "," in hosts
