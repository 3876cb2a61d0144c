"""Draws how many bits each KV head of a codebook has, keys beside values, layers from top to
bottom: a dark head is one that finds things from far back, a white one has no codes.

    cqkv inspect --json model-1b.gguf | python3 scripts/plot_rates.py rates.svg

SVG or PNG, by the name. Needs matplotlib.
"""

import json
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402: after the choice of a backend
from matplotlib.colors import BoundaryNorm, ListedColormap  # noqa: E402

# Text as text, and the same file from the same figures.
plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "cqkv"})
# Bits a channel: none, up to 1/8, then doubling.
LEVELS = [0, 0.125, 0.25, 0.5, 1, 2, 4, 8]
EXACT = float("nan")  # grey
NAMES = ["0", "1/8", "1/4", "1/2", "1", "2", "4", "8"]
COLOURS = ListedColormap(["#ffffff", "#e3eef9", "#cfe1f2", "#a6cee4", "#6aaed6", "#3787c0",
                          "#105ba4", "#08306b"]).with_extremes(bad="#bbbbbb")


def rates_of(side, n_kv_heads):
    """Bits a channel of each KV head; EXACT of exact sides and of heads that a layer lacks."""
    if side is None or side["config"] == "exact":
        return [EXACT] * n_kv_heads
    rates = [side["code_bits"] / dim if dim > 0 else 0.0 for dim in side["group_dims"]]
    return rates + [EXACT] * (n_kv_heads - len(rates))


def level_of(rate):
    """The nearest level above, of 12 bits a channel the last."""
    if rate != rate:
        return rate
    return min([i for i, level in enumerate(LEVELS) if rate <= level], default=len(LEVELS) - 1)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    codebook = json.load(sys.stdin)
    sides = [layer[kind] for layer in codebook["layers"] for kind in "kv"]
    n_kv_heads = max(side["n_kv_heads"] for side in sides if side and side["config"] != "exact")
    figure, axes = plt.subplots(1, 2, sharey=True, figsize=(
        2.6 + 0.5 * n_kv_heads, 1.2 + 0.2 * len(codebook["layers"])))
    for axis, kind, title in zip(axes, "kv", ("keys", "values")):
        rows = [[level_of(rate) for rate in rates_of(layer[kind], n_kv_heads)]
                for layer in codebook["layers"]]
        image = axis.imshow(rows, cmap=COLOURS, aspect="auto",
                            norm=BoundaryNorm([i - 0.5 for i in range(len(LEVELS) + 1)],
                                              len(LEVELS)))
        axis.set_title(title)
        axis.set_xlabel("KV head")
        axis.set_xticks(range(n_kv_heads))
    axes[0].set_ylabel("layer")
    figure.suptitle(f"{codebook['name']}\n{codebook['bits_per_channel']:.2f} bits a channel",
                    fontsize=9)
    bar = figure.colorbar(image, ax=axes, ticks=range(len(LEVELS)))
    bar.ax.set_yticklabels(NAMES)
    bar.set_label("bits a channel")
    figure.savefig(sys.argv[1], bbox_inches="tight", metadata={"Date": None}
                   if sys.argv[1].endswith(".svg") else None)


if __name__ == "__main__":
    main()
