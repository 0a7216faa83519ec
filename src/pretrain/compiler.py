"""Options that a platform's compiler is given for the programs of a run."""

import os

import jax

from pretrain.config import Mistake

# JAX takes this share of a GPU's memory at the start of a process, unless its environment says so.
SHARE, SHARE_NAME = 0.75, "XLA_PYTHON_CLIENT_MEM_FRACTION"

Options = dict[str, str | int | bool]


def options() -> Options:
    """The options for the devices of the current mesh, or for the default backend without one.

    So a program that is compiled for devices elsewhere gets what it would get there.
    """
    mesh = jax.sharding.get_mesh()
    device = jax.devices()[0] if mesh.empty else mesh.devices.flat[0]
    return on(device.platform, device.device_kind)


def on(platform: str, kind: str) -> Options:
    """The options for one kind of device of a platform, both by JAX's names."""
    if platform == "gpu":
        return blackwell() if "B200" in kind else gpu()
    if platform == "tpu" and "7x" in kind:
        return ironwood()
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
        # On a torus of three dimensions a gather over all of it would be zeros and an all-reduce.
        "xla_tpu_prefer_async_allgather_to_allreduce": "true",
        # What MaxText's recipes have for programs that also exchange with the host: more of a block's
        # gathers find a product to run beside, 0.3 s of PaLM 540B's step.
        "xla_tpu_enable_all_experimental_scheduler_features": "true",
        # Gradients of weights as one product and a reduce-scatter: 256 ways, its parts are too thin.
        "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
    }


def ironwood() -> Options:
    """The same for TPU 7x, whose SparseCores run collectives beside the TensorCores.

    What Google's recipes for LLaMA 3.1 405B and, with long sequences, 70B have in common (AI-Hypercomputer,
    tpu-recipes: training/ironwood, bf16, April 2026). Without the gathers over two and three dimensions
    a gather over all of a slice would be zeros and an all-reduce. Left out is their limit of vector memory
    (`xla_tpu_scoped_vmem_limit_kib=65536`): with it LLaMA 2 7B was not compiled after half as long again.
    """
    kinds = ("all_gather", "2d_all_gather", "3d_all_gather", "all_reduce", "reduce_scatter")
    offloaded: Options = {
        f"xla_tpu_enable_sparse_core_collective_offload_{kind}": "true" for kind in kinds
    }
    return offloaded | {
        "xla_enable_async_all_gather": "true",
        "xla_sc_disable_megacore_partitioning": "true",
        "xla_tpu_bf16_emission_mode": "NATIVE_EMISSION",
        "xla_tpu_enable_all_gather_offload_tracing": "true",
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "false",
        "xla_tpu_enable_sparse_core_reduce_scatter_v2": "true",
        "xla_tpu_prefer_async_allgather_to_allreduce": "true",
        "xla_tpu_use_single_sparse_core_for_all_gather_offload": "true",
        "xla_tpu_use_tc_device_shape_on_sc": "true",
        # As above: MaxText's library of options calls it DISABLE_COLLECTIVE_MATMUL.
        "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
    }


def gpu() -> Options:
    """Collectives that run beside products, as the published recipes for MaxText on H100 have them.

    NVIDIA, JAX-Toolbox: docs/frameworks/maxtext and docs/GPU_performance.md. Thresholds are at least
    the weights of a layer of a 7B model, so that a layer's collectives are combined.
    """
    kinds = ("all_gather", "reduce_scatter", "all_reduce")
    pipelined: Options = (
        {f"xla_gpu_enable_pipelined_{kind}": True for kind in kinds}
        if jax.__version_info__ < (0, 11)  # renamed in 0.11
        else {f"xla_gpu_pipeline_{kind}": "COLLECTIVE_PIPELINING_MODE_ON" for kind in kinds}
    )
    return pipelined | {
        "xla_gpu_enable_latency_hiding_scheduler": True,
        "xla_gpu_all_gather_combine_threshold_bytes": 2**30,
        "xla_gpu_all_reduce_combine_threshold_bytes": 2**30,
        "xla_gpu_reduce_scatter_combine_threshold_bytes": 2**27,
        "xla_gpu_enable_while_loop_double_buffering": True,
        # Triton's products are tuned on the machine: a plan made without one would have others.
        "xla_gpu_enable_triton_gemm": False,
        "xla_gpu_enable_command_buffer": "",
        # What is recomputed is chosen by the config, by name.
        "xla_disable_hlo_passes": "rematerialization",
        # A block's weights are gathered once for what is computed again and for the gradient: two equal
        # gathers become one where at most so many instructions lie between them, by default none.
        "xla_gpu_experimental_collective_cse_distance_threshold": 100_000,
        # XLA schedules for 95 % of all memory, of which JAX takes a share.
        "xla_gpu_memory_limit_slop_factor": round(95 * share()),
    }


def blackwell() -> Options:
    """The same, with CUDA graphs, as the last of these documents has it for B200."""
    return gpu() | {"xla_gpu_enable_command_buffer": "FUSION,CUSTOM_CALL"}


def share() -> float:
    """Of a GPU's memory, that JAX takes at the start. Raises Mistake where the environment has none."""
    text = os.environ.get(SHARE_NAME, str(SHARE))
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found <= 1:
        raise Mistake(f"{SHARE_NAME} is {text!r}: make it a share of a GPU's memory, such as 0.9.")
    return found
