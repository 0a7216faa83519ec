"""The IsoFLOP profiles of Chinchilla (Hoffmann et al., arXiv 2203.15556): its nine budgets, its shapes.

    python -m pretrain.sweep --config chinchilla.py --dry-run
    sbatch --array=0-198 launch/sweep_slurm.sh --config chinchilla.py

Budgets of section 3.2 and figure 3; shapes of table A9, whose parameters these models have, to 1 %. The rate
falls tenfold over a cosine as long as the run (section 3.1), with AdamW (section 4.1). Not in the paper: on
which sizes a budget was spent, here those of 2 to 200 tokens a parameter; peak rates and batch, here those
of Gopher's models of like sizes (Rae et al., arXiv 2112.11446, table 1), with 0.25 M tokens a step for all;
the warm-up. What else the papers leave open and what you give: see gopher_44m.py.
"""

from dataclasses import replace

from pretrain.configs.gopher_44m import config as gopher_44m
from pretrain.optim import AdamW
from pretrain.run import Run
from pretrain.schedules import Cosine
from pretrain.sweeps.ladder import isoflop

BUDGETS = (6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21)  # FLOPs

# Parameters in millions, d_model, ffw_size, kv_size, n_heads, n_layers.
TABLE_A9 = (
    (44, 512, 2048, 64, 8, 8),
    (57, 576, 2304, 64, 9, 9),
    (74, 640, 2560, 64, 10, 10),
    (90, 640, 2560, 64, 10, 13),
    (106, 640, 2560, 64, 10, 16),
    (117, 768, 3072, 64, 12, 12),
    (140, 768, 3072, 64, 12, 15),
    (163, 768, 3072, 64, 12, 18),
    (175, 896, 3584, 64, 14, 14),
    (196, 896, 3584, 64, 14, 16),
    (217, 896, 3584, 64, 14, 18),
    (251, 1024, 4096, 64, 16, 16),
    (278, 1024, 4096, 64, 16, 18),
    (306, 1024, 4096, 64, 16, 20),
    (425, 1280, 5120, 128, 10, 18),
    (489, 1280, 5120, 128, 10, 21),
    (509, 1408, 5632, 128, 11, 18),
    (552, 1280, 5120, 128, 10, 24),
    (587, 1408, 5632, 128, 11, 21),
    (632, 1536, 6144, 128, 12, 19),
    (664, 1408, 5632, 128, 11, 24),
    (724, 1536, 6144, 128, 12, 22),
    (816, 1536, 6144, 128, 12, 25),
    (893, 1792, 7168, 128, 14, 20),
    (1018, 1792, 7168, 128, 14, 23),
    (1143, 1792, 7168, 128, 14, 26),
    (1266, 2048, 8192, 128, 16, 22),
    (1424, 2176, 8704, 128, 17, 22),
    (1429, 2048, 8192, 128, 16, 25),
    (1593, 2048, 8192, 128, 16, 28),
    (1609, 2176, 8704, 128, 17, 25),
    (1731, 2304, 9216, 128, 18, 24),
    (1794, 2176, 8704, 128, 17, 28),
    (2007, 2304, 9216, 128, 18, 28),
    (2283, 2304, 9216, 128, 18, 32),
    (2298, 2560, 10240, 128, 20, 26),
    (2639, 2560, 10240, 128, 20, 30),
    (2980, 2560, 10240, 128, 20, 34),
    (3530, 2688, 10752, 128, 22, 36),
    (3802, 2816, 11264, 128, 22, 36),
    (4084, 2944, 11776, 128, 22, 36),
    (4516, 3072, 12288, 128, 24, 36),
    (6796, 3584, 14336, 128, 28, 40),
    (9293, 4096, 16384, 128, 32, 42),
    (11452, 4352, 17408, 128, 32, 47),
    (12295, 4608, 18432, 128, 36, 44),
    (12569, 4608, 18432, 128, 32, 47),
    (13735, 4864, 19456, 128, 32, 47),
    (14940, 4992, 19968, 128, 32, 49),
    (16183, 5120, 20480, 128, 40, 47),
)


def peak_lr(millions: int) -> float:
    """That of the Gopher model of the nearest class of sizes."""
    return 6e-4 if millions < 300 else 2e-4 if millions < 4000 else 1.2e-4


def sized(millions: int, d_model: int, d_ff: int, head_dim: int, heads: int, layers: int) -> Run:
    """The run of one shape; `isoflop` sets its steps."""
    model = replace(
        gopher_44m.model, layers=layers, d_model=d_model, heads=heads, head_dim=head_dim, d_ff=d_ff
    )
    optim = AdamW(peak_lr=peak_lr(millions), schedule=Cosine(warmup=100))
    return replace(gopher_44m, model=model, optim=optim)


sweep = isoflop(
    {f"{shape[0]}M": sized(*shape) for shape in TABLE_A9},
    BUDGETS,
    tokens_per_parameter=(2, 200),
)
