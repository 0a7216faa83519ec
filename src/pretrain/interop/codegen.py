"""CodeGen at Hugging Face: `CodeGenForCausalLM`, GPT-J with one fused matrix.

Its rows are in four blocks, one for each core that it was trained on; each has a quarter of the heads:
all their queries, all their values, all their keys.
"""

from pretrain.config import Mistake
from pretrain.interop.family import Family
from pretrain.interop.gptj import BLOCK, FIELDS, IRRELEVANT, OUTSIDE_ATTENTION
from pretrain.interop.mapping import Part, Tensor
from pretrain.models.codegen import CodeGen

TENSORS = (
    *OUTSIDE_ATTENTION,
    *(
        Tensor(
            f"attention/{name}/kernel", f"{BLOCK}.attn.qkv_proj.weight",
            "(4 c M H) D -> D (4 M) H", Part(at, of=3),
        )
        for at, name in enumerate(("query", "value", "key"))
    ),
)  # fmt: skip


def tensors(node: CodeGen) -> tuple[Tensor, ...]:
    """The table. Raises Mistake where the heads do not come in four equal blocks."""
    if node.heads % 4:
        raise Mistake(f"CodeGen's heads come in four blocks and n_head is {node.heads}.")
    return TENSORS


FAMILY = Family(
    model_type="codegen",
    architecture="CodeGenForCausalLM",
    node=CodeGen,
    fields=FIELDS,
    tensors=tensors,
    prefix="transformer.",
    irrelevant=IRRELEVANT,
    buffers=("h.*.attn.causal_mask",),
    context="n_positions",
)
