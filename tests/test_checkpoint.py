"""Checkpoints come back bit for bit on any mesh, or not at all and with a sentence."""

import json
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pretrain import checkpoint, manifest
from pretrain.checkpoint import Checkpoint, Checkpointer
from pretrain.config import Mistake
from pretrain.sharding import Mesh
from pretrain.tensors import TensorStore, named

EXTRA = {"data": {"epoch": 1, "position": [3, 4]}, "seconds": 1e-9}
LAYOUTS = {  # devices, mesh, and how it splits matrices
    "fsdp=8": (8, Mesh(fsdp=8), PartitionSpec("fsdp")),
    "data=4 tensor=2": (8, Mesh(data=4, fsdp=1, tensor=2), PartitionSpec(None, "tensor")),
    "one device": (1, Mesh(fsdp=1), PartitionSpec()),
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    step: jax.Array
    params: Any
    optimizer: Any
    key: jax.Array


def empty_state() -> State:
    layers = {"wq_DN": jnp.zeros((8, 16)), "gain_D": jnp.zeros(8, jnp.bfloat16)}
    params = {"embed_VD": jnp.zeros((16, 8)), "layers": layers}
    return State(jnp.int32(0), params, optax.adamw(1e-3).init(params), jax.random.key(0))


SHAPES = jax.eval_shape(empty_state)  # 3,136 bytes


def shardings(tree: Any, layout: str) -> Any:
    """A sharding for each leaf of `tree`."""
    devices, node, split = LAYOUTS[layout]
    mesh = node.build(jax.devices()[:devices])
    whole = PartitionSpec()
    return jax.tree.map(lambda x: NamedSharding(mesh, split if x.ndim == 2 else whole), tree)


def make_state(seed: int, layout: str = "fsdp=8") -> State:
    """Random bits, NaNs, subnormals and negative zeros among them, in every leaf."""
    source = np.random.default_rng(seed)

    def randomised(x: Any) -> Any:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.key(seed)
        nbytes = x.size * x.dtype.itemsize
        return np.frombuffer(source.bytes(nbytes), x.dtype).reshape(x.shape)

    return jax.device_put(jax.tree.map(randomised, SHAPES), shardings(SHAPES, layout))


def target(tree: Any, layout: str = "fsdp=8") -> Any:
    """What to restore `tree` to."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings(tree, layout),
    )


def bits(tree: Any) -> dict[str, bytes]:
    """Every leaf's bytes: NaN equals NaN here, and 0 does not equal -0."""
    keys = jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
        tree,
    )
    return {name: np.asarray(x).tobytes() for name, x in named(keys).items()}


def restored(directory: Path, report: Callable[[str], None] = pytest.fail) -> tuple[int, Any, Any]:
    """The newest checkpoint of a `make_state`."""
    with Checkpointer(directory, Checkpoint(), report) as reader:
        found = reader.restore(target(SHAPES))
    assert found is not None
    return found


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints 10 and 20, of the states with seeds 10 and 20."""
    directory = tmp_path_factory.mktemp("saved")
    with Checkpointer(directory, Checkpoint(), pytest.fail) as writer:
        for step in (10, 20):
            writer.save(step, make_state(step), EXTRA)
    return directory


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """A copy of `saved` to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_state_comes_back_bit_for_bit_on_any_mesh(saved: Path, layout: str) -> None:
    state, wanted = make_state(20), target(SHAPES, layout)
    with Checkpointer(saved, Checkpoint(), pytest.fail) as reader:
        found = reader.restore(wanted)
    assert found is not None
    step, back, extra = found
    assert (step, extra) == (20, EXTRA)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    assert bits(back) == bits(state)
    assert [x.sharding for x in named(back).values()] == [
        x.sharding for x in named(wanted).values()
    ]


