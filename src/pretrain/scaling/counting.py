"""What is counted as parameters and as FLOPs: conventions that change the exponents of a law.

6ND counts two FLOPs a parameter and token forward and twice that backward. Chinchilla's appendix F
counts every product of the forward pass, the look-up of embeddings as a product with a one-hot vector
among them, and twice that backward. PaLM's counts 6 N and attention's products of activations.
"""

from dataclasses import dataclass

from pretrain import flops
from pretrain.config import Mistake
from pretrain.models.model import Architecture, Decoder
from pretrain.run import Run
from pretrain.sweeps.cost import parameters, sequences


@dataclass(frozen=True)
class Forward:
    """FLOPs of one token's forward pass, by part."""

    embedding: int  # the look-up as a product with a one-hot vector
    matrices: int  # attention's projections and the feed-forward
    scores: int  # queries with keys, softmax, probabilities with values
    head: int  # logits

    @property
    def total(self) -> int:
        """All parts, forward and backward: appendix F as its text has it."""
        return 3 * (self.embedding + self.matrices + self.scores + self.head)

    @property
    def without_tables(self) -> int:
        """Without embedding and head, forward and backward: what the ratios of Table A4 are made of."""
        return 3 * (self.matrices + self.scores)


def appendix_f(
    *, layers: int, d_model: int, d_ff: int, heads: int, head_dim: int, vocab: int, seq_len: int
) -> Forward:
    """A token's share of the forward pass (Hoffmann et al., arXiv 2203.15556, appendix F)."""
    D, F, NH, T = d_model, d_ff, heads * head_dim, seq_len
    projections = 2 * 3 * D * NH + 2 * NH * D
    feed_forward = 2 * (D * F + D * F)
    scores = 2 * T * NH + 3 * heads * T + 2 * T * NH
    return Forward(
        embedding=2 * vocab * D,
        matrices=layers * (projections + feed_forward),
        scores=layers * scores,
        head=2 * D * vocab,
    )


def forward(model: Architecture, seq_len: int) -> Forward:
    """Appendix F of any decoder: shared key/value heads and gated feed-forwards have their own products."""
    if not isinstance(model, Decoder):
        raise Mistake(
            f"{type(model).__name__} has no attention: appendix F counts transformers, so count "
            "6 N D."
        )
    D, H, T = model.d_model, model.head_dim, seq_len
    table = 2 * model.vocab * D
    scores = model.layers * model.heads * (4 * T * H + 3 * T)
    return Forward(table, 2 * parameters(model).non_embedding, scores, table)


@dataclass(frozen=True)
class Counts:
    """One run by every convention. FLOPs are of the whole run."""

    parameters: int
    non_embedding_parameters: int
    tokens: int
    flops_6nd: int  # N all parameters
    flops_6nd_non_embedding: int  # N as Kaplan et al. count it
    flops_palm: int  # 6N + 12 L N_h H T a token: what describe, sweeps and MFU use
    flops_appendix_f: int
    flops_appendix_f_without_tables: int


def counts(run: Run) -> Counts:
    """What a run amounts to by each convention."""
    number, tokens = parameters(run.model), sequences(run) * run.seq_len
    appendix = forward(run.model, run.seq_len)
    return Counts(
        parameters=number.total,
        non_embedding_parameters=number.non_embedding,
        tokens=tokens,
        flops_6nd=6 * number.total * tokens,
        flops_6nd_non_embedding=6 * number.non_embedding * tokens,
        flops_palm=tokens * flops.flops_per_token(run.model, number.total, run.seq_len),
        flops_appendix_f=tokens * appendix.total,
        flops_appendix_f_without_tables=tokens * appendix.without_tables,
    )
