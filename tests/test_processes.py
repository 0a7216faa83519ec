"""Several processes: how they find each other, train as one, stop together, and are not waited for."""

import re
import signal
import socket
from pathlib import Path
from typing import Any

import jax
import pytest

from pretrain import distributed
from pretrain.config import Mistake
from pretrain.distributed import Processes, clustered, from_environment, joined, reach
from small import Place, Started

TOLD = Processes(coordinator="10.0.0.1:9876", processes=4, process=3)
VARIABLES = {
    "JAX_COORDINATOR_ADDRESS": "10.0.0.1:9876",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}
SLURM = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}


# --- what the command line and the environment say --------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (Processes(process=0), "--coordinator, --processes missing"),
        (Processes(coordinator="a:1", processes=2), "--process missing"),
        (Processes(coordinator="a", processes=2, process=0), "'a': it is host:port"),
        (Processes(coordinator="a:port", processes=2, process=0), "'a:port': it is host:port"),
        (Processes(coordinator="a:70000", processes=2, process=0), "'a:70000': it is host:port"),
        (Processes(coordinator="a:1", processes=0, process=0), "--processes is 0"),
        (Processes(coordinator="a:1", processes=2, process=2), "--process is 2"),
        (Processes(coordinator="a:1", processes=2, process=-1), "0 ... 1"),
    ],
)
def test_options_that_cannot_be_are_a_mistake(asked: Processes, words: str) -> None:
    with pytest.raises(Mistake, match=re.escape(words)):
        asked.given()


def test_an_address_may_be_of_the_sixth_version() -> None:
    assert Processes(coordinator="[fe80::1]:9876").address() == ("fe80::1", 9876)


def test_three_variables_are_as_good_as_three_options() -> None:
    assert from_environment(VARIABLES) == TOLD
    assert from_environment({}) == Processes()


@pytest.mark.parametrize("missing", VARIABLES)
def test_some_of_the_variables_are_a_mistake_that_names_them(missing: str) -> None:
    with pytest.raises(Mistake, match=f"{missing}=None"):
        from_environment({name: value for name, value in VARIABLES.items() if name != missing})


def test_a_variable_that_is_no_number_is_a_mistake() -> None:
    with pytest.raises(Mistake, match="whole numbers"):
        from_environment(VARIABLES | {"JAX_PROCESS_ID": "first"})


@pytest.mark.parametrize(
    ("environ", "several"),
    [
        ({}, False),
        (SLURM, True),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, False),  # a batch script, outside srun
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1"}, True),
        ({"TPU_PROCESS_ADDRESSES": "t0:8476,t1:8476"}, True),
        ({"TPU_WORKER_HOSTNAMES": "t0", "MEGASCALE_NUM_SLICES": "2"}, True),
        ({"MEGASCALE_NUM_SLICES": "1", "SLURM_STEP_NUM_TASKS": ""}, False),
    ],
)
def test_clusters_are_known_by_their_variables(environ: dict[str, str], several: bool) -> None:
    assert clustered(environ) is several


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `joined` asks of JAX, which does nothing here."""
    made: list[Any] = []
    monkeypatch.setattr(distributed, "reach", lambda told: made.append("reach"))
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: made.append((a, k)))
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: made.append("shutdown"))
    return made


@pytest.mark.parametrize(
    ("asked", "environ"), [(TOLD, {}), (Processes(), VARIABLES), (TOLD, SLURM), (TOLD, VARIABLES)]
)
def test_who_is_told_joins_on_that_interface_alone_and_detects_nothing(
    calls: list[Any], asked: Processes, environ: dict[str, str]
) -> None:
    with joined(asked, environ):
        pass
    reached, (arguments, options), shutdown = calls
    assert (reached, shutdown) == ("reach", "shutdown")
    assert arguments == ("10.0.0.1:9876", 4, 3)
    assert options["coordinator_bind_address"] == "10.0.0.1:9876"
    assert options["cluster_detection_method"] == "deactivate"


@pytest.mark.parametrize(
    ("asked", "environ"), [(Processes(), SLURM), (Processes(cluster=True), {})]
)
def test_a_cluster_is_left_to_jax(
    calls: list[Any], asked: Processes, environ: dict[str, str]
) -> None:
    with joined(asked, environ):
        pass
    (arguments, options), shutdown = calls
    assert arguments == (None, None, None)
    assert options["cluster_detection_method"] is None
    assert shutdown == "shutdown"


def test_one_process_joins_nobody_and_an_error_waits_for_nobody(calls: list[Any]) -> None:
    with joined(Processes(), {}):
        assert calls == []
    calls.clear()
    with pytest.raises(ZeroDivisionError), joined(TOLD, {}):
        raise ZeroDivisionError
    assert "shutdown" not in calls


def test_what_jax_cannot_do_is_a_mistake(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with (
        pytest.raises(Mistake, match=r"should be defined.*--coordinator"),
        joined(Processes(cluster=True), {}),
    ):
        pass


# --- finding process 0 ------------------------------------------------------------------------------


def test_a_port_that_is_taken_or_a_host_that_is_another_is_a_mistake() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(Mistake, match=r"cannot listen on .* \(Address already in use\)"):
            reach(Processes(coordinator=address, processes=2, process=0))
        reach(Processes(coordinator=address, processes=2, process=1))
    reach(Processes(coordinator=address, processes=2, process=0))
    with pytest.raises(Mistake, match="Cannot assign"):
        reach(Processes(coordinator="192.0.2.1:9876", processes=2, process=0))


def test_who_does_not_answer_is_waited_for_then_named(capsys: pytest.CaptureFixture[str]) -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(Mistake, match=f"{address} does not answer .*refused"):
        reach(Processes(coordinator=address, processes=2, process=1), seconds=0.3)
    assert capsys.readouterr().err == f"waiting for process 0 on {address} ...\n"


# --- two processes ----------------------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def pair(place: Place, run: str) -> list[Started]:
    """Two processes of four devices each, in a run that would be long."""
    port = free_port()
    options = ["--coordinator", f"127.0.0.1:{port}", "--processes", 2, "--cpu-devices", 4]
    endless = ["--steps", 100_000, "--checkpoint.every", 50_000, "--evaluate.every", 50_000]
    return [place.start(run, *options, "--process", index, *endless) for index in range(2)]


@pytest.mark.slow
def test_two_processes_are_one_run_that_stops_resumes_and_dies_together(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    place = Place(tmp_path_factory.getbasetemp() / "small")
    both = pair(place, "two")
    both[0].wait_for("step      8/")
    both[1].send(signal.SIGTERM)
    assert [process.end() for process in both] == [143, 143]
    told = re.fullmatch(r"stopped by SIGTERM after step (\d+), saved; .*", both[0].said[-1])
    assert told, both[0].said
    stopped = int(told[1])
    assert place.checkpoints("two") == [stopped]
    assert len(place.losses("two")) == stopped

    both = pair(place, "two")
    both[0].wait_for(f"step {stopped + 4:6d}/")
    both[1].send(signal.SIGKILL)
    assert both[0].end(60) not in (0, 2, 143)
    assert both[1].end() == -signal.SIGKILL
    together = place.losses("two")

    # What it saved goes on in one process, and all of it is as if there had never been two.
    assert place.launch("two", "--steps", stopped + 4) == 0
    assert place.launch("one", "--steps", stopped + 4) == 0
    alone = place.losses("one")
    assert together[: len(alone)] == pytest.approx(alone, rel=1e-6)
    assert place.losses("two") == pytest.approx(alone, rel=1e-6)
    assert Path(place.folder, "two", "lock").read_text() == ""
