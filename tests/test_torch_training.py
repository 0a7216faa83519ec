"""Training against PyTorch: the same weights and batches, step by step the same loss and gradients."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

from hf_parity import VOCAB, Pair, libraries, pair, quickly
from pretrain.objectives import NextToken
from pretrain.optim import AdamW, Decay, Everything, MatricesOnly
from pretrain.schedules import Constant
from tiny import B, T, Trainer, run

pytestmark = [pytest.mark.hf, pytest.mark.slow]
STEPS, RATE, WEIGHT_DECAY, CLIP = 20, 1e-2, 0.5, 1.0
FAMILIES = {
    "gpt2": {
        "n_embd": 24, "n_head": 3, "n_layer": 2, "n_positions": T,
        "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
    },
    "llama": {
        "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    },
}  # fmt: skip
Curve = list[tuple[float, float]]  # loss and gradient norm of every step


@functools.cache
def batches() -> np.ndarray:
    """Texts with something to learn, [STEPS, B, T + 1]: each token makes the next likelier."""
    draw = np.random.default_rng(0)
    ids = draw.integers(VOCAB, size=(STEPS, B, T + 1))
    for t in range(1, T + 1):
        follows = draw.random((STEPS, B)) < 0.8
        ids[..., t] = np.where(follows, ids[..., t - 1] * 7 % VOCAB, ids[..., t])
    return ids


@pytest.fixture(scope="module", params=FAMILIES)
def start(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The weights that both train from."""
    with quickly():
        return pair(
            request.param, tmp_path_factory.mktemp(request.param), **FAMILIES[request.param]
        )


def theirs(model: Any, decays_all: bool) -> Curve:
    """By torch.optim.AdamW, which decays before it moves: to the same effect."""
    torch, _ = libraries()
    parameters = list(model.parameters())
    decayed = [p for p in parameters if p.ndim > 1 or decays_all]
    others = [p for p in parameters if not (p.ndim > 1 or decays_all)]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others}]
    adamw = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    curve = []
    for ids in torch.tensor(batches()):
        logits = model(ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        adamw.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        adamw.step()
        curve.append((loss.item(), norm.item()))
    return curve


def ours(made: Pair, decay: Decay) -> Curve:
    """By a run's own train step."""
    optim = AdamW(
        peak_lr=RATE, schedule=Constant(), clip_norm=CLIP, decay=decay, weight_decay=WEIGHT_DECAY
    )
    train = Trainer(run(made.ours.node, optim=optim, objective=NextToken()), (), masked=False)
    state, curve = train.state(jax.device_get(made.ours.params)), []
    for ids in batches().astype(np.int32):
        batch = {"tokens_BT": ids[:, :-1], "targets_BT": ids[:, 1:]}
        state, step = train(state, batch | {"weights_BT": np.ones((B, T), np.float32)})
        curve.append((float(step.metrics["loss"]), float(step.metrics["grad_norm"])))
    return curve


@pytest.mark.parametrize("decay", [MatricesOnly(), Everything()], ids=lambda d: type(d).__name__)
def test_twenty_steps_are_those_of_torch(start: Pair, decay: Decay) -> None:
    want = np.asarray(theirs(reset(start), isinstance(decay, Everything)))
    got = np.asarray(ours(start, decay))
    assert want[-1, 0] < want[0, 0] - 0.5, "nothing was learned"
    assert (want[:, 1] > CLIP).any(), "nothing was clipped"
    np.testing.assert_allclose(got, want, rtol=1e-4)


def reset(made: Pair) -> Any:
    """The model of transformers with the weights that it was saved with."""
    return type(made.theirs).from_pretrained(made.directory, attn_implementation="eager").train()
