"""Text from a model, as a command and during a run.

sample      the `Sample` node: what a run asks its model to write
generator   prompts read at once, then a token a step, through a cache
choice      how a token is chosen: the likeliest, or a draw
beam        beam search
spelling    text of ids as they come
trained     a model of a run directory, or of Hugging Face's files
__main__    the command
"""

from pretrain.generate.beam import Beam
from pretrain.generate.choice import Choice, Draw, Greedy
from pretrain.generate.generator import Generator
from pretrain.generate.sample import Sample

__all__ = ["Beam", "Choice", "Draw", "Generator", "Greedy", "Sample"]
