"""Options that a platform's compiler is given for the programs of a run."""

import jax

Options = dict[str, str | int | bool]


def options() -> Options:
    """The options for the default backend; empty where the compiler's own are best."""
    return cpu() if jax.default_backend() == "cpu" else {}


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
