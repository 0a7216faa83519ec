"""Rows of a split table against numpy, in value, gradient and layout, and what a device holds of it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from pretrain.parallel.lookup import rows
from pretrain.sharding import Mesh, Rules, lay, use

V, D, B, T = 24, 16, 8, 4
LAYOUTS = [
    ({"fsdp": 8}, Rules()),
    ({"tensor": 8}, Rules()),
    ({"fsdp": 2, "seq": 2, "tensor": 2}, Rules()),
    ({"replica": 2, "data": 2, "fsdp": 2}, Rules()),
    ({"data": 2, "fsdp": 2, "tensor": 2}, Rules(embed=("fsdp", "data"))),
    # D split by an axis that splits no token: nothing to sum over, only a part to keep
    ({"fsdp": 4, "tensor": 2}, Rules(vocab=(), embed=("fsdp", "tensor"))),
    ({"tensor": 2}, Rules(vocab=(), embed=("fsdp", "tensor"))),
    ({"seq": 2, "tensor": 4}, Rules(vocab=("seq", "tensor"), seq=(), residual_seq=())),
    ({"fsdp": 1}, Rules()),
]


def looked_up(sizes: dict[str, int], rules: Rules, dtype: Any, *arguments: Any) -> Any:
    """Rows and the gradient of the table, on a mesh."""
    mesh = Mesh(**({"fsdp": 1} | sizes)).build(jax.devices()[: int(np.prod([*sizes.values()]))])

    def both(table_VD: Any, ids_BT: Any, dx_BTD: Any) -> Any:
        table_VD, ids_BT = lay(table_VD, "vocab -> embed"), lay(ids_BT, "batch seq")
        x_BTD, back = jax.vjp(lambda table: rows(table, ids_BT, dtype), table_VD)
        return x_BTD, *back(lay(dx_BTD.astype(dtype), "batch seq -"))

    with use(mesh, rules):
        return jax.jit(both)(*arguments)


@pytest.mark.parametrize(("sizes", "rules"), LAYOUTS)
def test_rows_and_their_gradients_are_those_of_numpy_on_every_mesh(
    sizes: dict[str, int], rules: Rules
) -> None:
    draw = np.random.default_rng(0)
    table_VD, dx_BTD = draw.normal(size=(V, D)), draw.normal(size=(B, T, D))
    ids_BT = draw.integers(0, V, (B, T)).astype(np.int32)
    ids_BT[0] = 0, V - 1, 5, 5  # the ends of the table, and a row twice in a sequence
    wanted_VD = np.zeros((V, D))
    np.add.at(wanted_VD, ids_BT, dx_BTD)
    table_VD, dx_BTD = table_VD.astype(np.float32), dx_BTD.astype(np.float32)

    x_BTD, grad_VD = looked_up(sizes, rules, jnp.float32, table_VD, ids_BT, dx_BTD)
    np.testing.assert_array_equal(x_BTD, table_VD[ids_BT])
    np.testing.assert_allclose(grad_VD, wanted_VD, atol=1e-6)
    stored = {shard.data.shape for shard in grad_VD.addressable_shards}
    split = sizes.get("fsdp", 1) * sizes.get("tensor", 1)
    assert all(rows * columns <= V * D // split for rows, columns in stored)


@pytest.mark.parametrize("sizes", [{"fsdp": 1}, {"fsdp": 2}, {"tensor": 2}])
def test_gradients_of_a_frequent_row_are_added_in_float32(sizes: dict[str, int]) -> None:
    # In bfloat16, 256 + 1 is 256: the sum of the ones would end there.
    ids_BT, table_VD = np.zeros((8, 512), np.int32), np.ones((2, 4), np.float32)
    x_BTD, grad_VD = looked_up(
        sizes, Rules(), jnp.bfloat16, table_VD, ids_BT, np.ones((8, 512, 4), np.float32)
    )
    assert (x_BTD.dtype, grad_VD.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(grad_VD, [[4096.0] * 4, [0.0] * 4])


def test_no_device_holds_the_rows_of_another_one() -> None:
    mesh = Mesh(fsdp=2, tensor=4).build(jax.devices())

    def loss(table_VD: jax.Array, ids_BT: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(rows(table_VD, ids_BT, jnp.float32)))

    with use(mesh, Rules()):
        table_VD = lay(jnp.zeros((40, 6)), "vocab -> embed")
        ids_BT = lay(jnp.zeros((2, 3), jnp.int32), "batch seq")
        step = jax.jit(jax.value_and_grad(loss)).lower(table_VD, ids_BT).compile()
    assert step.output_shardings[1].spec == P(("tensor",), ("fsdp",))
    assert "f32[10,6]" in step.as_text() and "f32[40," not in step.as_text()
