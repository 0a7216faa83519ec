"""RWKV-4 against `transformers`."""

import math
from pathlib import Path

import numpy as np
import pytest

from hf_parity import TOLERANCE, VOCAB, libraries, outputs, pair, parity, tokens
from pretrain.config import Mistake
from pretrain.interop.rwkv import FAMILY, TENSORS
from tiny import RWKV_4, initial

pytestmark = pytest.mark.hf
TINY = {"hidden_size": 32, "intermediate_size": 20, "num_hidden_layers": 3}


def test_rwkv_is_that_of_transformers_and_comes_back(tmp_path: Path) -> None:
    parity("rwkv", tmp_path, rescale_every=0, **TINY)


def test_layers_that_transformers_rescales_to_infer_give_the_same_logits(tmp_path: Path) -> None:
    """States are halved, so norms' epsilon counts for more: to 1e-4 still. It changes its weights."""
    made = pair("rwkv", tmp_path / "theirs", rescale_every=2, **TINY)
    ids = tokens()
    hidden_BTD, logits_BTV = outputs(made.theirs, ids)
    np.testing.assert_allclose(made.ours.hidden(ids), hidden_BTD, rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_allclose(made.ours(ids), logits_BTV, rtol=TOLERANCE, atol=TOLERANCE)


def test_mixes_and_decays_start_as_those_of_transformers() -> None:
    """Its bonuses are all 1: a slip there, not the released code's ln 0.3 and a zigzag."""
    sizes = {"hidden_size": RWKV_4.d_model, "num_hidden_layers": RWKV_4.layers}
    _, transformers = libraries()
    theirs = transformers.RwkvForCausalLM(transformers.RwkvConfig(vocab_size=VOCAB, **sizes))
    wanted = {name: x.detach().numpy() for name, x in theirs.named_parameters()}
    rows = [row for row in TENSORS if "time_mix" in row.theirs or "time_decay" in row.theirs]
    for row in rows:
        for layer, ours in enumerate(initial(RWKV_4)[f"stack/blocks/{row.ours}"]):
            want = wanted[row.theirs.replace("{l}", str(layer))].reshape(-1)
            np.testing.assert_allclose(ours, want, rtol=1e-5, atol=1e-6, err_msg=row.ours)
    bonus = initial(RWKV_4)["stack/blocks/time/bonus"]
    assert np.allclose(bonus - math.log(0.3), np.resize([0, 0.5, -0.5], bonus.shape[1]))


def test_another_width_of_time_mixing_is_refused() -> None:
    with pytest.raises(Mistake, match="attention_hidden_size is 16"):
        FAMILY.read({"hidden_size": 32, "attention_hidden_size": 16})
