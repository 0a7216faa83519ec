"""FLOPs and time of Pallas kernels, for which a compiled program states no estimate."""

import math
import re
from collections.abc import Callable

from pretrain.kernels.fused import Fused
from pretrain.kernels.mask import Mask
from pretrain.kernels.splash import Splash
from pretrain.models.model import Decoder
from pretrain.planning.hlo import Instruction, Module, shapes
from pretrain.run import Run

# Products of a tile: q k and p v forward; for dq also dp = da v; for dk and dv all of these and two.
PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
# An assumption, printed with every plan: softmax and loads keep such kernels from the chip's peak.
EFFICIENCY = 0.5


def splash(run: Run, peak: float) -> Callable[[Module, Instruction], tuple[int, float]]:
    """FLOPs and seconds of splash attention's kernels in the program of this run."""
    attention = run.compute.attention
    attention = attention.on("tpu") if isinstance(attention, Fused) else attention

    def cost(module: Module, instruction: Instruction) -> tuple[int, float]:
        phase = re.search(r"splash_m[hq]a_(fwd|dq|dkv)", instruction.op_name)
        if phase is None or not isinstance(attention, Splash) or not isinstance(run.model, Decoder):
            raise ValueError(f"the kernel {instruction.name} has no known cost")
        constraints = instruction.rest[instruction.rest.index("operand_layout_constraints") :]
        floats = [dims for kind, dims in shapes(constraints) if kind in ("bf16", "f32")]
        q_dims, k_dims = floats[:2]
        shares = [visited(mask, run.seq_len, attention.block) for mask in run.model.masks]
        share = sum(shares) / len(shares)  # layers of several masks are equally many
        flops = round(2 * PRODUCTS[phase[1]] * math.prod(q_dims) * k_dims[-2] * share)
        return flops, flops / (EFFICIENCY * peak)

    return cost


def visited(mask: Mask, positions: int, block: int) -> float:
    """The share of tiles of `block` queries and keys in which the mask lets any pair through."""
    block = min(block, positions)
    starts = range(0, positions, block)
    pairs = [bool(mask.reaches(i, i + block - 1, j, j + block - 1)) for i in starts for j in starts]
    return sum(pairs) / len(pairs)
