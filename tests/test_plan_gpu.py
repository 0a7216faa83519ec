"""The command for GPUs, with the real compiler; skipped where it is not installed."""

import functools
import json
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from pretrain import compiler, config, plan
from pretrain.config import Mistake
from pretrain.kernels.cudnn import Cudnn
from pretrain.kernels.mask import Causal
from pretrain.models.stack import Recompute
from pretrain.planning import cluster, search, topology
from pretrain.sharding import Mesh, Rules, spec, use
from test_plan import moved, planned, printed, tiny


def installed() -> bool:
    try:
        cluster.plugin()
    except Mistake:
        return False
    return True


real = pytest.mark.skipif(not installed(), reason="JAX's CUDA plug-in is not installed")
FOUR = "h100:1x4"


def test_without_the_plug_in_the_command_is_one_sentence_and_status_2(monkeypatch, capsys):
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(cluster, "version", missing)
    status, out, err = printed(["--config", "palm_tiny", "--topology", "h100:8"], capsys)
    assert status == 2 and not out and err.count("\n") == 1
    assert "pip install 'pretrain[cuda]' brings JAX's CUDA plug-in" in err


@pytest.fixture(scope="module")
def cache(tmp_path_factory: Any) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def sharded(cache: Path) -> Any:
    return planned(tiny(compile_cache=str(cache)), FOUR)


@real
@pytest.mark.parametrize("name", ["a100", "h100", "h200", "b200"])
def test_xla_takes_our_description_of_every_gpu(name):
    target = topology.parse(f"{name}:2x4")
    found = target.devices()
    assert [d.process_index for d in found] == [0] * 4 + [1] * 4
    assert {d.device_kind for d in found} == {target.chip.kind}
    assert {d.platform for d in found} == {"gpu"}


