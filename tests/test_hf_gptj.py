"""GPT-J and CodeGen against `transformers`."""

from dataclasses import replace
from pathlib import Path

import pytest

from hf_parity import parity
from pretrain.config import Mistake
from pretrain.interop import codegen, gptj
from pretrain.models.positions import Rope

pytestmark = pytest.mark.hf


@pytest.mark.parametrize("heads", [3, 4])
def test_gptj_is_that_of_transformers_and_comes_back(heads: int, tmp_path: Path) -> None:
    respelt = ("n_inner", "scale_attn_weights")  # null is 4 n_embd; the class has no other scale
    parity(
        "gptj", tmp_path, respelt=respelt, n_embd=8 * heads, n_head=heads, n_layer=2, rotary_dim=6
    )


@pytest.mark.parametrize("heads", [4, 12])
def test_codegen_is_that_of_transformers_and_comes_back(heads: int, tmp_path: Path) -> None:
    respelt = ("n_inner", "scale_attn_weights")
    parity(
        "codegen",
        tmp_path,
        respelt=respelt,
        n_embd=8 * heads,
        n_head=heads,
        n_layer=2,
        rotary_dim=6,
    )


def test_heads_of_codegen_that_do_not_come_in_four_blocks_are_refused() -> None:
    node = codegen.FAMILY.read({"n_embd": 48, "n_head": 6})
    with pytest.raises(Mistake, match="CodeGen's heads come in four blocks and n_head is 6"):
        codegen.FAMILY.tensors(node)


def test_a_rotary_embedding_that_the_class_does_not_have_is_refused() -> None:
    with pytest.raises(Mistake, match="rotary_dim is null: give the number of features that turn"):
        gptj.FAMILY.read({"rotary_dim": None})
    node = gptj.FAMILY.read({})
    assert node.rope.dims == 64
    with pytest.raises(Mistake, match=r"model\.rope is Rope.*, which must be InterleavedRope"):
        gptj.FAMILY.write(replace(node, rope=Rope(dims=64)))
