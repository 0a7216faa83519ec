"""The command, with the real compiler for TPUs; skipped where it is not installed."""

import functools
import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pretrain import config, plan
from pretrain.config import Mistake
from pretrain.models.palm import PaLM
from pretrain.models.stack import Recompute
from pretrain.planning import search, topology
from pretrain.planning.hlo import Module, shapes
from pretrain.planning.report import Plan
from pretrain.sharding import Mesh, Rules

real = pytest.mark.skipif(
    find_spec("libtpu") is None, reason="libtpu, the compiler for TPUs, is not installed"
)
FOUR = "v5e:2x2"


def tiny(**changes: Any) -> Any:
    """A LLaMA whose every size is a multiple of a TPU's tiles, and nothing kept on disk."""
    base = config.load("llama2_7b")
    sizes = {"vocab": 512, "layers": 2, "d_model": 256, "heads": 2, "kv_heads": 2, "d_ff": 512}
    model = replace(base.model, **sizes)
    fields = {"batch": 8, "seq_len": 256, "compile_cache": None} | changes
    return replace(base, model=model, **fields)


def planned(run: Any, target: str = FOUR) -> Plan:
    plan.prepare()
    return plan.plan(run, topology.parse(target), lambda text: None)


def moved(made: Plan, kind: str, axis: str) -> int:
    """Bytes of the collectives of a kind over an axis."""
    return sum(
        size for (k, axes), (_, size, _) in made.collectives.items() if (k, axes) == (kind, (axis,))
    )


