"""Attention block by block in jnp, in memory O(T block): for sequences too long for `Plain`."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pretrain.config import Mistake
from pretrain.kernels.attention import Attention, Demand, groups, same_positions, shared
from pretrain.kernels.drop import Drop
from pretrain.kernels.mask import Mask
from pretrain.kernels.online import Keys, Queries, Route, Visit, attend
from pretrain.sharding import lay, mesh_axes, spec


@dataclass(frozen=True)
class Here:
    """All keys are on the device."""

    def __call__(self, visit: Visit, carry: Any, travel: Any) -> tuple[Any, Any]:
        """One visit."""
        return visit(carry, travel)

    def home(self, travel: Any) -> Any:
        """It never left."""
        return travel


class Blockwise(Attention):
    """Tiles of logits that are recomputed for the gradient: memory O(T block), not O(T S).

    Where the mesh splits the sequence, queries stay split and keys and values are gathered.
    """

    block: int = 512  # queries and keys of a tile, at most

    def __call__(
        self, q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, segments_BT: jax.Array | None,
        mask: Mask, drop: Drop | None = None,
    ) -> jax.Array:  # fmt: skip
        """See `Attention`."""
        return spread(
            q_BTNH, k_BSKH, v_BSKH, segments_BT, mask, drop,
            block=self.block, positions="kv_seq", route=Here(),
        )  # fmt: skip

    def describe(self) -> str:
        """What runs, for the start banner."""
        return f"jnp in tiles of {self.block}, keys and values gathered along the sequence"

    def check(self, demand: Demand) -> None:
        """Raise Mistake with the reason where this kernel cannot do what is asked."""
        super().check(demand)
        check_block(self.block, demand)


def check_block(block: int, demand: Demand) -> None:
    """Raise Mistake where the positions of a device are no whole number of blocks."""
    local = demand.positions // demand.shards
    if block < 1 or local % min(block, local):
        raise Mistake(
            f"attention.block is {block} and a device holds {local} positions of a sequence: "
            f"choose a block that divides {local}."
        )


def spread(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, segments_BT: jax.Array | None,
    mask: Mask, drop: Drop | None, *, block: int, positions: str, route: Route,
) -> jax.Array:  # fmt: skip
    """Attention on every device, with keys laid out "batch {positions}" that `route` brings."""
    N = same_positions(q_BTNH, k_BSKH)[2]
    k_BSKH, v_BSKH = shared(k_BSKH, N, positions), shared(v_BSKH, N, positions)
    segments_BS = None if segments_BT is None else lay(segments_BT, f"batch {positions}")
    q_spec, k_spec = spec("batch seq heads head_dim"), jax.typeof(k_BSKH).sharding.spec
    slopes_spec, slopes_KG = spec(groups(k_BSKH.shape[2])), None
    if mask.slopes:
        slopes_KG = jnp.asarray(mask.slopes, jnp.float32).reshape(k_BSKH.shape[2], -1)
        slopes_KG = lay(slopes_KG, groups(k_BSKH.shape[2]))
    unvarying = tuple(sorted(mesh_axes(q_spec) - mesh_axes(k_spec)))

    def local(q: Any, k: Any, v: Any, own: Any, seen: Any, slopes: Any, drop: Any) -> jax.Array:
        # Both branches of a tile must vary over the same mesh axes; the transpose sums over these.
        k, v = (jax.lax.pcast(x, unvarying, to="varying") for x in (k, v))
        B, T, N, H = q.shape

        def grouped(x: jax.Array) -> jax.Array:
            return x.reshape(B, T, k.shape[2], -1, *x.shape[3:])

        queries = Queries(
            _blocks(grouped(q), block).transpose(0, 1, 3, 4, 2, 5),
            _blocks(own, block),
            _blocks(_positions(T, q_spec[1]), block)[:, 0],
            _each(slopes, T // min(block, T)),
            jax.tree.map(lambda x: _blocks(grouped(x), block).transpose(0, 1, 3, 4, 2), drop),
        )
        keys = Keys(
            _blocks(k, block).transpose(0, 1, 3, 2, 4),
            _blocks(v, block).transpose(0, 1, 3, 2, 4),
            _blocks(seen, block),
            _blocks(_positions(k.shape[1], k_spec[1]), block)[:, 0],
        )
        a_XBKGTH = attend(mask, route, queries, keys)
        return a_XBKGTH.transpose(1, 0, 4, 2, 3, 5).reshape(B, T, N, H)

    ids = spec("batch seq"), spec(f"batch {positions}")
    in_specs = (q_spec, k_spec, k_spec, *ids, slopes_spec, spec("batch seq heads"))
    run = jax.shard_map(local, in_specs=in_specs, out_specs=q_spec)
    a_BTNH = run(q_BTNH, k_BSKH, v_BSKH, segments_BT, segments_BS, slopes_KG, drop)
    return checkpoint_name(a_BTNH, "attention")


def _blocks(x: Any, block: int) -> Any:
    """[B, T, ...] to [X, B, T / X, ...]: positions in blocks, blocks first. None stays None."""
    if x is None:
        return None
    B, T = x.shape[:2]
    return jnp.moveaxis(x.reshape(B, -1, min(block, T), *x.shape[2:]), 1, 0)


def _each(x: Any, blocks: int) -> Any:
    """The same x for every block, blocks first. None stays None."""
    return None if x is None else jnp.broadcast_to(x, (blocks, *x.shape))


def _positions(count: int, axes: Any) -> jax.Array:
    """[1, T]: the global positions on this device, where these mesh axes split them."""
    shard = jax.lax.axis_index(axes) if axes else 0
    return (shard * count + jnp.arange(count))[None]