def test_names_on_disk_do_not_depend_on_the_mesh(saved: Path, tmp_path: Path) -> None:
    with Checkpointer(tmp_path, Checkpoint(), pytest.fail) as writer:
        writer.save(20, make_state(20, "data=4 tensor=2"), EXTRA)
    contents = [json.loads((d / "20/contents.json").read_text()) for d in (saved, tmp_path)]
    assert contents[0] == contents[1]
    assert contents[0]["tensors"]["params/layers/wq_DN"] == "float32[8,16]"
    assert contents[0]["tensors"]["optimizer/0/mu/layers/gain_D"] == "bfloat16[8]"
    assert bits(restored(tmp_path)[1]) == bits(make_state(20))


def test_a_part_of_the_state_can_be_read_alone(saved: Path) -> None:
    params = make_state(20).params
    with Checkpointer(saved, Checkpoint(), pytest.fail) as reader:
        found = reader.restore(target(params, "one device"), within="params")
    assert found is not None
    assert bits(found[1]) == bits(params)


def test_a_step_may_donate_the_state_as_soon_as_save_returns(tmp_path: Path) -> None:
    state, wanted = make_state(1), bits(make_state(1))
    negated = jax.jit(lambda p: jax.tree.map(jnp.negative, p), donate_argnums=0)
    with Checkpointer(tmp_path, Checkpoint(), pytest.fail) as writer:
        writer.save(1, state, EXTRA)
        jax.block_until_ready(negated(state.params))
    assert bits(restored(tmp_path)[1]) == wanted


def newest_file(directory: Path) -> Path:
    """The file of checkpoint 20 that holds the tensors."""
    return max((directory / "20/state").rglob("*/d/*"), key=lambda path: path.stat().st_size)


def flip_a_bit(directory: Path) -> None:
    path = newest_file(directory)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def truncate(directory: Path) -> None:
    newest_file(directory).write_bytes(newest_file(directory).read_bytes()[:-1])


def remove_a_file(directory: Path) -> None:
    newest_file(directory).unlink()


def change_extra(directory: Path) -> None:
    path = directory / "20/contents.json"
    path.write_text(path.read_text().replace("1e-09", "2e-09"))


def tear_the_manifest(directory: Path) -> None:
    path = directory / "20/manifest.json"
    path.write_text(path.read_text()[:-20])


def remove_the_manifest(directory: Path) -> None:
    """Killed after Orbax had committed: nothing vouches for the files."""
    (directory / "20/manifest.json").unlink()


def leave_only_part_of_the_tensors(directory: Path) -> None:
    """Killed while Orbax was writing."""
    remove_the_manifest(directory)
    (directory / "20/state").rename(directory / "20/state.orbax-checkpoint-tmp")


def make_an_empty_step(directory: Path) -> None:
    shutil.rmtree(directory / "20")
    (directory / "20").mkdir()


def rename_an_older_one(directory: Path) -> None:
    shutil.rmtree(directory / "20")
    shutil.copytree(directory / "10", directory / "20")


SPOILS = [
    flip_a_bit,
    truncate,
    remove_a_file,
    change_extra,
    tear_the_manifest,
    remove_the_manifest,
    leave_only_part_of_the_tensors,
    make_an_empty_step,
    rename_an_older_one,
]