@real
@pytest.mark.slow
def test_memory_of_fsdp_on_gpus_is_that_of_the_shapes(sharded):
    made, number = sharded.to_json(), sharded.compiled.parameters.total
    held, whole = made["memory"], 5 * 256  # norm gains are whole on every device
    assert held["parameters"] == 4 * ((number - whole) // 4 + whole)
    assert held["optimizer"] == 2 * held["parameters"] + 4  # and the count of AdamW
    batch = 3 * 4 * (8 // 4) * 256  # tokens, targets, weights
    counters = 3 * 4  # step, skipped, skipped in a row
    arguments = held["parameters"] + held["optimizer"] + batch + counters
    assert held["peak"] - held["temporaries"] == arguments
    assert held["activations"] == 2 * (8 // 4 * 256 * 256 * 2)
    assert made["fits"] and held["peak"] == made["hbm_peak_bytes"] < made["hbm_limit_bytes"]


@real
@pytest.mark.slow
def test_time_on_gpus_is_the_sum_of_its_parts(sharded):
    made = sharded.to_json()
    step = made["compute_seconds"] + made["exposed_collective_seconds"]
    assert made["step_seconds"] == pytest.approx(step)
    assert 0 < made["kernel_seconds"] < made["compute_seconds"]
    assert 0 < made["mfu"] < made["hfu"] < 1
    assert made["compiler_options"] == compiler.gpu()
    layers = 2 * (4 * 256 * 256 + 3 * 256 * 512)
    # Full rematerialisation: layers four times, but for the last product of each, which no gradient
    # needs, and the head three times. Attention visits three tiles of four.
    products = 2 * 8 * 256 * (4 * layers - 2 * 256 * 512 + 3 * 512 * 256)
    attention = 2 * (2 + 2 + 5) * 2 * 8 * 2 * 256 * 256 * 128 * 3 // 4
    assert made["hardware_flops"] == products + attention


@real
@pytest.mark.slow
def test_fsdp_on_gpus_gathers_weights_and_scatters_gradients(sharded):
    layers, table = 2 * (4 * 256 * 256 + 3 * 256 * 512), 512 * 256
    # bf16: blocks once forward and once backward, where the gradient and what is computed again share a
    # gather; the tables once.
    assert moved(sharded, "all-gather", "fsdp") == 2 * 2 * layers + 2 * 2 * table
    assert moved(sharded, "reduce-scatter", "fsdp") >= 4 * layers + 2 * 2 * table
    # What is reduced whole is of vectors and scalars: nothing of a gradient's size.
    assert moved(sharded, "all-reduce", "fsdp") < 4 * 256 * 5 * 2
    assert {axes for _, axes in sharded.collectives} == {("fsdp",)}


@real
@pytest.mark.slow
def test_tensor_parallelism_on_gpus_reduces_activations_as_megatron_counts():
    """Two sums of [B, T, D] a layer forward and two backward (arXiv 1909.08053, section 3)."""
    made = planned(tiny(mesh=Mesh(fsdp=2, tensor=2), rules=Rules()), FOUR)
    stream = 8 // 2 * 256 * 256 * 2  # bytes of a residual stream in bf16
    reduced = sum(moved(made, kind, "tensor") for kind in ("all-reduce", "reduce-scatter"))
    assert reduced >= 4 * 2 * stream
    assert moved(made, "all-gather", "fsdp") >= 2 * (4 * 256 * 256 + 3 * 256 * 512)


@real
@pytest.mark.slow
def test_what_does_not_fit_a_gpu_says_by_how_much():
    keep = Recompute(save=("query", "key", "mlp_up"))
    run = tiny(batch=2**18)
    run = replace(run, compute=replace(run.compute, remat=keep))
    found = planned(run, FOUR)
    made = found.to_json()
    assert not made["fits"] and made["step_seconds"] is None
    assert made["hbm_limit_bytes"] == found.topology.limit
    assert made["over_bytes"] == made["hbm_peak_bytes"] - made["hbm_limit_bytes"] > 0
    assert any("all layers" in buffer["tensor"] for buffer in made["largest_buffers"])


@real
@pytest.mark.slow
@pytest.mark.parametrize(("kept", "runs"), [((), 2), (("attention",), 1)])
def test_a_policy_that_keeps_attention_spares_a_second_run_of_the_kernel(kept, runs):
    target = topology.parse("h100:1x2")
    plan.prepare()
    with use(Mesh().build(target.devices()), Rules()):
        policy = jax.checkpoint_policies.save_only_these_names(*kept)

        @functools.partial(jax.checkpoint, policy=policy, prevent_cse=False)
        def block(x: Any) -> Any:
            return x + jnp.tanh(
                Cudnn()(jnp.sin(x), jnp.cos(x), jnp.sin(x), None, Causal(window=99))
            )

        def total(x: Any) -> Any:
            return (
                jax.lax.scan(lambda x, _: (block(x), None), x, length=4)[0]
                .astype(jnp.float32)
                .sum()
            )

        sharding = jax.sharding.NamedSharding(
            jax.sharding.get_mesh(), spec("batch seq heads head_dim")
        )
        x = jax.ShapeDtypeStruct((4, 256, 2, 64), jnp.bfloat16, sharding=sharding)
        lowered = jax.jit(jax.grad(total)).trace(x).lower(lowering_platforms=("cuda",))
        text = lowered.compile(
            compiler_options=compiler.gpu() | {"xla_gpu_enable_while_loop_double_buffering": False}
        ).as_text()
    assert text.count('"__cudnn$fmhaSoftmax"') == runs
    forward = next(line for line in text.splitlines() if " while(" in line).split(" while(")[0]
    assert forward.count("bf16[4,2,256,2,64]") == 1 + len(kept)  # block inputs, and outputs once
    assert text.count('"__cudnn$fmhaSoftmaxBackward"') == 1
    assert '"sliding_window_length": 99' in text.replace('"99"', "99")


@real
@pytest.mark.slow
def test_the_command_prints_the_plan_of_a_cluster_and_is_quick_again(
    sharded: Any, cache: Path, tmp_path: Path, capsys: Any
) -> None:
    written, saved = tmp_path / "tiny_gpu.py", tmp_path / "step.hlo"
    run = tiny(compile_cache=str(cache))
    search.write(config.load("llama2_7b"), run, "llama2_7b.py", FOUR, written)
    arguments = ["--config", str(written), "--topology", FOUR]
    status, out, _ = printed([*arguments, "--save-hlo", str(saved)], capsys)
    assert status == 0 and "__cublas" in saved.read_text()
    for words in (
        "h100:1x4: 4 chips", "--xla_gpu_enable_latency_hiding_scheduler=True", "which JAX takes at",
        "cuDNN attention, its FLOPs at 50% of peak", "all-gather", "exposed", "MFU", "HFU", "largest",
    ):  # fmt: skip
        assert words in out
    status, out, _ = printed([*arguments, "--json"], capsys)
    again, first = json.loads(out), sharded.to_json()
    assert status == 0 and again.pop("config") == str(written)
    assert again.pop("compile_seconds") < first.pop("compile_seconds")
    assert again == json.loads(json.dumps(first))
