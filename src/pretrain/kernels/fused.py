"""The fastest attention kernel of the platform that a run is compiled for."""

import logging

import jax

from pretrain.config import Mistake
from pretrain.kernels.attention import Attention, Demand
from pretrain.kernels.blockwise import Blockwise
from pretrain.kernels.cudnn import Cudnn
from pretrain.kernels.drop import Drop
from pretrain.kernels.mask import Mask
from pretrain.kernels.splash import Splash
from pretrain.sharding import ways


class Fused(Attention):
    """Another kernel on each platform.

    What `tpu` cannot do ends the run with the reason. What `gpu` cannot do, `elsewhere` does, and the
    reason is said.
    """

    tpu: Attention = Splash()  # on TPUs
    gpu: Attention = Cudnn()  # on GPUs, where it can do what is asked
    elsewhere: Attention = Blockwise()  # on CPUs, and on GPUs for what `gpu` cannot do

    def __call__(
        self, q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, segments_BT: jax.Array | None,
        mask: Mask, drop: Drop | None = None,
    ) -> jax.Array:  # fmt: skip
        """See `Attention`."""
        chosen = self.on(asked(q_BTNH, k_BSKH, segments_BT, mask, drop))
        return chosen(q_BTNH, k_BSKH, v_BSKH, segments_BT, mask, drop)

    def on(self, demand: Demand) -> Attention:
        """The kernel for what is asked."""
        if demand.platform == "tpu":
            return self.tpu
        return self.gpu if demand.platform == "gpu" and not self.refusal(demand) else self.elsewhere

    def refusal(self, demand: Demand) -> str:
        """Why `gpu` cannot do what is asked, "" where it can."""
        try:
            self.gpu.check(demand)
        except Mistake as mistake:
            return str(mistake)
        return ""

    def describe(self) -> str:
        """What runs, for the start banner."""
        kernels = {
            "tpu": self.tpu.describe(),
            "gpu": f"{self.gpu.describe()}; for what it refuses, {self.elsewhere.describe()}",
        }
        return kernels.get(platform(), self.elsewhere.describe())

    def check(self, demand: Demand) -> None:
        """Raise Mistake with the reason where no kernel can do what is asked; say what is slower."""
        chosen = self.on(demand)
        chosen.check(demand)
        if demand.platform == "gpu" and chosen is self.elsewhere:
            logging.getLogger(__name__).warning(
                "attention: %s, because %s", chosen.describe(), self.refusal(demand)
            )


def asked(
    q_BTNH: jax.Array, k_BSKH: jax.Array, segments_BT: jax.Array | None, mask: Mask, drop: Drop | None
) -> Demand:  # fmt: skip
    """What a call asks of the kernel, on the current mesh."""
    _, T, N, H = q_BTNH.shape
    return Demand(
        positions=T, heads=N, kv_heads=k_BSKH.shape[2], head_dim=H, mask=mask,
        segments=segments_BT is not None, dtype=q_BTNH.dtype, platform=platform(),
        shards=ways("seq"), dropout=drop.rate if drop else 0.0,
    )  # fmt: skip


def platform() -> str:
    """Of the devices of the current mesh, or of the default backend where it has none."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform
