"""Data sheets of chips: what time and memory are estimated from.

Peaks are in `flops.py`, by JAX's name for a device, where a run's MFU takes them from too. "Scaling"
is Austin et al., How to Scale Your Model (2025), chapter 2; the rest are the vendors' own pages.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pretrain.config import Mistake, nearest

GIB, MIB, KIB = 2**30, 2**20, 2**10


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of accelerator. Rates are per second, of one chip, in one direction."""

    name: str  # as in --topology
    kind: str  # JAX's name for its devices
    hbm_bytes: int  # of one device
    hbm_bandwidth: float  # bytes, of one device
    link_bandwidth: float  # bytes through one link of the torus, or to the switch of a host
    network_bandwidth: float  # bytes a chip, between slices or hosts
    host: int  # chips a host
    source: str
    devices: int = 1  # JAX devices a chip
    platform: str = ""  # JAX's name for the platform


@dataclass(frozen=True, kw_only=True)
class Tpu(Chip):
    """A TPU: slices are tori. `hbm_bytes` is what a program may use."""

    dims: int  # of the torus that a slice is
    largest: tuple[int, ...]  # slice
    clock: float  # cycles in which the compiler states its estimates
    die_bandwidth: float = 0.0  # bytes between the devices of a chip that has two
    options: Mapping[str, object] = ()  # type: ignore[assignment]  # for libtpu, beside the layout
    platform: str = "tpu"


@dataclass(frozen=True, kw_only=True)
class Gpu(Chip):
    """A GPU: the chips of a host are joined by switches, and each has a network card.

    `hbm_bytes` is all that the driver shows. The rest is what XLA's GpuTargetConfigProto asks for.
    """

    capability: tuple[int, int]  # CUDA compute capability
    cores: int  # streaming multiprocessors
    lanes: int  # fp32 units of one
    frequency: float  # GHz, at boost
    cache: int  # bytes of L2
    shared: int  # bytes of shared memory of a multiprocessor; a block gets 1 KiB less
    platform: str = "gpu"


TPUS = (
    Tpu(
        name="v4", kind="TPU v4", dims=3, largest=(16, 16, 16), clock=1.05e9,
        hbm_bytes=int(30.75 * GIB), hbm_bandwidth=1.228e12, link_bandwidth=45e9,
        network_bandwidth=6.25e9, host=4,
        options={"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)},
        source="Jouppi et al. 2023 (arXiv 2304.01433), table 4; Scaling",
    ),
    Tpu(
        name="v5e", kind="TPU v5 lite", dims=2, largest=(16, 16), clock=1.5e9,
        hbm_bytes=int(15.75 * GIB), hbm_bandwidth=8.1e11, link_bandwidth=45e9,
        network_bandwidth=3.125e9, host=8, source="Google Cloud TPU v5e; Scaling",
    ),
    Tpu(
        name="v5p", kind="TPU v5", dims=3, largest=(16, 20, 28), clock=1.75e9,
        hbm_bytes=int(95.74 * GIB), hbm_bandwidth=2.765e12, link_bandwidth=90e9,
        network_bandwidth=6.25e9, host=4, source="Google Cloud TPU v5p; Scaling",
    ),
    # The page has 1638 GB/s of HBM, 800 GB/s over 4 ports, both directions together, of which Scaling counts
    # nine tenths, and 25.6 Tbit/s of network for 256 chips; 4 MXUs of 256 x 256 make 918 TFLOP/s at 1.75 GHz.
    Tpu(
        name="v6e", kind="TPU v6 lite", dims=2, largest=(16, 16), clock=1.75e9,
        hbm_bytes=int(31.25 * GIB), hbm_bandwidth=1.64e12, link_bandwidth=90e9,
        network_bandwidth=12.5e9, host=8, source="Google Cloud TPU v6e; Scaling",
    ),
    # The page has 2307 TFLOP/s, 192 GB, 7.38 TB/s and 100 Gbit/s of network a chip, 4 chips a host and 9216
    # a pod (16x24x24 in MaxText's accelerator_to_spec_map.py). A chip is two chiplets, each a device of its
    # own and no half of a megacore; a link has 200 GB/s, both directions together, as the v5p's has, and
    # is taken at the same nine tenths, as MaxText does (docs/guides/optimization/custom_model.md: 12,800
    # FLOPs a byte of one dimension); between the chiplets there are six times a link. The clock is what
    # makes the peak of 4 MXUs of 256 x 256: Google's microbenchmarks measured 950 TFLOP/s of a product of
    # 16384 cubed on one device, for which libtpu's cycles are 978 at this clock. 94.75 GiB is its limit.
    Tpu(
        name="tpu7x", kind="TPU7x", dims=3, largest=(16, 24, 24), clock=2.2e9,
        hbm_bytes=int(94.75 * GIB), hbm_bandwidth=3.69e12, link_bandwidth=90e9,
        die_bandwidth=6 * 90e9, network_bandwidth=12.5e9, host=4, devices=2,
        source="Google Cloud TPU7x (Ironwood)",
    ),
)  # fmt: skip
# Links are NVLink, half of the sheet's figure, which counts both directions; the network is what
# NVIDIA's own DGX systems have: one card a GPU, of 200 Gbit/s beside A100 and of 400 beside the others.
GPUS = (
    Gpu(
        name="a100", kind="NVIDIA A100-SXM4-80GB", hbm_bytes=81_920 * MIB, hbm_bandwidth=2.039e12,
        link_bandwidth=300e9, network_bandwidth=25e9, host=8, capability=(8, 0), cores=108, lanes=64,
        frequency=1.41, cache=40 * MIB, shared=164 * KIB,
        source="NVIDIA A100 80GB SXM data sheet; DGX A100",
    ),
    Gpu(
        name="h100", kind="NVIDIA H100 80GB HBM3", hbm_bytes=81_559 * MIB, hbm_bandwidth=3.35e12,
        link_bandwidth=450e9, network_bandwidth=50e9, host=8, capability=(9, 0), cores=132, lanes=128,
        frequency=1.98, cache=50 * MIB, shared=228 * KIB,
        source="NVIDIA H100 SXM5 data sheet; DGX H100",
    ),
    Gpu(
        name="h200", kind="NVIDIA H200", hbm_bytes=143_771 * MIB, hbm_bandwidth=4.8e12,
        link_bandwidth=450e9, network_bandwidth=50e9, host=8, capability=(9, 0), cores=132, lanes=128,
        frequency=1.98, cache=50 * MIB, shared=228 * KIB,
        source="NVIDIA H200 SXM data sheet; DGX H200",
    ),
    Gpu(
        name="b200", kind="NVIDIA B200", hbm_bytes=183_359 * MIB, hbm_bandwidth=8e12,
        link_bandwidth=900e9, network_bandwidth=50e9, host=8, capability=(10, 0), cores=148, lanes=128,
        frequency=1.965, cache=126 * MIB, shared=228 * KIB,
        source="NVIDIA HGX B200 data sheet; DGX B200",
    ),
)  # fmt: skip
CHIPS: dict[str, Tpu | Gpu] = {chip.name: chip for chip in (*TPUS, *GPUS)}


def chip(name: str) -> Tpu | Gpu:
    """The data sheet of a chip. Raises Mistake for one that has none."""
    if name not in CHIPS:
        raise Mistake(f"--topology names the chip {name!r}{nearest(name, CHIPS)}.")
    return CHIPS[name]