@pytest.mark.parametrize("spoil", SPOILS)
def test_an_unreadable_checkpoint_is_reported_and_the_one_before_restored(
    copied: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(copied)
    said: list[str] = []
    step, state, extra = restored(copied, said.append)
    assert (step, extra) == (10, EXTRA)
    assert bits(state) == bits(make_state(10))
    assert len(said) == 1
    assert f"{copied}/20 cannot be used" in said[0]
    assert said[0].endswith("going back to checkpoint 10.")


def test_a_flipped_bit_anywhere_is_found(copied: Path) -> None:
    names = json.loads((copied / "20/manifest.json").read_text())["files"]
    assert set(names) == {
        path.relative_to(copied / "20").as_posix()
        for path in (copied / "20").rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    for name in names:
        path = copied / "20" / name
        data = path.read_bytes()
        assert names[name][0] == len(data)
        path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        assert name in manifest.fault(checkpoint.absolute(copied / "20"), 0, 1)
        path.write_bytes(data)
    assert manifest.fault(checkpoint.absolute(copied / "20"), 0, 1) == ""


def test_processes_share_the_checksums_without_a_gap(copied: Path) -> None:
    directory = checkpoint.absolute(copied / "20")
    before = (directory / "manifest.json").read_text()
    (directory / "manifest.json").unlink()
    for process in range(3):
        manifest.write_part(directory, process, 3)
    manifest.join(directory, 3)
    assert (directory / "manifest.json").read_text() == before
    flip_a_bit(copied)
    assert sum(manifest.fault(directory, process, 4) != "" for process in range(4)) == 1


def test_when_every_checkpoint_is_damaged_the_run_stops(copied: Path) -> None:
    flip_a_bit(copied)
    (copied / "10/contents.json").unlink()
    said: list[str] = []
    with pytest.raises(Mistake, match=f"No checkpoint in {copied} can be used.* 20 "):
        restored(copied, said.append)
    assert len(said) == 2


def test_a_first_save_that_was_interrupted_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "9" / "state.orbax-checkpoint-tmp").mkdir(parents=True)
    said: list[str] = []
    with Checkpointer(tmp_path, Checkpoint(), said.append) as both:
        assert both.restore(target(SHAPES)) is None
        assert said == [said[0]]
        assert "no older one" in said[0]
        assert both.latest() is None
        both.save(9, make_state(9), EXTRA)
        both.wait()
        assert both.latest() == 9
    assert restored(tmp_path)[0] == 9


def test_where_nothing_was_saved_there_is_nothing_to_restore(tmp_path: Path) -> None:
    with Checkpointer(tmp_path / "new", Checkpoint(), pytest.fail) as reader:
        assert reader.restore(target(SHAPES)) is None
        assert reader.latest() is None


def without_gain(state: State) -> State:
    return replace(
        state, params=state.params | {"layers": {"wq_DN": state.params["layers"]["wq_DN"]}}
    )


def with_bias(state: State) -> State:
    return replace(state, params=state.params | {"bias_D": state.params["layers"]["gain_D"]})


def wider(state: State) -> State:
    return replace(state, params=state.params | {"embed_VD": jnp.zeros((16, 16))})


def half(state: State) -> State:
    return replace(state, params=state.params | {"embed_VD": jnp.zeros((16, 8), jnp.bfloat16)})


def with_sgd(state: State) -> State:
    return replace(state, optimizer=optax.sgd(1e-3, momentum=0.9).init(state.params))


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (without_gain, "params/layers/gain_D is bfloat16[8] in it and not in this run"),
        (with_bias, "params/bias_D is not in it and bfloat16[8] in this run"),
        (wider, "params/embed_VD is float32[16,8] in it and float32[16,16] in this run"),
        (half, "params/embed_VD is float32[16,8] in it and bfloat16[16,8] in this run"),
        (with_sgd, "optimizer/0/trace/embed_VD is not in it and float32[16,8] in this run"),
    ],
)
def test_another_model_is_a_mistake_that_names_the_tensor(
    saved: Path, change: Callable[[State], State], difference: str
) -> None:
    with Checkpointer(saved, Checkpoint(), pytest.fail) as reader, pytest.raises(Mistake) as error:
        reader.restore(target(jax.eval_shape(change, SHAPES)))
    assert difference in str(error.value)


def steps_left(directory: Path) -> list[int]:
    return sorted(int(path.name) for path in directory.iterdir())


def test_the_newest_stay_and_every_so_often_one_for_good(tmp_path: Path) -> None:
    state = make_state(0)
    with Checkpointer(tmp_path, Checkpoint(every=5, keep=2, keep_every=10), pytest.fail) as writer:
        for step in (5, 10, 15, 20, 25, 30):
            writer.save(step, state, EXTRA)
            writer.wait()
            assert writer.latest() == step
    assert steps_left(tmp_path) == [10, 20, 25, 30]


def test_an_old_one_stays_until_the_new_one_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        assert steps_left(tmp_path) == [1, 2]
        raise OSError(28, "No space left on device")

    with Checkpointer(tmp_path, Checkpoint(keep=1), pytest.fail) as writer:
        writer.save(1, make_state(1), EXTRA)
        writer.wait()
        monkeypatch.setattr(manifest, "join", fail)
        writer.save(2, make_state(2), EXTRA)
        with pytest.raises(Mistake, match=r"2 cannot be written \(No space left on device, with "):
            writer.wait()
        monkeypatch.undo()
        assert writer.latest() == 1
        writer.save(2, make_state(2), EXTRA)
    assert steps_left(tmp_path) == [2]


