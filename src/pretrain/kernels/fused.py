"""The fastest attention kernel of the platform that a run is compiled for."""

import jax

from pretrain.kernels.attention import Attention, Demand
from pretrain.kernels.blockwise import Blockwise
from pretrain.kernels.mask import Mask
from pretrain.kernels.splash import Splash


class Fused(Attention):
    """Another kernel on each platform; what the one in use cannot do ends the run with the reason."""

    tpu: Attention = Splash()  # on TPUs
    elsewhere: Attention = Blockwise()  # on CPUs and GPUs

    def __call__(
        self,
        q_BTNH: jax.Array,
        k_BSKH: jax.Array,
        v_BSKH: jax.Array,
        segments_BT: jax.Array | None,
        mask: Mask,
    ) -> jax.Array:
        """See `Attention`."""
        return self.on(platform())(q_BTNH, k_BSKH, v_BSKH, segments_BT, mask)

    def on(self, platform: str) -> Attention:
        """The kernel of a platform."""
        return self.tpu if platform == "tpu" else self.elsewhere

    def describe(self) -> str:
        """What runs, for the start banner."""
        return self.on(platform()).describe()

    def check(self, demand: Demand) -> None:
        """Raise Mistake with the reason where this kernel cannot do what is asked."""
        self.on(demand.platform).check(demand)


def platform() -> str:
    """Of the devices of the current mesh, or of the default backend where it has none."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform
