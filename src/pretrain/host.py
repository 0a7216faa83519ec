"""Settings of the host process that have to stand before it starts."""

import glob
import os
import platform
import sys
from collections.abc import Mapping

# A step on a CPU takes hundreds of MB for activations and gives them back when it ends. glibc would
# return them to the system and fault every page in again at the next step, a third of its time.
ALLOCATOR = (
    "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:"
    "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000"
)


def prepare(environ: Mapping[str, str] = os.environ) -> None:
    """Start this program anew with memory kept between steps, where it will compute on the CPU.

    Does nothing where an accelerator is there, glibc is not, or GLIBC_TUNABLES says something already.
    """
    if wanted(environ):
        os.execve(sys.executable, sys.orig_argv, {**environ, "GLIBC_TUNABLES": ALLOCATOR})


def wanted(environ: Mapping[str, str]) -> bool:
    """Whether the allocator should be told to keep memory."""
    on_cpu = environ.get("JAX_PLATFORMS") == "cpu" or not accelerated()
    return on_cpu and platform.libc_ver()[0] == "glibc" and "GLIBC_TUNABLES" not in environ


def accelerated() -> bool:
    """Whether this machine shows the device file of a GPU or TPU."""
    devices = ("/dev/nvidia[0-9]*", "/dev/accel*", "/dev/vfio/[0-9]*", "/dev/kfd")
    return any(map(glob.glob, devices))
