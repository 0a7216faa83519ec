"""Ring attention: each device keeps its queries while keys and values travel around the axis `seq`.

Liu, Zaharia and Abbeel 2023, arXiv:2310.01889. Where all-gather context parallelism holds the keys
and values of all positions on every device, a ring holds those of two shards, and the next ones
travel while the present ones are computed.
"""

from dataclasses import dataclass
from typing import Any

import jax

from pretrain.kernels.attention import Attention, Demand, Plain
from pretrain.kernels.blockwise import check_block, spread
from pretrain.kernels.drop import Drop
from pretrain.kernels.mask import Mask
from pretrain.kernels.online import Visit
from pretrain.sharding import spec, ways


@dataclass(frozen=True, kw_only=True)
class Around:
    """The route by which shards travel: at stop r, device d has what device d - r started with."""

    axes: str | tuple[str, ...]  # mesh axes that split the sequence
    size: int  # devices in the ring
    stops: int  # shards that a device gets to see, its own first

    def __call__(self, visit: Visit, carry: Any, travel: Any) -> tuple[Any, Any]:
        """Visit at every stop, with a hop between any two.

        Keys leave a visit as they came: their hop has nothing to wait for and overlaps with it.
        """

        def stop(state: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
            carry, travel = visit(*state)
            return (carry, self._hop(travel, 1)), None

        (carry, travel), _ = jax.lax.scan(stop, (carry, travel), None, length=self.stops - 1)
        return visit(carry, travel)

    def home(self, travel: Any) -> Any:
        """From the last stop to where it started, in one hop."""
        return self._hop(travel, 1 - self.stops)

    def _hop(self, travel: Any, by: int) -> Any:
        to = [(device, (device + by) % self.size) for device in range(self.size)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axes, to), travel)


class Ring(Attention):
    """Ring attention in tiles, as far around as the mask reaches: a window stops the ring early.

    Memory per device is O(T / shards x block); for the gradient keys, values and their gradients in
    fp32 go around once more. Device d of a causal ring has only d + 1 shards to compute and
    then waits for the last: nearly half of the devices' time is idle unless a window evens it out.
    """

    block: int = 512  # queries and keys of a tile, at most
    alone: Attention = Plain()  # what computes where one device holds a whole sequence

    def __call__(
        self, q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, segments_BT: jax.Array | None,
        mask: Mask, drop: Drop | None = None,
    ) -> jax.Array:  # fmt: skip
        """See `Attention`."""
        if ways("seq") == 1:
            return self.alone(q_BTNH, k_BSKH, v_BSKH, segments_BT, mask, drop)
        return spread(
            q_BTNH, k_BSKH, v_BSKH, segments_BT, mask, drop,
            block=self.block, positions="seq", route=self.route(mask, q_BTNH.shape[1]),
        )  # fmt: skip

    def describe(self) -> str:
        """What runs, for the start banner."""
        return f"ring over mesh axis seq in tiles of {self.block}; alone: {self.alone.describe()}"

    def check(self, demand: Demand) -> None:
        """Raise Mistake with the reason where this kernel cannot do what is asked."""
        super().check(demand)
        if demand.shards == 1:
            self.alone.check(demand)
        else:
            check_block(self.block, demand)

    def route(self, mask: Mask, positions: int) -> Around:
        """Around the mesh axis `seq`, as far as the mask reaches in sequences of so many positions."""
        size = ways("seq")
        stops = self.stops(mask, positions // size, size)
        return Around(axes=spec("seq")[0], size=size, stops=stops)

    def stops(self, mask: Mask, local: int, size: int) -> int:
        """How many shards a device visits: up to the farthest that any of them needs."""

        def needed(hops: int) -> bool:
            pairs = ((d * local, (d - hops) % size * local) for d in range(size))
            return any(mask.reaches(i, i + local - 1, j, j + local - 1) for i, j in pairs)

        return 1 + max(hops for hops in range(size) if needed(hops))
