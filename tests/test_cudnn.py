"""cuDNN attention: its masks, heads and layouts by JAX's own attention on a CPU, and what it refuses.

What cuDNN itself computes needs a GPU; that it is what runs is proven on compiled programs, in
test_plan_gpu.py.
"""

import functools
import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import print_saved_residuals

from attention_reference import ONE, TOLERANCE, B, H, N, T, build, expected, inputs
from pretrain import config, sharding, train
from pretrain.config import Mistake
from pretrain.kernels import fused
from pretrain.kernels.attention import Demand
from pretrain.kernels.blockwise import Blockwise
from pretrain.kernels.cudnn import Cudnn
from pretrain.kernels.fused import Fused
from pretrain.kernels.mask import Alibi, Causal
from pretrain.kernels.splash import Splash
from pretrain.sharding import Rules, lay

ASKED = Demand(
    positions=T, heads=N, kv_heads=2, head_dim=64, mask=Causal(window=9), segments=False,
    dtype=jnp.bfloat16, platform="gpu",
)  # fmt: skip
REFUSED = [
    ({"segments": True}, "cannot hide packed documents from each other: set data.mask_documents"),
    ({"shards": 2}, "takes whole sequences and mesh.seq splits them 2 ways"),
    ({"head_dim": 256}, "heads of up to 128 features, in eights, and model.head_dim is 256"),
    ({"head_dim": 60}, "in eights, and model.head_dim is 60"),
    ({"dtype": jnp.float32}, "does not compute in float32, only in bfloat16, float16"),
    ({"dropout": 0.1}, "drops no probabilities and model.dropout.attention is 0.1"),
    ({"mask": Alibi(slopes=(1.0,) * N)}, "has no Alibi mask, only Causal"),
]


class OnCpu(Cudnn):
    """The same with JAX's own attention in place of cuDNN's."""

    implementation: ClassVar[Literal["cudnn", "xla"]] = "xla"


@pytest.mark.parametrize(
    ("axes", "K", "window", "rules"),
    [
        (ONE, 4, None, Rules()),
        (ONE, 1, 5, Rules()),
        ((("fsdp", 2), ("tensor", 2)), 2, 3, Rules()),
        ((("fsdp", 2), ("tensor", 4)), 1, None, Rules()),
        ((("fsdp", 2), ("tensor", 4)), 2, None, Rules(kv_heads=())),
    ],
)
def test_the_call_asks_for_what_the_reference_computes_on_every_mesh(axes, K, window, rules):
    keys = "batch seq kv_heads head_dim" if K > 1 else "batch seq - head_dim"

    @jax.jit
    def run(q: Any, k: Any, v: Any, da: Any) -> Any:
        q, da = (lay(x, "batch seq heads head_dim") for x in (q, da))
        k, v = lay(k, keys), lay(v, keys)
        kernel = functools.partial(OnCpu(), segments_BT=None, mask=Causal(window=window))
        a, back = jax.vjp(kernel, q, k, v)
        assert jax.typeof(a).sharding == jax.typeof(q).sharding
        return a, *back(da)

    with sharding.use(build(axes), rules):
        got = jax.device_get(run(*inputs(K)))
    for name, x, y in zip(("a", "dq", "dk", "dv"), got, expected(K, window, False), strict=True):
        np.testing.assert_allclose(x, y, err_msg=name, **TOLERANCE)


def test_a_policy_that_keeps_attention_keeps_it_once(capsys):
    """And, with cuDNN, the softmax's normaliser: see test_plan_gpu.py."""
    policy = jax.checkpoint_policies.save_only_these_names("attention")
    local = OnCpu()._local(Causal())

    @functools.partial(jax.checkpoint, policy=policy)
    def loss(q: Any, k: Any, v: Any) -> Any:
        return jnp.square(local(jnp.sin(q), k, v)).sum()

    print_saved_residuals(loss, *map(jnp.asarray, inputs(4)[:3]))
    lines = capsys.readouterr().out.splitlines()
    assert sum(f"f32[{B},{T},{N},{H}] named 'attention'" in line for line in lines) == 1


def test_without_cudnn_the_mistake_says_what_to_install(monkeypatch):
    def missing(*given: Any, **asked: Any) -> Any:
        raise RuntimeError("cuDNN is not detected.")

    monkeypatch.setattr(jax.nn, "dot_product_attention", missing)
    with pytest.raises(Mistake, match=r"pip install 'pretrain\[cuda\]' brings it"):
        Cudnn()._local(Causal())(*inputs(4)[:3])


@pytest.mark.parametrize(("change", "words"), REFUSED)
def test_what_cudnn_cannot_do_is_a_mistake_with_the_reason(change, words):
    Cudnn().check(ASKED)
    with pytest.raises(Mistake, match=words):
        Cudnn().check(replace(ASKED, **change))


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_cudnn_runs_on_gpus_only(platform):
    with pytest.raises(Mistake, match=f"does not run on {platform}, only on gpu"):
        Cudnn().check(replace(ASKED, platform=platform))


@pytest.mark.parametrize(("change", "words"), REFUSED)
def test_fused_takes_blocks_for_what_cudnn_refuses_and_says_why(change, words, caplog):
    asked = replace(ASKED, **change)
    assert isinstance(Fused().on(asked), Blockwise)
    with caplog.at_level(logging.WARNING):
        Fused().check(asked)
    assert "jnp in tiles of 512" in caplog.text and words in caplog.text


def test_fused_takes_the_kernel_of_each_platform_in_silence(caplog):
    assert isinstance(Fused().on(ASKED), Cudnn)
    assert isinstance(Fused().on(replace(ASKED, platform="tpu")), Splash)
    assert isinstance(Fused().on(replace(ASKED, platform="cpu")), Blockwise)
    for platform in ("gpu", "cpu"):
        Fused().check(replace(ASKED, platform=platform))
    assert not caplog.text


def test_fused_on_a_gpu_describes_both_kernels(monkeypatch):
    monkeypatch.setattr(fused, "platform", lambda: "gpu")
    assert Fused().describe().startswith("cuDNN flash attention; for what it refuses, jnp in tiles")


@pytest.mark.parametrize(
    ("platform", "masked", "name"),
    [
        ("gpu", False, "cuDNN flash attention"),
        ("gpu", True, "jnp in tiles of 512, keys and values gathered along the sequence"),
        ("tpu", True, "Pallas splash kernel in tiles of 1024, keys and values gathered"),
        ("cpu", False, "jnp in tiles of 512, keys and values gathered along the sequence"),
    ],
)
def test_the_start_of_a_run_names_the_one_kernel_that_runs(platform, masked, name, monkeypatch):
    run = config.load("llama2_7b")
    run = replace(run, data=replace(run.data, mask_documents=masked))
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    mesh: Any = SimpleNamespace(shape=sharding.Mesh().sizes(8))
    assert train.kernels(run, mesh) == name
    assert train.kernels(config.load("rwkv4_169m"), mesh) == "none"
