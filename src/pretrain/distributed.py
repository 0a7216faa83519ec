"""Several processes: when a run is one of many, and how they find each other."""

import os
from collections.abc import Mapping

from pretrain.config import Mistake, Node


class Processes(Node):
    """How this process joins the others of its run; all None, and no cluster around, is one process."""

    coordinator: str | None = None  # host:port of process 0, reachable from all
    processes: int | None = None  # how many there are
    process: int | None = None  # which one this is, from 0

    def given(self) -> bool:
        """Whether the command line says it. Raises Mistake where it says half of it."""
        values = {"--coordinator": self.coordinator, "--processes": self.processes, "--process": self.process}
        missing = [name for name, value in values.items() if value is None]
        if missing and len(missing) < len(values):
            raise Mistake(f"{', '.join(missing)} missing: several processes need all of {', '.join(values)}.")
        return not missing


def join(asked: Processes, environ: Mapping[str, str] = os.environ) -> None:
    """Start `jax.distributed` when told to or when the environment says so; call it before any device.

    The environment says so with JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID (what
    launch/jobset.yaml sets from Kubernetes), under SLURM with more than one task, and on TPU hosts
    with more than one worker; the last two are detected by JAX itself.
    """
    import jax

    if not asked.given():
        asked = from_environment(environ)
    if asked.given():
        assert asked.coordinator is not None and asked.process is not None  # given() says so
        if not 0 <= asked.process < (asked.processes or 0):
            raise Mistake(f"--process is {asked.process}: it is one of 0 ... {(asked.processes or 0) - 1}.")
        # The coordinator would otherwise listen on every interface of its host.
        bind = asked.coordinator if asked.process == 0 else None
        jax.distributed.initialize(
            asked.coordinator, asked.processes, asked.process,
            coordinator_bind_address=bind, heartbeat_timeout_seconds=60,
        )  # fmt: skip
    elif clustered(environ):
        jax.distributed.initialize(heartbeat_timeout_seconds=60)


def from_environment(environ: Mapping[str, str]) -> Processes:
    """What the JAX_* variables say. Raises Mistake where a number is none."""
    try:
        count, index = (
            int(environ[name]) if name in environ else None
            for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
        )
    except ValueError:
        raise Mistake("JAX_NUM_PROCESSES and JAX_PROCESS_ID must be whole numbers.") from None
    found = Processes(
        coordinator=environ.get("JAX_COORDINATOR_ADDRESS"), processes=count, process=index
    )
    try:
        found.given()
    except Mistake:
        raise Mistake(
            "the environment sets only some of JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
            "JAX_PROCESS_ID: set all three, or none for a single process."
        ) from None
    return found


def clustered(environ: Mapping[str, str]) -> bool:
    """Whether SLURM started several tasks or this is one of several TPU hosts."""
    slurm = "SLURM_PROCID" in environ and int(environ.get("SLURM_NTASKS", "1")) > 1
    return slurm or "," in environ.get("TPU_WORKER_HOSTNAMES", "")
