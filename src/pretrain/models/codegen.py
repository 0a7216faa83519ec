"""CodeGen (Nijkamp et al., arXiv 2203.13474, section 2.2)."""

from pretrain.models.gptj import GPTJ


class CodeGen(GPTJ):
    """GPT-J's equations; `transformers` stores it otherwise."""
