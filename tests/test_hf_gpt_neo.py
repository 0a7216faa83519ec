"""GPT-Neo against `transformers`."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from hf_parity import parity
from pretrain.config import Mistake
from pretrain.interop.gpt_neo import FAMILY
from pretrain.models.gpt_neo import GPTNeo

pytestmark = pytest.mark.hf
TINY: dict[str, Any] = {
    "hidden_size": 24,
    "num_layers": 4,
    "num_heads": 3,
    "max_position_embeddings": 12,
}


@pytest.mark.parametrize(
    ("types", "windows"),
    [
        ([[["global", "local"], 2]], (None, 5)),
        ([[["local"], 3], [["global"], 1]], (5, 5, 5, None)),
    ],
    ids=["by turns", "one after three"],
)
def test_gpt_neo_is_that_of_transformers_and_comes_back(
    types: list[Any], windows: tuple[int | None, ...], tmp_path: Path
) -> None:
    # One list may be written as several, and 4 hidden_size is null there.
    respelt = ("attention_types", "intermediate_size")
    config = {"attention_types": types, "window_size": 5, **TINY}
    made = parity("gpt_neo", tmp_path, respelt=respelt, **config)
    assert isinstance(made.ours.node, GPTNeo)
    assert made.ours.node.windows == windows


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"num_layers": 6}, "attention_types has 24 layers and num_layers is 6"),
        (
            {"num_layers": 1, "attention_types": [[["sparse"], 1]]},
            "attention_types is 'sparse', which must be 'global' or 'local' here",
        ),
        (
            {"num_layers": 1, "attention_types": [[["local"], 1]], "attention_layers": ["global"]},
            "attention_layers is not what attention_types says",
        ),
    ],
)
def test_layers_that_do_not_add_up_are_refused(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Mistake, match=sentence):
        FAMILY.read(config)


def test_windows_of_two_sizes_cannot_be_written() -> None:
    node = FAMILY.read({})
    assert isinstance(node, GPTNeo)
    with pytest.raises(
        Mistake, match=r"model.windows is \(4, 8\), which must be of one size there"
    ):
        FAMILY.write(dataclasses.replace(node, windows=(4, 8)))
