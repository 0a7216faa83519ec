"""OPT against `transformers`."""

from pathlib import Path
from typing import Any

import pytest

from hf_parity import parity
from pretrain.config import Mistake
from pretrain.interop.opt import FAMILY

pytestmark = pytest.mark.hf
TINY: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "ffn_dim": 40,
    "max_position_embeddings": 12,
}


def test_opt_is_that_of_transformers_and_comes_back(tmp_path: Path) -> None:
    """On as many tokens as there are positions: two rows of the table come before the first."""
    parity("opt", tmp_path, num_attention_heads=3, **TINY)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"do_layer_norm_before": False}, "do_layer_norm_before is False, which must be True here"),
        ({"word_embed_proj_dim": 512}, "word_embed_proj_dim is 512, which must be 1024 here"),
    ],
)
def test_the_norms_and_the_narrow_embedding_of_the_350m_size_are_refused(
    config: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(Mistake, match=sentence):
        FAMILY.read({"hidden_size": 1024, **config})
