"""BLOOM against `transformers`."""

from pathlib import Path
from typing import Any

import pytest

from hf_parity import libraries, parity
from pretrain.config import Mistake
from pretrain.interop.bloom import FAMILY
from pretrain.kernels.mask import Alibi

pytestmark = pytest.mark.hf
TINY: dict[str, Any] = {"hidden_size": 24, "n_layer": 2}


@pytest.mark.parametrize("heads", [4, 6])
def test_bloom_is_that_of_transformers_and_comes_back(heads: int, tmp_path: Path) -> None:
    respelt = ("embedding_dropout",)  # which their class keeps and does not know
    parity("bloom", tmp_path, respelt=respelt, n_head=heads, **TINY)


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 7, 8, 12, 14, 112])
def test_slopes_are_those_of_transformers(heads: int) -> None:
    """The heads of the published sizes among them: 16, 32 and 112. To 1e-6: powers of a rounded power."""
    torch, transformers = libraries()
    of = transformers.models.bloom.modeling_bloom._get_alibi_slopes
    want = of(heads, torch.device("cpu")).tolist()
    assert Alibi.of(heads).slopes == pytest.approx(want, rel=1e-6)


def test_a_config_of_the_released_models_reads_as_one_of_today() -> None:
    """Theirs say `n_embed` and `num_attention_heads`."""
    old = FAMILY.read({"n_embed": 24, "num_attention_heads": 6, "n_layer": 2, "offset_alibi": 100})
    assert old == FAMILY.read({"hidden_size": 24, "n_head": 6, "n_layer": 2})
    with pytest.raises(Mistake, match="hidden_size is 24 and n_embed is 32, which are two names"):
        FAMILY.read({"hidden_size": 24, "n_embed": 32})


def test_residuals_behind_the_norm_are_refused() -> None:
    with pytest.raises(
        Mistake, match="apply_residual_connection_post_layernorm is True, which must"
    ):
        FAMILY.read({"apply_residual_connection_post_layernorm": True})
