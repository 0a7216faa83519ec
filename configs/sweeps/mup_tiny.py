"""Learning rates at four widths, as each family is written and under muP, on two CPU cores.

    python -m pretrain.sweep --config mup_tiny.py

Forty runs, about 35 minutes where nothing else runs. Under muP the best rate is the same at every width.
"""

from dataclasses import replace

from pretrain.configs.sweeps.isoflop_tiny import sized
from pretrain.parametrisation import MuP, Standard
from pretrain.sweeps.ladder import for_tokens, widths
from pretrain.sweeps.member import Member

RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
PARAMETRISATIONS = {"standard": Standard(), "mup": MuP(base_width=32)}

narrow = sized(layers=2, d_model=32)

sweep = [
    Member(
        name=f"{name}-d{d_model}-lr{rate:g}",
        run=for_tokens(
            replace(
                narrow,
                model=model,
                optim=replace(narrow.optim, peak_lr=rate),
                parametrisation=parametrisation,
            ),
            3e5,
        ),
    )
    for name, parametrisation in PARAMETRISATIONS.items()
    for d_model, model in widths(narrow.model, (32, 64, 128, 256))
    for rate in RATES
]
