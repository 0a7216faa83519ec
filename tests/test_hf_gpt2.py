"""GPT-2 against `transformers`."""

from pathlib import Path
from typing import Any

import pytest

from hf_parity import parity

pytestmark = pytest.mark.hf
TINY = {"n_embd": 36, "n_layer": 2, "n_positions": 24}


@pytest.mark.parametrize(
    "config",
    [{"n_head": 4}, {"n_head": 3, "n_inner": 20}],
    ids=["even heads", "odd heads"],
)
def test_gpt2_is_that_of_transformers_and_comes_back(
    config: dict[str, Any], tmp_path: Path
) -> None:
    parity("gpt2", tmp_path, respelt=("n_inner",), **TINY, **config)  # null is 4 n_embd
