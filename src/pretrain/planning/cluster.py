"""Clusters of GPUs: "h100:4x8" or "h100:32", and the devices of one that is not attached."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax

from pretrain.compiler import SHARE_NAME, share
from pretrain.config import Mistake
from pretrain.planning.chips import KIB, Gpu
from pretrain.planning.target import Target

PARTS = (1, 2, 4, 8)  # GPUs of a host that a job may have
PLUGINS = ("jax-cuda13-pjrt", "jax-cuda12-pjrt")


@dataclass(frozen=True)
class Cluster(Target):
    """Hosts of equally many GPUs, by layout (hosts, GPUs a host)."""

    chip: Gpu

    @property
    def limit(self) -> int:
        """What JAX takes of a GPU's memory: the rest is for NCCL, cuDNN and the driver.

        Raises Mistake where the environment gives a share that is none.
        """
        return int(share() * self.chip.hbm_bytes)

    @property
    def allowance(self) -> str:
        """The share, and where it is set."""
        return f"{share():.0%} of the GPU's, which JAX takes at the start ({SHARE_NAME})"

    @property
    def lowering(self) -> str:
        """JAX has rules of its own for CUDA among those for GPUs."""
        return "cuda"

    @property
    def compiler(self) -> str:
        """The version of the plug-in, and the description of the chip that it compiled for."""
        return f"{plugin()} {self.description}"

    @property
    def wide(self) -> float:
        """By the slower of the switches and, over several hosts, the network cards of a host."""
        within, across = self.chip.link_bandwidth, self.layout[1] * self.chip.network_bandwidth
        return within if self.layout[0] == 1 else min(within, across)

    def near(self, count: int) -> float:
        """Through the switches of a host, and over the network from more than are in one."""
        return self.chip.link_bandwidth if count <= self.layout[1] else self.wide

    def seconds(self, kind: str, size: int, devices: Sequence[Any], rings: int = 0) -> float:
        """For a collective of `size` bytes among these devices, at the published rates of the links.

        Rings go through the switches of a host and leave it by the network card of every device that
        is in the group; both happen at once, so that the slower of the two decides. NCCL chooses the
        rings when it runs: programs for GPUs have none.
        """
        n = len(devices)
        hosts = len({device.process_index for device in devices})
        beside = n / hosts  # devices of the group on one host
        chip = self.chip
        if kind == "all-to-all":
            # Each device sends its own n-th to each other one.
            within = size * (beside - 1) / n / chip.link_bandwidth
            across = size * (n - beside) / n / chip.network_bandwidth
        else:
            passes = {"all-reduce": 2.0, "collective-permute": n / (n - 1)}
            moved = passes.get(kind, 1.0) * size * (n - 1) / n
            within = moved / chip.link_bandwidth if beside > 1 else 0.0
            across = moved / (beside * chip.network_bandwidth) if hosts > 1 else 0.0
        return max(within, across)

    def longest(self, kind: str, size: int, groups: Sequence[Sequence[Any]]) -> float:
        """The same where several groups do it at once: one that spans hosts takes longest."""
        return max(self.seconds(kind, size, group) for group in groups)

    @property
    def description(self) -> str:
        """The chip as XLA's GpuTargetConfigProto, in its text form."""
        c = self.chip
        return f"""gpu_device_info {{
  cuda_compute_capability {{ major: {c.capability[0]} minor: {c.capability[1]} }}
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  shared_memory_per_block: {48 * KIB}
  shared_memory_per_block_optin: {c.shared - KIB}
  shared_memory_per_core: {c.shared}
  core_count: {c.cores}
  fpus_per_core: {c.lanes}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  memory_bandwidth: {round(c.hbm_bandwidth)}
  l2_cache_size: {c.cache}
  clock_rate_ghz: {c.frequency}
  device_memory_size: {c.hbm_bytes}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 }}
device_description_str: "{c.kind}"
"""

    def devices(self) -> Sequence[Any]:
        """JAX devices that can be compiled for, on any machine.

        Raises Mistake where the compiler is not installed or refuses the description.
        """
        from jax.experimental import topologies

        plugin()
        hosts, beside = self.layout
        try:
            # XLA counts slices, hosts a slice and devices a host.
            found = topologies.get_topology_desc(
                str(self), "cuda", topology=f"1x{hosts}x{beside}", target_config=self.description
            )
        except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise Mistake(f"the CUDA plug-in makes no topology {self}: {reason}.") from error
        return found.devices


def plugin() -> str:
    """Name and version of the CUDA plug-in. Raises Mistake where it is not installed."""
    for name in PLUGINS:
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        return f"{name} {found}"
    raise Mistake(
        "the compiler for GPUs is not installed: pip install 'pretrain[cuda]' brings JAX's CUDA "
        "plug-in."
    )


def parse(text: str, chip: Gpu, size: str, slices: int) -> Cluster:
    """The cluster that --topology means. Raises Mistake where there is none."""
    if slices > 1:
        raise Mistake(
            f"--slices is {slices} and {chip.name} has hosts, not slices: write {chip.name}:4x8 for 4 "
            "hosts of 8."
        )
    parts = size.split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise Mistake(
            f"--topology {text} gives no size: write {chip.name}:4x8 for 4 hosts of 8, or "
            f"{chip.name}:32 for so many GPUs."
        )
    layout = tuple(int(part) for part in parts)
    if len(layout) == 1:
        layout = (1, layout[0]) if layout[0] < chip.host else (layout[0] // chip.host, chip.host)
        if layout[0] * layout[1] != int(size):
            raise Mistake(
                f"--topology {text} fills no whole hosts: beyond {chip.host}, take a multiple of "
                f"{chip.host}."
            )
    if layout[1] not in PARTS:
        raise Mistake(
            f"--topology {text} has {layout[1]} GPUs a host: a host has {chip.host}, of which a job "
            f"takes {', '.join(map(str, PARTS))}."
        )
    return Cluster(chip, (layout[0], layout[1]))