def test_a_complete_one_survives_trouble_with_the_old_ones(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    said: list[str] = []
    with Checkpointer(copied, Checkpoint(keep=1), said.append) as writer:
        monkeypatch.setattr(manifest, "remove", fail)
        writer.save(30, make_state(30), EXTRA)
        writer.wait()
        assert [sentence.split(" (")[0] for sentence in said] == [
            f"{copied}/{step} cannot be deleted" for step in (10, 20)
        ]
        monkeypatch.undo()
        monkeypatch.setattr(writer, "_prune", fail)
        writer.save(40, make_state(40), EXTRA)
        with pytest.raises(Mistake, match="Input/output error"):
            writer.wait()
        assert writer.latest() == 40


def test_an_unreadable_one_does_not_count_as_kept(copied: Path) -> None:
    flip_a_bit(copied)
    with Checkpointer(copied, Checkpoint(keep=2), lambda _: None) as both:
        assert both.restore(target(SHAPES)) is not None
        both.save(15, make_state(15), EXTRA)
        both.wait()
        assert steps_left(copied) == [10, 15, 20]
        both.save(20, make_state(20), EXTRA)
    assert steps_left(copied) == [15, 20]
    assert bits(restored(copied)[1]) == bits(make_state(20))


def test_a_step_is_not_saved_twice(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Checkpointer(copied, Checkpoint(), pytest.fail) as both:
        both.restore(target(SHAPES))
        monkeypatch.setattr(TensorStore, "save", pytest.fail)
        both.save(20, make_state(20), EXTRA)
        monkeypatch.undo()
        both.save(30, make_state(30), EXTRA)
        monkeypatch.setattr(TensorStore, "save", pytest.fail)
        both.save(30, make_state(30), EXTRA)


def test_a_failed_background_save_is_raised_at_the_next_step(tmp_path: Path) -> None:
    # One array in one piece: TensorStore reports the first failed piece and drops the others' loop.
    big = {"x": jax.device_put(np.frombuffer(np.random.default_rng(0).bytes(1 << 20), np.float32))}
    said: list[str] = []
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpointer(tmp_path, Checkpoint(), said.append) as writer:
        writer.save(1, big, {})
        writer.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            writer.save(2, big, {})
            with pytest.raises(Mistake, match=rf"{tmp_path}/2 cannot be .*bytes free"):
                for _ in range(1000):
                    writer.check()
                    time.sleep(0.01)
            assert steps_left(tmp_path) == [1]  # what was written went, to free the disk
            writer.check()
            with pytest.raises(RuntimeError, match="the loop's own"), writer:
                writer.save(3, big, {})
                raise RuntimeError("the loop's own")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "3 cannot be written" in said[0]
    with Checkpointer(tmp_path, Checkpoint(), said.append) as reader:
        found = reader.restore({"x": target(big["x"], "one device")})
    assert found is not None
    assert bits(found[1]) == bits(big)


def test_a_disk_without_room_is_a_mistake_before_anything_is_written(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "free_bytes", lambda _: 100)
    with Checkpointer(copied, Checkpoint(), pytest.fail) as writer:
        with pytest.raises(Mistake, match=rf"takes 3,136 bytes and {copied} has 100 free"):
            writer.save(30, make_state(30), EXTRA)
        with pytest.raises(Mistake, match="100 free"):
            writer.check_room(target(SHAPES))
    assert steps_left(copied) == [10, 20]


def test_a_path_that_cannot_be_a_directory_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        Checkpointer(tmp_path / "file", Checkpoint(), pytest.fail) as writer,
        pytest.raises(Mistake, match="file/1 cannot be written"),
    ):
        writer.save(1, make_state(1), EXTRA)


@pytest.mark.parametrize(
    ("node", "names"),
    [
        (Checkpoint(every=0), "checkpoint.every"),
        (Checkpoint(keep=0), "checkpoint.keep"),
        (Checkpoint(timeout=0), "checkpoint.timeout"),
        (Checkpoint(every=100, keep_every=250), "checkpoint.keep_every is 250 .*every is 100"),
    ],
)
def test_fields_out_of_range_are_mistakes(node: Checkpoint, names: str) -> None:
    with pytest.raises(Mistake, match=names):
        node.check()
    Checkpoint(every=100, keep=1, keep_every=300).check()


def test_a_newer_format_is_a_mistake(copied: Path) -> None:
    path = copied / "20/manifest.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(Mistake, match="format 2"):
        restored(copied)


def test_two_leaves_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="a/b"):
        named({"a/b": 1, "a": {"b": 2}})


