"""What cannot be run is refused before anything is compiled, with fields and values that would work."""

import dataclasses
import re
from typing import Any

import pytest

from pretrain.config import Mistake, leaves
from pretrain.data import Bytes, Data, StandardLibrary
from pretrain.evaluate import Evaluate
from pretrain.generate import Draw, Sample
from pretrain.hooks import Profile
from pretrain.kernels.blockwise import Blockwise
from pretrain.models.gpt2 import GPT2
from pretrain.models.llama import LLaMA
from pretrain.models.palm import PaLM
from pretrain.optim import AdamW
from pretrain.run import Run, divisors
from pretrain.schedules import Constant, Ramp
from pretrain.sharding import Mesh, Rules
from pretrain.train import described

SIZES = {"vocab": 60, "layers": 2, "d_model": 32, "heads": 6, "head_dim": 8, "d_ff": 48}
PALM = PaLM(**SIZES)
OPTIM = AdamW(peak_lr=1e-3, schedule=Constant())
DATA = Data(source=StandardLibrary(), tokenizer=Bytes())


def run(**changes: Any) -> Run:
    fields = {"model": PALM, "data": DATA, "optim": OPTIM, "steps": 10, "batch": 12, "seq_len": 16}
    return Run(**(fields | changes))


def sized(model: type[PaLM] | type[LLaMA] | type[GPT2] = PaLM, **sizes: int) -> dict[str, Any]:
    return {"model": model(**(SIZES | sizes))}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": "100"}, "steps is '100': it must be int."),
        ({"steps": 0}, "steps is 0: make it 1 or more."),
        ({"batch": 0}, "batch is 0: make it 1 or more."),
        ({"seq_len": -1}, "seq_len is -1: make it 1 or more."),
        ({"microbatches": 0}, "microbatches is 0: make it 1 or more."),
        ({"log_every": 0}, "log_every is 0: make it 1 or more."),
        ({"seed": -1}, "seed is -1: make it 0 or more and less than 2^32."),
        ({"seed": 2**32}, "seed is 4294967296: make it 0 or more and less than 2^32."),
        ({"data": dataclasses.replace(DATA, held_out=1.0)}, "data.held_out is 1.0: it is a share, 0 or"),
        (sized(layers=0), "model.layers is 0: make it 1 or more."),
        (sized(vocab_multiple=0), "model.vocab_multiple is 0: make it 1 or more."),
        ({"evaluate": Evaluate(every=0)}, "evaluate.every is 0: make it 1 or more."),
        (
            {"sample": Sample(choice=Draw(temperature=-1.0))},
            "sample.choice.temperature is -1.0: make it more than 0, or choose Greedy().",
        ),
        ({"optim": dataclasses.replace(OPTIM, peak_lr=0.0)}, "optim.peak_lr is 0.0: set it to more than 0."),
        ({"optim": dataclasses.replace(OPTIM, schedule=Constant(warmup=-1))}, "optim.schedule.warmup is -1"),
        ({"profile": Profile(first=9)}, "profile.first is 9 and profile.steps is 3, but the run ends at"),
        ({"ramp": Ramp(stages=((5, 0),))}, "ramp.stages takes 0 sequences until step 5"),
        (
            sized(GPT2, context=15),
            "seq_len is 16 and model.context is 15: the model has no position beyond, so make "
            "seq_len 15 or less, or model.context 16 or more.",
        ),
        (
            sized(LLaMA, kv_heads=4),
            "model.heads is 6 and model.kv_heads is 4: each key/value head serves equally many query "
            "heads, so make kv_heads one of 1, 2, 3, 6.",
        ),
        (
            {"microbatches": 5},
            "batch is 12 and microbatches is 5: make microbatches one of 1, 2, 3, 4, 6, 12, or batch "
            "a multiple of 5.",
        ),
        (
            {"microbatches": 4, "ramp": Ramp(stages=((5, 6),))},
            "batch is 6 and microbatches is 4: make microbatches one of 1, 2, 3, 6, or batch a multiple "
            "of 4.",
        ),
    ],
)  # fmt: skip
def test_a_field_or_a_pair_of_fields_that_cannot_be_is_a_mistake(
    changes: dict[str, Any], sentence: str
) -> None:
    run().check()
    with pytest.raises(Mistake) as raised:
        run(**changes).check()
    assert str(raised.value).startswith(sentence)


@pytest.mark.parametrize("name", ["vocab", "d_model", "heads", "head_dim", "d_ff"])
def test_a_model_without_one_of_its_sizes_is_a_mistake(name: str) -> None:
    with pytest.raises(Mistake, match=rf"model\.{name} is 0: make it 1 or more"):
        run(**sized(PaLM, **{name: 0})).check()


WIDE = {"model": PaLM(**(SIZES | {"heads": 8, "d_model": 36, "vocab": 64}))}


