"""Mesh sizes, the table from logical to mesh axes, and what is refused by name."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from pretrain.config import Mistake
from pretrain.models.init import normal, ones
from pretrain.sharding import Mesh, Rules, gathered, lay, param, spec, split, use, ways
from tiny import Axes, on

MIXED: Axes = (("fsdp", 2), ("seq", 2), ("tensor", 2))


# --- meshes -----------------------------------------------------------------------------------------


def test_one_open_axis_takes_the_devices_that_the_others_leave() -> None:
    assert list(Mesh().sizes(8).items()) == [
        ("replica", 1), ("data", 1), ("fsdp", 8), ("seq", 1), ("tensor", 1),
    ]  # fmt: skip
    assert Mesh(tensor=2).sizes(8)["fsdp"] == 4
    assert Mesh(fsdp=2, data=-1, replica=2).sizes(12)["data"] == 3
    assert Mesh(tensor=8).sizes(8)["fsdp"] == 1
    sizes = {"replica": 2, "data": 3, "fsdp": 5, "seq": 7, "tensor": 11}
    assert Mesh(**sizes).sizes(2310) == sizes


@pytest.mark.parametrize(
    ("axes", "devices", "sentence"),
    [
        ({"data": -1}, 8, "mesh.data and mesh.fsdp are both -1: only one axis can be the rest."),
        ({"tensor": 0}, 8, "mesh.tensor is 0: an axis has 1 or more devices, or -1 for the rest."),
        ({"seq": -2}, 8, "mesh.seq is -2: an axis has 1 or more devices, or -1 for the rest."),
        (
            {"tensor": 3}, 8,
            "mesh (fsdp=-1, tensor=3) needs a multiple of 3 devices and there are 8: choose axis sizes "
            "whose product divides 8 ([1, 2, 4, 8]), one axis may be -1 for the rest.",
        ),
        ({"fsdp": 2, "data": 2}, 8, "mesh (data=2, fsdp=2) needs 4 devices and there are 8"),
        ({"fsdp": 4, "data": 4}, 8, "mesh (data=4, fsdp=4) needs 16 devices and there are 8"),
        ({"fsdp": 1}, 8, "mesh (all 1) needs 1 devices and there are 8"),
        ({"tensor": 16}, 8, "mesh (fsdp=-1, tensor=16) needs a multiple of 16 devices and there are 8"),
    ],
)  # fmt: skip
def test_axes_that_do_not_fit_the_devices_are_a_mistake(
    axes: dict[str, int], devices: int, sentence: str
) -> None:
    with pytest.raises(Mistake) as raised:
        Mesh(**axes).sizes(devices)
    assert str(raised.value).startswith(sentence)


def test_a_mesh_holds_every_device_once_on_explicit_axes() -> None:
    mesh = Mesh(seq=2, tensor=2).build()
    assert dict(mesh.shape) == {"replica": 1, "data": 1, "fsdp": 2, "seq": 2, "tensor": 2}
    assert sorted(device.id for device in mesh.devices.flat) == list(range(8))
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Explicit}
    abstract = Mesh(seq=2, tensor=2).abstract(8)
    assert abstract.shape == mesh.shape and abstract.axis_types == mesh.axis_types


def test_slices_are_joined_by_the_axis_replica() -> None:
    class Device:
        def __init__(self, device: jax.Device, slice_index: int):
            self._device, self.slice_index = device, slice_index

        def __getattr__(self, name: str) -> Any:
            return getattr(self._device, name)

    devices: Any = [Device(device, i // 4) for i, device in enumerate(jax.devices())]
    with pytest.raises(
        Mistake, match=r"mesh\.replica is 1 and the devices form 2 slices: set it to 2"
    ):
        Mesh().build(devices)
    for replica in Mesh(replica=2, tensor=2).build(devices).devices:
        assert len({device.slice_index for device in replica.flat}) == 1


# --- the table --------------------------------------------------------------------------------------


def test_a_spec_is_the_row_of_each_axis_without_mesh_axes_of_one_device() -> None:
    with on(MIXED):
        assert spec("batch seq heads head_dim") == P(("fsdp",), ("seq",), ("tensor",), None)
        assert spec("batch - kv_heads") == P(("fsdp",), None, ("tensor",))
        assert spec("layers | embed -> mlp") == P(None, ("fsdp",), ("tensor",))
        assert spec("") == P()
        assert ways("batch seq -") == 4 and ways("vocab") == 2 and ways("residual") == 1
    with on((("replica", 2), ("data", 2), ("fsdp", 2)), Rules(residual_seq=("seq", "data"))):
        assert spec("batch") == P(("replica", "data", "fsdp"))
        assert spec("seq residual_seq") == P(None, ("data",))


def test_two_rows_that_split_one_tensor_by_one_axis_are_a_mistake_that_names_both() -> None:
    with on(MIXED, Rules(residual_seq=("seq", "tensor"), residual=("tensor",))):
        sentence = (
            r"rules\.residual_seq and rules\.residual both split by mesh axis 'tensor' in one tensor "
            r"\(batch residual_seq residual\): take 'tensor' out of one of the two rows\."
        )
        with pytest.raises(Mistake, match=sentence):
            spec("batch residual_seq residual")
    with on((("fsdp", 2),), Rules(residual_seq=("seq", "tensor"), residual=("tensor",))):
        assert spec("batch residual_seq residual") == P(("fsdp",), None, None)


def test_a_rule_that_names_no_mesh_axis_is_a_mistake() -> None:
    words = (
        r"rules\.mlp names the mesh axis 'tesnor'; the axes are replica, data, fsdp, seq, tensor"
    )
    with pytest.raises(Mistake, match=words), on(MIXED, Rules(mlp=("tesnor",))):
        pass


def test_rules_hold_where_they_are_used_and_no_longer() -> None:
    with on(MIXED, Rules(mlp=())):
        assert spec("mlp") == P(None)
        with use(jax.sharding.get_mesh(), Rules(mlp=("seq",))):
            assert spec("mlp") == P(("seq",))
        assert spec("mlp") == P(None)


# --- tensors ----------------------------------------------------------------------------------------


def test_a_parameter_is_made_in_its_layout_and_carries_its_axes() -> None:
    with on(MIXED):
        made = param(jax.random.key(0), "embed -> heads head_dim", (4, 2, 3), normal(1.0))
    assert made.get_metadata("dims") == "embed -> heads head_dim"
    assert made[...].sharding.spec == P(("fsdp",), ("tensor",), None)
    assert {shard.data.shape for shard in made[...].addressable_shards} == {(2, 1, 3)}


@pytest.mark.parametrize(
    ("dims", "shape", "sentence"),
    [
        (
            "vocab -> embed", (60, 33),
            r"embed has size 33 in a tensor \(vocab -> embed\) and mesh axis fsdp splits it 2 "
            r"ways: make it a multiple of 2, or set rules\.embed to fewer axes\.",
        ),
        ("mlp", (5,), r"mlp has size 5 in a tensor \(mlp\) and mesh axis tensor splits it 2 ways"),
    ],
)  # fmt: skip
def test_a_parameter_that_does_not_divide_is_a_mistake(
    dims: str, shape: tuple[int, ...], sentence: str
) -> None:
    with on(MIXED), pytest.raises(Mistake, match=sentence):
        param(jax.random.key(0), dims, shape, ones)
    with on():
        assert split(dims, shape) == P(*[None] * len(shape))


def test_a_weight_is_gathered_along_embed_alone() -> None:
    with on(MIXED):
        w = lay(jnp.arange(8.0).reshape(4, 2), "embed mlp")
        whole = gathered(w)
        assert whole.sharding.spec == P(None, ("tensor",))
        np.testing.assert_array_equal(whole, w)


def test_where_a_cpu_has_too_few_devices_the_option_for_more_is_named() -> None:
    with pytest.raises(Mistake, match=r"16 devices and there are 8.*--cpu-devices makes more"):
        Mesh(tensor=16).build()
