"""Beam search, to the same sequences as Hugging Face's `generate` with `early_stopping=False`."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from pretrain.config import Mistake
from pretrain.generate.choice import Choice
from pretrain.models.cache import Cache

NONE = -1e9  # score of a text that is not there


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Texts:
    """W texts a prompt, best first. N is the most tokens that one can have."""

    ids_BWN: jax.Array
    scores_BW: jax.Array
    lengths_BW: jax.Array  # 0 where no text is there

    @classmethod
    def none(cls, prompts: int, width: int, tokens: int) -> "Texts":
        """No text yet."""
        ids_BWN = jnp.zeros((prompts, width, tokens), jnp.int32)
        scores_BW = jnp.full((prompts, width), NONE, jnp.float32)
        return cls(ids_BWN, scores_BW, jnp.zeros((prompts, width), jnp.int32))

    def taken(self, index_BX: jax.Array) -> "Texts":
        """These texts, by their places."""

        def take(x: jax.Array) -> jax.Array:
            return jnp.take_along_axis(x, jnp.expand_dims(index_BX, range(2, x.ndim)), axis=1)

        return jax.tree.map(take, self)

    def best(self, width: int) -> tuple["Texts", jax.Array]:
        """The best of them and their places [B, width]."""
        _, places_BW = jax.lax.top_k(self.scores_BW, width)
        return self.taken(places_BW), places_BW


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Beams:
    """The search for one text a prompt."""

    running: Texts  # scored by the sum of log-probabilities
    ended: Texts  # scored by that sum / length^penalty
    parents_R: jax.Array  # row of the cache that each running text goes on from
    room_B: jax.Array  # tokens that a text may have
    written: jax.Array  # tokens of the running texts
    over_B: jax.Array  # whether no running text is looked at any more
    ended_now_B: jax.Array  # whether that is since the last step

    @property
    def newest_R(self) -> jax.Array:
        """The last ids of the running texts."""
        newest_BW1 = jax.lax.dynamic_slice_in_dim(self.running.ids_BWN, self.written - 1, 1, axis=2)
        return newest_BW1.reshape(-1)

    def news(self) -> list[list[int]]:
        """The best text of each prompt whose search has just ended: before, nothing is certain."""
        ids_BN = np.asarray(self.ended.ids_BWN)[:, 0]
        lengths_B, now_B = np.asarray(self.ended.lengths_BW)[:, 0], np.asarray(self.ended_now_B)
        return [
            ids_N[:length].tolist() if now else []
            for ids_N, length, now in zip(ids_BN, lengths_B, now_B, strict=True)
        ]


class Beam(Choice):
    """The text with the largest sum of log-probabilities / length^penalty among those searched.

    Each step extends the W best unfinished texts by every token. A search ends when it has W complete
    texts and the best unfinished one, were it complete now, would not be better than the worst of
    them. The length counts the stop token and not the prompt.
    """

    beams: int = 4  # W, the unfinished texts that a step goes on with
    length_penalty: float = 1.0  # above 0 longer texts score better, 0 is the plain sum

    def check(self, path: str) -> None:
        """Raises Mistake where a field is out of range, as one of the node at `path`."""
        if self.beams < 1:
            raise Mistake(f"{path}beams is {self.beams}: make it 1 or more.")

    @property
    def rows(self) -> int:
        """One a beam."""
        return self.beams

    def start(self, room_B: jax.Array, seed: jax.Array, tokens: int) -> Beams:
        """See `Choice`."""
        B, W = len(room_B), self.beams
        none, never_B = Texts.none(B, W, tokens), jnp.zeros((B,), bool)
        # All rows of a prompt are alike before the first token: only one of them may compete.
        first = replace(none, scores_BW=none.scores_BW.at[:, 0].set(0.0))
        return Beams(first, none, jnp.arange(B * W), room_B, jnp.int32(0), never_B, never_B)

    def choose(self, logits_RV: jax.Array, state: Beams, stop_E: jax.Array) -> Beams:
        """See `Choice`."""
        # So many that W of them go on, even if each text's best continuations all end it.
        kept = max(2, 1 + len(stop_E)) * self.beams
        candidates, parents_BC = continued(logits_RV, state, kept)
        ids_BC, length = candidates.ids_BWN[:, :, state.written], state.written + 1
        ends_BC = jnp.isin(ids_BC, stop_E) | (state.room_B == length)[:, None]
        penalty = length.astype(jnp.float32) ** self.length_penalty

        going = replace(candidates, scores_BW=jnp.where(ends_BC, NONE, candidates.scores_BW))
        running, places_BW = going.best(self.beams)
        # A text can end only where it is among the best W, those that go on counted too.
        ends_BC &= jnp.arange(kept)[None] < self.beams
        complete = Texts(
            candidates.ids_BWN,
            jnp.where(ends_BC, candidates.scores_BW / penalty, NONE),
            jnp.where(ends_BC, length, 0),
        )
        both = jax.tree.map(_beside, state.ended, complete)
        ended, _ = both.best(self.beams)

        full_B = jnp.all(ended.lengths_BW > 0, axis=-1)
        hope_B = running.scores_BW[:, 0] / penalty > ended.scores_BW[:, -1]
        over_B = (full_B & ~hope_B) | (state.room_B == length)
        parents_BW = jnp.take_along_axis(parents_BC, places_BW, axis=1)
        rows_BW = jnp.arange(len(over_B))[:, None] * self.beams + parents_BW
        after = Beams(running, ended, rows_BW.reshape(-1), state.room_B, length, over_B, over_B)
        return frozen(state, after)

    def follow(self, cache: Cache, state: Beams) -> Cache:
        """Each row becomes that of the text which it goes on from."""
        return cache.taken(state.parents_R)


def continued(logits_RV: jax.Array, state: Beams, kept: int) -> tuple[Texts, jax.Array]:
    """The best `kept` continuations of the running texts by one token, and their places among these."""
    B, W = state.running.scores_BW.shape
    logp_BWV = jax.nn.log_softmax(logits_RV, axis=-1).reshape(B, W, -1)
    V = logp_BWV.shape[-1]
    scores_BWV = state.running.scores_BW[..., None] + logp_BWV
    scores_BC, places_BC = jax.lax.top_k(scores_BWV.reshape(B, W * V), kept)
    parents_BC, ids_BC = places_BC // V, (places_BC % V).astype(jnp.int32)
    texts = state.running.taken(parents_BC)
    ids_BCN = texts.ids_BWN.at[:, :, state.written].set(ids_BC)
    return Texts(ids_BCN, scores_BC, texts.lengths_BW), parents_BC


def frozen(before: Beams, after: Beams) -> Beams:
    """`after`, but where a prompt's search was over `before`."""
    over_B = before.over_B

    def keep(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.where(jnp.expand_dims(over_B, range(1, x.ndim)), x, y)

    return replace(
        after,
        ended=jax.tree.map(keep, before.ended, after.ended),
        over_B=over_B | after.over_B,
        ended_now_B=after.over_B & ~over_B,
    )


def _beside(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.concatenate([x, y], axis=1)
