"""What `describe` says is what a run has: bytes on devices, layouts in the traced step."""

import dataclasses
import json
import math
from collections.abc import Iterator
from typing import Any

import jax
import pytest
from flax import nnx

from pretrain import describe as module
from pretrain.config import Mistake
from pretrain.data import Data
from pretrain.describe import Tensor, describe, devices_for, main
from pretrain.models.gpt2 import GPT2
from pretrain.models.llama import LLaMA
from pretrain.models.model import Compute, Decoder
from pretrain.models.palm import PaLM
from pretrain.objectives import NextToken
from pretrain.optim import Adafactor, AdamW, Muon
from pretrain.program import Program
from pretrain.run import Run
from pretrain.schedules import Constant, Ramp
from pretrain.sharding import Mesh, Rules, mesh_axes, use

SIZES: dict[str, Any] = {
    "vocab": 50, "vocab_multiple": 16, "layers": 2,
    "d_model": 32, "heads": 4, "head_dim": 8, "d_ff": 64,
}  # fmt: skip
PALM = PaLM(**SIZES)
LLAMA = LLaMA(**SIZES, kv_heads=2)
GPT = GPT2(**SIZES, context=32)
ADAMW = AdamW(peak_lr=1e-3, schedule=Constant())

RUN = Run(
    model=PALM, data=Data(), optim=ADAMW, steps=10, batch=8, seq_len=32,
    mesh=Mesh(fsdp=2, seq=2, tensor=2), objective=NextToken(logits_bytes=1 << 12),
)  # fmt: skip


