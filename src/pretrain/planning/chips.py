"""Data sheets of chips: what time and memory are estimated from.

Peaks are in `flops.py`, by JAX's name for a device, where a run's MFU takes them from too. "Scaling"
is Austin et al., How to Scale Your Model (2025), chapter 2; the rest are the vendors' own pages.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pretrain.config import Mistake, nearest

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One kind of accelerator. Rates are per second, of one chip, in one direction."""

    name: str  # as in --topology
    kind: str  # JAX's name for its devices
    platform: str  # "tpu"
    dims: int  # of the torus that a slice is; 1 where a switch joins the chips of a host
    largest: tuple[int, ...]  # slice, or hosts and chips a host
    clock: float | None  # cycles in which the compiler states its estimates, None where it does not
    hbm_bytes: int  # what a program may use, of one device
    hbm_bandwidth: float  # bytes, of one device
    link_bandwidth: float  # bytes through one link of the torus, or to the switch
    network_bandwidth: float  # bytes a chip, between slices or hosts
    host: int  # chips a host
    devices: int = 1  # JAX devices a chip
    options: Mapping[str, object] = ()  # type: ignore[assignment]  # for libtpu, beside the layout
    source: str = ""


TPUS = (
    Chip(
        name="v4", kind="TPU v4", platform="tpu", dims=3, largest=(16, 16, 16), clock=1.05e9,
        hbm_bytes=int(30.75 * GIB), hbm_bandwidth=1.228e12, link_bandwidth=45e9,
        network_bandwidth=6.25e9, host=4,
        options={"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)},
        source="Jouppi et al. 2023 (arXiv 2304.01433), table 4; Scaling",
    ),
    Chip(
        name="v5e", kind="TPU v5 lite", platform="tpu", dims=2, largest=(16, 16), clock=1.5e9,
        hbm_bytes=int(15.75 * GIB), hbm_bandwidth=8.1e11, link_bandwidth=45e9,
        network_bandwidth=3.125e9, host=8, source="Google Cloud TPU v5e; Scaling",
    ),
    Chip(
        name="v5p", kind="TPU v5", platform="tpu", dims=3, largest=(16, 20, 28), clock=1.75e9,
        hbm_bytes=int(95.74 * GIB), hbm_bandwidth=2.765e12, link_bandwidth=90e9,
        network_bandwidth=6.25e9, host=4, source="Google Cloud TPU v5p; Scaling",
    ),
    Chip(
        name="v6e", kind="TPU v6 lite", platform="tpu", dims=2, largest=(16, 16), clock=1.75e9,
        hbm_bytes=int(31.25 * GIB), hbm_bandwidth=1.64e12, link_bandwidth=90e9,
        network_bandwidth=12.5e9, host=8, source="Google Cloud TPU v6e; Scaling",
    ),
)  # fmt: skip
CHIPS = {chip.name: chip for chip in TPUS}


def chip(name: str) -> Chip:
    """The data sheet of a chip. Raises Mistake for one that has none."""
    if name not in CHIPS:
        raise Mistake(f"--topology names the chip {name!r}{nearest(name, CHIPS)}.")
    return CHIPS[name]
