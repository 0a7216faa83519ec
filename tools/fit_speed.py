"""Time the fit of 245 points with 1000 bootstrap resamples: `python tools/fit_speed.py`.

As many points as Besiroglu et al. (arXiv 2404.10102) read off Chinchilla's figure, drawn from its law
with a scatter of half a per cent. The command is run as a user runs it, twice: with no compiled program
at hand, and again.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pretrain.scaling.forms import HOFFMANN, Chinchilla

POINTS, RESAMPLES = 245, 1000


def draw(path: Path) -> None:
    """The points, as a CSV."""
    random, form = np.random.default_rng(0), Chinchilla()
    N = np.exp(random.uniform(np.log(4e7), np.log(1.6e10), POINTS))
    D = np.exp(random.uniform(np.log(5e8), np.log(4e11), POINTS))
    loss = form.loss(form.vector(HOFFMANN), N=N, D=D)
    loss = loss * np.exp(0.005 * random.standard_normal(POINTS))
    np.savetxt(path, np.stack([N, D, loss], axis=1), "%.17g", ",", header="N,D,loss", comments="")


def main() -> None:
    """Print wall and CPU seconds of each run."""
    argparse.ArgumentParser(description=__doc__).parse_args()  # there is --help, and nothing else
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "points.csv")
        draw(file)
        command = [sys.executable, "-m", "pretrain.scaling", "fit", str(file), "--json"]
        command += ["--resamples", str(RESAMPLES)]
        # The compile cache is under the home directory: an empty one knows no program.
        fresh = os.environ | {"HOME": folder}
        for name in ("first, compiling", "again"):
            used, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=fresh)
            seconds, then = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = then.ru_utime + then.ru_stime - used.ru_utime - used.ru_stime
            print(f"{name:<18}{seconds:6.1f} s, {cpu:6.1f} CPU seconds")


if __name__ == "__main__":
    main()
