"""Mistral 7B (Jiang et al., arXiv 2310.06825, section 2)."""

from pretrain.kernels.mask import Causal, Mask
from pretrain.models.llama import LLaMA


class Mistral(LLaMA):
    """LLaMA whose layers each see only the nearest positions."""

    window: (
        int | None
    )  # positions that a token sees, itself included; None, as from v0.2 on, is all

    @property
    def masks(self) -> tuple[Mask, ...]:
        """Causal, within the window."""
        return (Causal(window=self.window),)
