"""Options that a platform's compiler is given for the programs of a run."""

import jax

Options = dict[str, str | int | bool]


def options() -> Options:
    """The options for the devices of the current mesh, or for the default backend without one.

    So a program that is compiled for devices elsewhere gets what it would get there.
    """
    mesh = jax.sharding.get_mesh()
    platform = jax.default_backend() if mesh.empty else mesh.devices.flat[0].platform
    return {"cpu": cpu, "tpu": tpu}.get(platform, dict)()


def cpu() -> Options:
    """Faster compilation and faster products on CPUs; measured in docs/benchmarks.md.

    LLVM's first level halves the time to compile and costs no speed: the time is in matrix products,
    which are library calls. The fused products of the YNN library are slower than the plain ones.
    """
    chosen: Options = {
        "xla_backend_optimization_level": 1,
        "xla_cpu_experimental_ynn_fusion_type": "",
    }
    if jax.__version_info__ < (0, 12):  # the option is gone in 0.12
        chosen["xla_cpu_use_fusion_emitters"] = False
    return chosen


def tpu() -> Options:
    """Collectives that run beside products, as the published recipes for MaxText have them."""
    return {
        "xla_enable_async_all_gather": "true",
        "xla_tpu_enable_async_collective_fusion": "true",
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
        "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
        "xla_tpu_overlap_compute_collective_tc": "true",
        # Gradients of weights as one product and a reduce-scatter: 256 ways, its parts are too thin.
        "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
    }
