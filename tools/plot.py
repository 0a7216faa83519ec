"""Plot the loss of runs: `python tools/plot.py runs/palm_tiny --out docs/palm_tiny_loss.png`."""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main() -> None:
    """Bits per byte by tokens, in training and held out, one colour a run."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("runs", nargs="+", type=Path, help="run directories")
    options.add_argument("--out", type=Path, required=True, help="the picture, PNG or SVG")
    chosen = options.parse_args()
    figure, axes = plt.subplots(figsize=(7.2, 4.2), dpi=150)
    for number, run in enumerate(chosen.runs):
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        training = [line for line in lines if line.get("bits_per_byte") is not None]
        tokens = {line["step"]: line["tokens"] / 1e6 for line in training}
        held_out = [
            line for line in lines if "eval_bits_per_byte" in line and line["step"] in tokens
        ]
        axes.plot(
            list(tokens.values()), [line["bits_per_byte"] for line in training],
            color=f"C{number}", alpha=0.6, linewidth=1, label=f"{run.name}: training",
        )  # fmt: skip
        axes.plot(
            [tokens[line["step"]] for line in held_out],
            [line["eval_bits_per_byte"] for line in held_out],
            "o-", color=f"C{number}", markersize=4, label=f"{run.name}: held out",
        )  # fmt: skip
    axes.set(xlabel="million tokens", ylabel="bits per byte", ylim=(0, 8))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(chosen.out)


if __name__ == "__main__":
    main()