def rows(tensors: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return {tensor.name: tensor for tensor in tensors}


def test_state_bytes_are_those_that_a_device_holds():
    """With Muon, which keeps another state for matrices than for the rest."""
    run = dataclasses.replace(RUN, optim=Muon(peak_lr=1e-3, schedule=Constant()))
    with use(run.mesh.build(), run.rules), jax.default_prng_impl("rbg"):
        lowered = Program(run, run.mesh.build()).initialise.lower()
        # Another generator and no optimisation: a fifth of the time to compile.
        state = lowered.compile({"xla_backend_optimization_level": 0})()
    held = [leaf.addressable_shards[3].data.nbytes for leaf in jax.tree.leaves(state)]
    assert describe(run, 8).state_bytes == sum(held)


def test_each_parameter_has_its_own_two_moments_of_adam():
    for tensor in describe(RUN, 8).tensors:
        assert tensor.optimizer_bytes == 2 * tensor.bytes, tensor.name


def test_a_factored_matrix_keeps_its_rows_and_columns_only():
    run = dataclasses.replace(RUN, optim=Adafactor(), mesh=Mesh())
    up = rows(describe(run, 1).tensors)["stack/blocks/mlp/up/kernel"]
    assert up.bytes == 4 * 2 * 32 * 64
    assert up.optimizer_bytes == 4 * 2 * (32 + 64)


def traced(run: Run) -> tuple[dict[str, Any], list[Any]]:
    """Of the traced loss on the run's mesh: named activations, and the products that are logits."""
    mesh: Any = run.mesh.abstract(8)
    with use(mesh, run.rules):
        program = Program(run, mesh)
        batch = program.batch(run.batch // run.microbatches, run.seq_len, masked=False)

        def loss(params: Any, batch: Any) -> Any:
            model = nnx.merge(program.graph, params)
            tokens_BT = batch["tokens_BT"]
            ends = model.embedding(tokens_BT, run.compute.jnp_dtype), model.hidden(tokens_BT)
            return run.objective.sums(model, batch), ends

        jaxpr, out = jax.make_jaxpr(loss, return_shape=True)(program.state.params, batch)
        found = dict(zip(("residual", "inside"), out[1], strict=True))
    equations = list(walk(jaxpr.jaxpr))
    for equation in equations:
        if equation.primitive.name == "name":
            found[equation.params["name"]] = equation.outvars[0].aval
    products = [e for e in equations if e.primitive.name == "dot_general"]
    names = [str(e.source_info.name_stack) for e in products]
    return found, [
        e.outvars[0].aval for e, name in zip(products, names, strict=True) if "->BTV" in name
    ]


def walk(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from walk(inner)


def local_bytes(x: Any) -> int:
    parts = math.prod(x.sharding.mesh.shape[axis] for axis in mesh_axes(x.sharding.spec))
    return math.prod(x.shape) // parts * x.dtype.itemsize


NAMED = {
    "residual stream": "residual",
    "input of a block": "inside",
    "queries": "query",
    "keys": "key",
    "values": "value",
    "feed-forward": "mlp_up",
}


@pytest.mark.parametrize("model", [PALM, LLAMA, GPT], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("rules", [Rules(), Rules(residual=("tensor",))], ids=["whole", "split"])
def test_activations_lie_as_in_the_traced_loss(model: Decoder, rules: Rules):
    run = dataclasses.replace(RUN, model=model, rules=rules, microbatches=2)
    found, _ = traced(run)
    table = rows(describe(run, 8).activations)
    for name, traced_name in NAMED.items():
        x = found[traced_name]
        assert table[name].shape == x.shape, name
        assert table[name].mesh == module.mesh_axes(x.sharding.spec), name
        assert table[name].bytes == local_bytes(x), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_piece_of_logits_is_as_large_as_in_the_traced_loss(dtype: Any):
    run = dataclasses.replace(RUN, model=dataclasses.replace(PALM, d_ff=128))
    run = dataclasses.replace(run, compute=Compute(dtype=dtype))
    _, logits = traced(run)
    row = rows(describe(run, 8).activations)["logits, a piece"]
    # Traced inside a shard_map over all axes: what is seen there is one device's.
    assert {(str(x.dtype), math.prod(x.shape) * 4) for x in logits} == {("float32", row.bytes)}
    assert row.bytes <= run.objective.logits_bytes
    assert row.shape == (8, 32 // 2, 64)


def test_a_row_says_which_rules_split_it_and_how():
    description = describe(dataclasses.replace(RUN, model=LLAMA), 8)
    key = rows(description.tensors)["stack/blocks/attention/key/kernel"]
    assert key.axes == "layers | embed -> kv_heads head_dim"
    assert key.mesh == "- fsdp tensor -"
    assert key.rules == ("embed", "kv_heads")
    assert description.rules["batch"] == ("replica", "data", "fsdp")
    assert rows(description.tensors)["norm/gain"].rules == ()
    assert "hidden" not in description.rules


def test_a_rule_of_the_config_shows_in_the_table():
    mesh, rules = Mesh(fsdp=1, tensor=8), Rules(embed=("tensor",), mlp=(), heads=(), vocab=())
    table = rows(describe(dataclasses.replace(RUN, mesh=mesh, rules=rules), 8).tensors)
    assert table["stack/blocks/mlp/up/kernel"].mesh == "- tensor -"
    assert table["stack/blocks/mlp/up/kernel"].rules == ("embed",)


def test_tokens_count_the_ramp():
    run = dataclasses.replace(RUN, ramp=Ramp(stages=((4, 2), (6, 4))))
    assert describe(run, 8).tokens == (4 * 2 + 2 * 4 + 4 * 8) * 32


def test_a_mesh_states_the_devices_or_takes_those_at_hand():
    assert devices_for(Mesh(replica=2, fsdp=256, tensor=12), None) == 6144
    assert devices_for(Mesh(), None) == jax.device_count()
    assert devices_for(Mesh(tensor=2), None) == jax.device_count()
    assert devices_for(Mesh(tensor=48), None) == 48
    assert devices_for(Mesh(fsdp=2), 6) == 6


def test_palm_540b_is_described_for_its_6144_chips(capsys: pytest.CaptureFixture[str]):
    assert main(["--config", "palm_540b.py", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["devices"] == 6144
    assert found["parameters"]["total"] == 540_356_474_880
    table = {row["name"]: row for row in found["tensors"] + found["activations"]}
    assert table["embedding/table"]["bytes"] == 4 * 256_128 // 12 * 18_432 // 256
    residual = table["residual stream"]
    assert residual["mesh"] == "replica+fsdp - tensor"
    assert residual["bytes"] == 2 * (2048 // 512) * 2048 * 18_432 // 12
    parameters = sum(row["bytes"] for row in found["tensors"])
    assert found["parameter_bytes"] == parameters
    # Adafactor without factors keeps a mean of squares and a mean of updates.
    assert found["optimizer_bytes"] == 2 * parameters


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("plain")
def test_a_pipe_gets_aligned_text_and_no_escapes(capsys: pytest.CaptureFixture[str]):
    assert main(["--config", "llama2_70b.py", "--devices", "64", "--mesh.tensor", "8"]) == 0
    out = capsys.readouterr().out
    [line] = [line for line in out.splitlines() if "attention/key/kernel" in line]
    assert line.split("  ")[0] == "stack/blocks/attention/key/kernel"
    assert "layers | embed -> kv_heads head_dim" in line
    assert "68,976,648,192" in out
    assert "\x1b" not in out


def test_a_narrow_terminal_cuts_nothing_short(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["--config", "palm_540b.py"]) == 0
    out = capsys.readouterr().out
    assert "stack/blocks/attention/query/kernel" in out
    assert "118x18432x48x256" in out
    assert "…" not in out


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "--config"),
        (["--config", "palm_8bb"], "palm_8b.py"),
        (["--config", "palm_8b", "--devices", "many"], "--devices"),
        (["--config", "palm_8b", "--devices", "0"], "--devices is 0"),
        (["--config", "palm_8b", "--devices", "6", "--mesh.tensor", "4"], "multiple of 4"),
        (["--config", "palm_8b", "--devices", "3"], "batch"),
        (["--config", "palm_8b", "--mesh.tenser", "4"], "--mesh.tensor"),
        (["--config", "palm_8b", "--rules.mlp", "tenser"], "rules.mlp"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    assert main(arguments) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("pretrain.describe: ")
    assert said in error
    assert error.count("\n") == 1


def test_a_layout_that_does_not_divide_is_a_mistake():
    with pytest.raises(Mistake, match="heads"):
        describe(dataclasses.replace(RUN, mesh=Mesh(fsdp=1, tensor=8)), 8)


def test_help_lists_the_commands_own_options_and_the_fields(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main(["--config", "palm_8b", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for option in ("--config", "--devices", "--json", "--mesh.fsdp", "--optim.peak-lr"):
        assert option in out


def test_ctrl_c_ends_a_command_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "describe", interrupted)
    assert main(["--config", "palm_tiny.py"]) == 130
    assert capsys.readouterr() == ("", "")
