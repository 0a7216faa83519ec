"""How well a shuffle mixes: ours beside grain's, where grain is installed (`pip install grain`).

    python tools/shuffle.py

For a fair permutation the correlation of neighbours, times sqrt(n), is a standard normal number: beyond
5 there is structure. docs/data.md tells what follows.
"""

import argparse
import contextlib
import json

import numpy as np

from pretrain.data.order import permuted


def main() -> None:
    """One JSON line for each size and shuffle: the worst of eight seeds."""
    argparse.ArgumentParser(description=__doc__).parse_args()  # there is --help, and nothing else
    shuffles = {"pretrain": ours}
    with contextlib.suppress(ImportError):
        import grain.python.experimental  # noqa: F401

        shuffles["grain"] = grains
    for n in (10_000, 43_008, 65_536, 100_000):
        for name, shuffle in shuffles.items():
            worst = max(abs(sigmas(shuffle(n, seed))) for seed in range(8))
            line = {"shuffle": name, "n": n, "neighbour_correlation_sigmas": round(worst, 1)}
            print(json.dumps(line))


def grains(n: int, seed: int) -> np.ndarray:
    """What `grain.MapDataset.shuffle` orders n elements by."""
    from grain.python.experimental import index_shuffle

    return np.array([index_shuffle(i, max_index=n - 1, seed=seed, rounds=4) for i in range(n)])


def ours(n: int, seed: int) -> np.ndarray:
    """The order of the first epoch of n windows."""
    return permuted(np.arange(n), n, seed, 0)


def sigmas(order: np.ndarray) -> float:
    """Correlation of each element with the next, in standard deviations."""
    return float(np.corrcoef(order[:-1], order[1:])[0, 1] * np.sqrt(len(order)))


if __name__ == "__main__":
    main()