SAVE_UNTIL_KILLED = """
import itertools, sys
import numpy as np, jax
from pretrain.checkpoint import Checkpoint, Checkpointer
from pretrain.tensors import warm
assert "orbax.checkpoint" not in sys.modules  # 0.3 s that the first step need not wait for
warm()
with Checkpointer(sys.argv[1], Checkpoint(keep=1), print) as writer:
    for step in itertools.count(1):
        x = jax.device_put(np.full(4_000_000, step, np.float32))
        writer.save(step, {"x": x}, {"step": step})
        print(step, flush=True)
"""


def test_a_kill_in_the_middle_of_a_save_leaves_the_one_before(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SAVE_UNTIL_KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        while writer.stdout.readline() != "3\n":  # 2 is complete and 3 on its way
            assert writer.poll() is None
        writer.send_signal(signal.SIGKILL)
    x = jax.ShapeDtypeStruct((4_000_000,), jnp.float32)
    with Checkpointer(tmp_path, Checkpoint(), lambda _: None) as reader:
        found = reader.restore({"x": target(x, "one device")})
    assert found is not None
    step, state, extra = found
    assert step >= 2
    assert extra == {"step": step}
    assert bool((state["x"] == step).all())


TWO_PROCESSES = """
import pathlib, sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
process, port, directory = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
from pretrain.checkpoint import Checkpoint, Checkpointer
from pretrain.sharding import Mesh

mesh = Mesh(fsdp=4).build()
split = NamedSharding(mesh, PartitionSpec("fsdp"))
said = []
with jax.set_mesh(mesh), Checkpointer(directory, Checkpoint(), said.append) as both:
    for step in (1, 2):
        host = np.full((8, 3), step, np.float32)
        x = jax.make_array_from_callback(host.shape, split, lambda index: host[index])
        both.save(step, {"x": x}, {"step": step})
    both.wait()
    if process == 1:  # the first file of this process's share
        files = sorted(f for f in (directory / "2").rglob("*") if f.is_file())
        files = [f for f in files if not f.name.startswith("manifest")]
        files[1].write_bytes(files[1].read_bytes() + b"x")
    jax.experimental.multihost_utils.sync_global_devices("spoilt")
    step, state, extra = both.restore(
        {"x": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split)}
    )
    assert (step, extra, len(said)) == (1, {"step": 1}, 1), (step, extra, said)
    assert files[1].name in said[0] if process == 1 else "going back to checkpoint 1" in said[0]
    assert all((np.asarray(s.data) == 1).all() for s in state["x"].addressable_shards)
    both.save(2, {"x": x}, {"step": 2})
    both.wait()
"""


@pytest.mark.slow
def test_two_processes_write_one_checkpoint_and_fall_back_together(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", TWO_PROCESSES]
    both = [
        subprocess.Popen([*command, str(process), port, str(tmp_path)], stderr=subprocess.PIPE)
        for process in range(2)
    ]
    try:
        errors = [process.communicate(timeout=120)[1].decode() for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], "\n".join(errors)
    with Checkpointer(tmp_path, Checkpoint(), pytest.fail) as reader:
        x = jax.ShapeDtypeStruct((8, 3), jnp.float32)
        found = reader.restore({"x": target(x, "one device")})
    assert found is not None
    assert found[0] == 2
    assert bool((found[1]["x"] == 2).all())
