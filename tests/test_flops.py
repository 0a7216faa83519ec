"""Counts by hand, and the MFU of papers."""

from typing import Any

import jax
import pytest
from flax import nnx

from pretrain import flops
from pretrain.models.gpt2 import GPT2
from pretrain.models.llama import LLaMA
from pretrain.models.model import Compute, Decoder
from pretrain.models.palm import PaLM
from pretrain.models.rwkv import RWKV
from pretrain.sharding import Mesh, Rules, use

V, L, D, N, H, F = 10, 3, 8, 4, 6, 20
SIZES: dict[str, Any] = {
    "vocab": V, "layers": L, "d_model": D, "heads": N, "head_dim": H, "d_ff": F,
}  # fmt: skip


def counted(model: Decoder) -> flops.Parameters:
    with use(Mesh().abstract(1), Rules()):
        built = jax.eval_shape(lambda: nnx.state(model.build(nnx.Rngs(0), Compute()), nnx.Param))
    dims = nnx.to_pure_dict(built, lambda variable: variable.get_metadata("dims"))
    return flops.count(dims, nnx.to_pure_dict(built), model.vocab)


def test_palm_has_a_tied_table_one_key_value_head_one_norm_a_block_and_no_bias():
    block = D + 2 * D * N * H + 2 * D * H + 3 * D * F
    assert counted(PaLM(**SIZES)) == flops.Parameters(total=V * D + L * block + D, embedding=V * D)


def test_llama_has_a_head_of_its_own_and_as_many_key_value_heads_as_asked():
    block = 2 * D + 2 * D * N * H + 2 * D * 2 * H + 3 * D * F
    counts = flops.Parameters(total=2 * V * D + L * block + D, embedding=2 * V * D)
    assert counted(LLaMA(**SIZES, kv_heads=2)) == counts
    assert counts.non_embedding == L * block + D


def test_gpt2_has_learned_positions_and_biases():
    block = 4 * D + 4 * D * N * H + 3 * N * H + D + 2 * D * F + F + D
    tables = V * D + 16 * D
    expected = flops.Parameters(total=tables + L * block + 2 * D, embedding=tables)
    assert counted(GPT2(**SIZES, context=16)) == expected


@pytest.mark.parametrize("family", [PaLM(**SIZES), LLaMA(**SIZES, kv_heads=1)])
def test_rows_that_pad_the_vocabulary_count_as_none(family: Decoder):
    padded = type(family)(**(vars(family) | {"vocab_multiple": 64}))
    assert counted(padded) == counted(family)


def test_mfu_is_palms_with_and_without_attention():
    """PaLM, table 3 and appendix B: 238.3k tokens/s on 6144 TPU v4; 46.2 % and 45.7 %."""
    model = PaLM(vocab=256_000, layers=118, d_model=18_432, heads=48, head_dim=256, d_ff=73_728)
    peak = 6144 * (flops.peak_flops("TPU v4") or 0.0)
    whole = flops.flops_per_token(model, 540_350_000_000, seq_len=2048)
    without = flops.flops_per_token(model, 540_350_000_000, seq_len=0)
    assert round(flops.mfu(238_300, whole, peak), 4) == 0.4623
    assert round(flops.mfu(238_300, without, peak), 4) == 0.4573


def test_mfu_is_megatron_turings_with_and_without_attention():
    """Megatron-Turing NLG 530B, by PaLM's appendix B: 65.43k tokens/s on 2240 A100."""
    model = GPT2(
        vocab=50_257, layers=105, d_model=20_480, heads=128, head_dim=160, d_ff=81_920, context=2048
    )
    peak = 2240 * (flops.peak_flops("NVIDIA A100-SXM4-80GB") or 0.0)
    whole = flops.flops_per_token(model, 530_000_000_000, seq_len=2048)
    without = flops.flops_per_token(model, 530_000_000_000, seq_len=0)
    assert round(flops.mfu(65_430, whole, peak), 4) == 0.3027
    assert round(flops.mfu(65_430, without, peak), 4) == 0.2977


def test_a_recurrent_network_multiplies_no_activation_with_another():
    sizes = {name: size for name, size in SIZES.items() if name not in ("heads", "head_dim")}
    shares, decay_and_bonus, norms = 5 * D, 2 * D, 4 * D
    block = norms + shares + decay_and_bonus + 5 * D * D + 2 * D * F
    counts = counted(RWKV(**sizes))
    assert counts == flops.Parameters(total=2 * V * D + 4 * D + L * block, embedding=2 * V * D)
    assert flops.flops_per_token(RWKV(**sizes), 100, seq_len=2048) == 600


def test_a_device_that_nobody_has_measured_has_no_peak():
    assert flops.peak_flops(jax.devices()[0].device_kind) is None
