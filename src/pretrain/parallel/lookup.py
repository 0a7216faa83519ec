"""Rows of a table that is split by rows: every device looks up those that it holds.

The parts are summed over the axes that split the vocabulary, as in Megatron-LM (Shoeybi et al., arXiv
1909.08053, section 3): the table is never whole on a device. Gradients of rows are added in fp32,
whatever the dtype of the activations: a frequent token's are thousands of small terms.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pretrain.sharding import axes_of, gathered, scatter, spec, ways

IDS, ROWS = "batch seq", "batch seq -"


def rows(table_VD: Any, ids_BT: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Rows of a parameter ("vocab -> embed") by id, [B, T, D] in `dtype`, positions split over `seq`.

    Ids must be below V.
    """
    return _rows(jnp.dtype(dtype), table_VD[...], ids_BT)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rows(dtype: jnp.dtype, table_VD: jax.Array, ids_BT: jax.Array) -> jax.Array:
    table_VD, axes = gathered(table_VD.astype(dtype)), axes_of("vocab")
    if not axes:
        return table_VD.at[ids_BT].get(out_sharding=spec(ROWS))

    def local(table_VD: jax.Array, ids_BT: jax.Array) -> jax.Array:
        row_BT = _held(ids_BT, table_VD.shape[0], axes)
        return jax.lax.psum(table_VD.at[row_BT].get(mode="fill", fill_value=0), axes)

    looked_up = jax.shard_map(local, in_specs=(spec("vocab -"), spec(IDS)), out_specs=spec(ROWS))
    return looked_up(table_VD, ids_BT)


def _forward(
    dtype: jnp.dtype, table_VD: jax.Array, ids_BT: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _rows(dtype, table_VD, ids_BT), (table_VD, ids_BT)


def _backward(
    dtype: jnp.dtype, kept: tuple[jax.Array, jax.Array], dx_BTD: jax.Array
) -> tuple[jax.Array, None]:
    table_VD, ids_BT = kept
    stored = jax.typeof(table_VD).sharding.spec
    split, add_up = axes_of("vocab"), scatter("vocab -> embed")
    shape = table_VD.shape[0] // ways("vocab"), table_VD.shape[1]

    def local(dx_BTD: jax.Array, ids_BT: jax.Array) -> jax.Array:
        row_BT = _held(ids_BT, shape[0], split)
        grad_VD = jnp.zeros(shape, table_VD.dtype).at[row_BT].add(dx_BTD, mode="drop")
        return add_up(grad_VD)

    dx_BTD = dx_BTD.astype(table_VD.dtype)
    if not (axes_of(IDS) or axes_of("vocab -> embed")):
        return local(dx_BTD, ids_BT), None
    scattered = jax.shard_map(local, in_specs=(spec(ROWS), spec(IDS)), out_specs=stored)
    return scattered(jax.sharding.reshard(dx_BTD, spec(ROWS)), ids_BT), None


_rows.defvjp(_forward, _backward)


def _held(ids_BT: jax.Array, rows: int, axes: tuple[str, ...]) -> jax.Array:
    """Where this device has the rows of these ids: past its last row if it has not."""
    row_BT = ids_BT - (jax.lax.axis_index(axes) * rows if axes else 0)
    return jnp.where((row_BT >= 0) & (row_BT < rows), row_BT, rows)
