"""GPT-1 against `transformers`."""

from pathlib import Path
from typing import Any

import pytest

from hf_parity import parity
from pretrain.config import Mistake
from pretrain.interop.gpt1 import FAMILY

pytestmark = pytest.mark.hf
TINY: dict[str, Any] = {"n_embd": 24, "n_layer": 2, "n_positions": 12}


def test_gpt1_is_that_of_transformers_and_comes_back(tmp_path: Path) -> None:
    parity("openai-gpt", tmp_path, n_head=3, **TINY)


def test_another_activation_is_refused() -> None:
    with pytest.raises(Mistake, match="afn is 'relu', which must be 'gelu' here"):
        FAMILY.read({"afn": "relu"})