@pytest.mark.parametrize(
    ("mesh", "changes", "sentence"),
    [
        (
            {"data": 8}, {},
            "batch / microbatches is 12 and rules.batch splits it 8 ways (mesh.replica=1 x mesh.data=8 "
            "x mesh.fsdp=1): make batch / microbatches a multiple of 8, or the axes' product one of "
            "1, 2, 3, 4, 6, 12.",
        ),
        (
            {"data": 2, "fsdp": 2}, {"microbatches": 2},
            "batch / microbatches is 6 and rules.batch splits it 4 ways",
        ),
        (
            {"replica": 4}, {"ramp": Ramp(stages=((5, 6),))},
            "batch / microbatches is 6 and rules.batch splits it 4 ways",
        ),
        (
            {"seq": 3}, {},
            "seq_len is 16 and rules.seq splits it 3 ways (mesh.seq=3): make seq_len a multiple of 3, or "
            "the axes' product one of 1, 2, 4, 8, 16.",
        ),
        (
            {"tensor": 3, "seq": 2}, {"rules": Rules(residual_seq=("seq", "tensor"))},
            "seq_len is 16 and rules.residual_seq splits it 6 ways (mesh.seq=2 x mesh.tensor=3)",
        ),
        ({"data": 3}, {"rules": Rules(kv_seq=("data",))}, "seq_len is 16 and rules.kv_seq splits it 3 ways"),
        (
            {"tensor": 4}, {},
            "model.heads is 6 and rules.heads splits it 4 ways (mesh.tensor=4): make model.heads a "
            "multiple of 4, or the axes' product one of 1, 2, 3, 6.",
        ),
        (
            {"tensor": 3}, sized(LLaMA, kv_heads=2),
            "model.kv_heads is 2 and rules.kv_heads splits it 3 ways (mesh.tensor=3)",
        ),
        ({"tensor": 2}, sized(d_ff=47), "model.d_ff is 47 and rules.mlp splits it 2 ways"),
        ({"fsdp": 3}, {}, "model.d_model is 32 and rules.embed splits it 3 ways"),
        (
            {"tensor": 8}, WIDE | {"rules": Rules(residual=("tensor",))},
            "model.d_model is 36 and rules.residual splits it 8 ways (mesh.tensor=8)",
        ),
        (
            {"tensor": 2}, sized(vocab=61),
            "model.vocab is 61, padded to 61 by model.vocab_multiple, and rules.vocab splits it 2 ways: "
            "set model.vocab_multiple to a multiple of 2.",
        ),
        (
            {"tensor": 2}, {"rules": Rules(**dict.fromkeys(("heads", "kv_heads", "mlp", "vocab"), ()))},
            "mesh.tensor is 2 and no row of rules names it, so its devices would all do the same: set "
            "mesh.tensor to 1 or name it in rules.",
        ),
    ],
)  # fmt: skip
def test_sizes_that_do_not_divide_over_a_mesh_are_a_mistake(
    mesh: dict[str, int], changes: dict[str, Any], sentence: str
) -> None:
    run(**changes).check()
    with pytest.raises(Mistake) as raised:
        run(**changes).check_layout(dict.fromkeys(vars(Mesh()), 1) | mesh)
    assert str(raised.value).startswith(sentence)


@pytest.mark.parametrize(
    ("mesh", "changes"),
    [
        ({"replica": 2, "data": 3, "fsdp": 2, "seq": 4, "tensor": 2}, {}),
        ({"data": 2, "fsdp": 2}, {"microbatches": 3}),
        ({"tensor": 3}, {"model": PaLM(**(SIZES | {"vocab": 59, "vocab_multiple": 3}))}),
        ({"tensor": 6}, sized(LLaMA, kv_heads=6)),
        ({"tensor": 6}, sized(LLaMA, kv_heads=1)),
        ({"tensor": 6}, sized(LLaMA, kv_heads=2) | {"rules": Rules(kv_heads=())}),
    ],
)
def test_sizes_that_divide_over_a_mesh_are_none(
    mesh: dict[str, int], changes: dict[str, Any]
) -> None:
    run(**changes).check()
    run(**changes).check_layout(dict.fromkeys(vars(Mesh()), 1) | mesh)


def test_the_kernel_is_asked_for_what_the_run_demands_of_it() -> None:
    one = dict.fromkeys(vars(Mesh()), 1)
    blocks = dataclasses.replace(run().compute, attention=Blockwise(block=6))
    run().check_kernel(one, "cpu")
    with pytest.raises(Mistake, match=r"attention\.block is 6 and a device holds 16 positions"):
        run(compute=blocks).check_kernel(one, "cpu")
    run(compute=blocks, seq_len=24).check_kernel(one | {"seq": 2}, "cpu")
    with pytest.raises(Mistake, match=re.escape("does not run on abacus, only on cpu, gpu, tpu")):
        run().check_kernel(one, "abacus")


def test_divisors_are_said_in_words() -> None:
    assert divisors(12) == "1, 2, 3, 4, 6, 12"
    assert divisors(1) == "1"


def test_the_config_in_tensorboard_has_every_field_and_names_every_class() -> None:
    shown = dict(line.split(maxsplit=1) for line in described(run()).splitlines())
    assert (shown["model"], shown["model.heads"]) == ("PaLM", "6")
    assert (shown["optim"], shown["optim.schedule"]) == ("AdamW", "Constant")
    assert shown.keys() >= leaves(run()).keys()
