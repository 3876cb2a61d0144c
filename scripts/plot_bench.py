"""Draws what `cqkv bench attention --json` measured: ns per token and query head, bars by
number of tokens, one picture for every other number that differs between rows.

    scripts/plot_bench.py attention.json attention.svg

A bar is the fastest repetition, the line on it goes up to the median. Needs matplotlib.
"""

import json
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402: after the choice of a backend

PANEL_KEYS = ["head_dim", "gqa", "n_kv_heads", "n_seq", "unified", "first_position", "n_queries",
              "threads"]
# Text as text, and the same file from the same figures.
plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "cqkv"})
COLOURS = {"cqkv": ["#0b5394", "#3d85c6", "#9fc5e8", "#cfe2f3"],
           "ggml": ["#434343", "#8a8a8a", "#c4c4c4"]}


def panel_of(row):
    return tuple(row[key] for key in PANEL_KEYS)


def title_of(row):
    layout = "unified" if row["unified"] else "separate"
    sequences = f", {row['n_seq']} sequences ({layout})" if row["n_seq"] > 1 else ""
    queries = f", {row['n_queries']} queries" if row["n_queries"] > 1 else ""
    threads = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
    return (f"{row['gqa'] * row['n_kv_heads']} heads of {row['head_dim']}, {row['n_kv_heads']} of "
            f"KV{sequences}{queries}, {threads}")


def unique(values):
    return list(dict.fromkeys(values))


# Our rows with sums over keys of n KV heads are "8c8b+n".
def kind_of(row):
    return row["type"] + (f"+{row['key_heads']}" if row.get("key_heads") else "")


def draw_panel(axes, rows):
    tokens = unique(row["n_tokens"] for row in rows)
    series = unique((row["impl"], kind_of(row)) for row in rows)
    width = 0.8 / len(series)
    for i, (impl, kind) in enumerate(series):
        own = [row for row in rows if (row["impl"], kind_of(row)) == (impl, kind)]
        places = [tokens.index(row["n_tokens"]) + (i - (len(series) - 1) / 2) * width
                  for row in own]
        fastest = [row["ns_per_token_head"] for row in own]
        above = [row["ns_per_token_head_median"] - row["ns_per_token_head"] for row in own]
        colours = COLOURS[impl]
        nth = [kind for name, kind in series if name == impl].index(kind)
        bars = axes.bar(places, fastest, width, yerr=[[0] * len(own), above], ecolor="#b45f06",
                        color=colours[nth % len(colours)], label=f"{impl} {kind}")
        axes.bar_label(bars, labels=[f"{value:.3g}" for value in fastest], fontsize=6, padding=1)
    axes.set_title(title_of(rows[0]), fontsize=9)
    axes.set_xticks(range(len(tokens)), [f"{n:,}" for n in tokens])
    axes.set_xlabel("tokens")
    axes.set_ylabel("ns per token and query head")
    axes.spines[["top", "right"]].set_visible(False)


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: plot_bench.py FIGURES.json PICTURE.png|svg")
    with open(sys.argv[1], encoding="utf-8") as file:
        figures = json.load(file)
    rows = figures["rows"]
    panels = unique(panel_of(row) for row in rows)
    n_columns = min(2, len(panels))
    n_lines = -(-len(panels) // n_columns)
    figure, all_axes = plt.subplots(n_lines, n_columns, squeeze=False, layout="constrained",
                                    figsize=(6.5 * n_columns, 3.6 * n_lines + 0.6))
    for axes in all_axes.flat[len(panels):]:
        axes.set_visible(False)
    for axes, panel in zip(all_axes.flat, panels):
        draw_panel(axes, [row for row in rows if panel_of(row) == panel])
    figure.suptitle(f"Attention over caches, {figures['cpu'] or 'unknown processor'} "
                    f"({figures['instruction_set']}), {figures['tool']}, "
                    f"ggml {figures['ggml']}", fontsize=10)
    handles, labels = all_axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3 * n_columns, fontsize=8)
    metadata = {"Date": None} if sys.argv[2].endswith(".svg") else None
    figure.savefig(sys.argv[2], dpi=150, metadata=metadata)


if __name__ == "__main__":
    main()