def printed(arguments: Sequence[str], capsys: Any) -> tuple[int, str, str]:
    status = plan.main(arguments)
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topology", FOUR], "name a config with --config"),
        (["--config", "palm_tiny"], "name the chips with --topology"),
        (["--config", "palm_tiny", "--topology", "v5e:3"], "no v5e slice has 3 chips"),
        (["--config", "palm_tinny", "--topology", FOUR], "there is no config 'palm_tinny'"),
        (["--config", "palm_tiny", "--topology", FOUR, "--bach", "8"], "there is no option --bach"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(arguments, words, capsys):
    status, out, err = printed(arguments, capsys)
    assert status == 2 and words in err and not out
    assert err.startswith("pretrain.plan: ") and err.count("\n") == 1


@real
def test_chips_that_do_not_divide_are_a_mistake():
    with pytest.raises(Mistake, match=r"mesh.* needs a multiple of 3 devices and there are 4"):
        planned(tiny(mesh=Mesh(tensor=3)))
    with pytest.raises(Mistake, match="batch"):
        planned(tiny(batch=6))


@pytest.fixture(scope="module")
def sharded() -> Plan:
    return planned(tiny())


@real
@pytest.mark.slow
def test_memory_and_time_of_fsdp_are_those_of_the_shapes(sharded):
    made, number = sharded.to_json(), sharded.compiled.parameters.total
    held = made["memory"]
    # Norm gains are whole on every device: 2 of each layer and one more, 256 features each.
    whole = 5 * 256
    assert number == 2 * (4 * 256 * 256 + 3 * 256 * 512) + 2 * 512 * 256 + whole
    assert held["parameters"] == 4 * ((number - whole) // 4 + whole)
    assert held["optimizer"] >= 2 * held["parameters"]
    assert held["activations"] == 2 * (8 // 4 * 256 * 256 * 2)
    assert made["fits"] and held["peak"] == made["hbm_peak_bytes"] < made["hbm_limit_bytes"]
    assert made["step_seconds"] == pytest.approx(
        made["compute_seconds"] + made["exposed_collective_seconds"]
    )
    assert 0 < made["mfu"] < made["hfu"] < 1
    assert made["tokens_per_second"] == pytest.approx(8 * 256 / made["step_seconds"])
    assert made["mesh"]["fsdp"] == 4 and made["parameters"] == number


@real
@pytest.mark.slow
def test_fsdp_gathers_its_weights_and_scatters_its_gradients(sharded):
    matrices = 2 * (4 * 256 * 256 + 3 * 256 * 512)
    # bf16, once forward and once backward; the compiler may gather one for both.
    assert moved(sharded, "all-gather", "fsdp") >= 2 * matrices
    scattered = moved(sharded, "reduce-scatter", "fsdp") + moved(sharded, "all-reduce", "fsdp")
    assert scattered >= 2 * matrices


@real
@pytest.mark.slow
def test_a_product_is_not_fused_with_what_makes_its_operand(sharded):
    """It would be made again for every tile of the result: of SiLU, its derivative and h."""
    module = Module(sharded.compiled.text)
    einsums = ("BTF,FD->BTD", "BTF,DF->BTD", "BTD,BTF->DF")
    products = [
        (made.op_name, {inner.opcode for inner in module.within(made)})
        for computation in module.computations
        for made in module.instructions(computation)
        if made.opcode == "fusion" and any(f"{e}/dot_general" in made.op_name for e in einsums)
    ]
    products = [(name, inside) for name, inside in products if "convolution" in inside]
    assert len(products) >= 6  # down, its gradient's two, and those of gate and up
    assert not any(inside & {"logistic", "exponential", "tanh"} for _, inside in products)


STREAMS = (Rules(), Rules(residual=("tensor",)))  # whole on every device of `tensor`, and split


@functools.cache
def tensor_parallel(rules: Rules) -> Plan:
    return planned(tiny(mesh=Mesh(fsdp=2, tensor=2), rules=rules))


@real
@pytest.mark.slow
@pytest.mark.parametrize("rules", STREAMS)
def test_tensor_parallelism_reduces_activations_as_megatron_counts(rules):
    """Two sums of [B, T, D] a layer forward and two backward (arXiv 1909.08053, section 3).

    One more where nothing is kept, as what attention says is summed again. The embedding and the head
    sum once each; the little that is left is of norms and of the loss.
    """
    made = tensor_parallel(rules)
    stream = 8 // 2 * 256 * 256 * 2  # bytes of a residual stream in bf16
    kinds = ("all-reduce", "reduce-scatter")
    sums = sum(moved(made, kind, "tensor") for kind in kinds)
    assert 0 <= sums - (5 * 2 + 2) * stream < stream


@real
@pytest.mark.slow
@pytest.mark.parametrize("rules", STREAMS)
def test_nothing_is_whole_on_a_device_that_the_mesh_splits(rules):
    """A batch of 8, over `fsdp`; 512 features of a feed-forward and tokens of a vocabulary, over `tensor`."""
    module = Module(tensor_parallel(rules).compiled.text)
    made = [i for computation in module.computations for i in module.instructions(computation)]
    held = {dims for instruction in made for _, dims in shapes(instruction.shape)}
    assert any(256 in dims for dims in held)  # their halves
    assert not [dims for dims in held if 512 in dims or (len(dims) > 2 and dims[0] == 8)]


@real
@pytest.mark.slow
def test_sparsecores_of_tpu7x_gather_weights_and_scatter_gradients():
    """Each matrix once forward and once again backward in bf16, each gradient once in fp32."""
    plan_7x = planned(tiny(), "tpu7x:2x2x1")
    matrices, tables = 2 * (4 * 256 * 256 + 3 * 256 * 512), 2 * 512 * 256
    assert moved(plan_7x, "all-gather", "fsdp") == 2 * (2 * matrices + tables)
    assert moved(plan_7x, "reduce-scatter", "fsdp") == 4 * (matrices + tables)
    assert 'execution_thread="sparsecore"' in plan_7x.compiled.text
    made = plan_7x.to_json()
    assert 0 < made["exposed_collective_seconds"] < made["collective_seconds"]
    assert (made["chips"], made["mesh"]["fsdp"]) == (4, 8)
    done = made["model_flops"] / made["step_seconds"]
    assert made["mfu"] == pytest.approx(done / (4 * 2307e12))


@real
@pytest.mark.slow
def test_a_parallel_block_reduces_once_forward_and_once_backward():
    """As the sums of its halves are added first; the embedding and the head reduce once each."""
    sizes = {"vocab": 512, "layers": 2, "d_model": 1024, "heads": 2, "head_dim": 128, "d_ff": 512}
    base = tiny(mesh=Mesh(fsdp=2, tensor=2), rules=Rules(residual=("tensor",)))
    made = planned(replace(base, model=PaLM(**sizes)))
    stream = 8 // 2 * 256 * 1024 * 2
    assert moved(made, "reduce-scatter", "tensor") == (2 * 2 + 2) * stream


@real
@pytest.mark.slow
def test_what_does_not_fit_says_by_how_much():
    run = tiny(batch=2**15)
    keep = ("query", "key", "mlp_up")
    run = replace(run, compute=replace(run.compute, remat=Recompute(save=keep)))
    made = planned(run).to_json()
    assert not made["fits"] and made["step_seconds"] is None
    assert made["over_bytes"] == made["hbm_peak_bytes"] - made["hbm_limit_bytes"] > 0


@real
@pytest.mark.slow
def test_the_command_prints_json_keeps_the_program_and_is_quick_again(tmp_path: Path, capsys):
    written, saved = tmp_path / "tiny_tpu.py", tmp_path / "step.hlo"
    base = config.load("llama2_7b")
    run = tiny(compile_cache=str(tmp_path))
    search.write(base, run, "llama2_7b.py", FOUR, written)
    arguments = ["--config", str(written), "--topology", FOUR, "--json", "--save-hlo", str(saved)]
    status, out, _ = printed(arguments, capsys)
    first = json.loads(out)
    assert status == 0 and first["fits"] and "ENTRY" in saved.read_text()
    status, out, _ = printed(arguments, capsys)
    again = json.loads(out)
    assert again.pop("compile_seconds") < first.pop("compile_seconds") and again == first
