"""Prints the demo's table from the JSON that `cqkv perplexity --json` writes."""

import json
import os
import sys


def name_of(entry):
    name = os.path.basename(entry["path"].split("@")[0]).removesuffix(".gguf")
    exact = entry["window"] or entry["sinks"]
    return f"{name}, window {entry['window']}+{entry['sinks']}" if exact else f"{name}, codes only"


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        figures = json.load(file)
    n_ctx = figures["n_ctx"]
    rows = [("16-bit (llama.cpp's f16)", figures["codebooks"][0]["cache_bytes_f16"] / n_ctx,
             "16.00", f"{figures['ppl_base']:.2f}", "0", "100 %")]
    for entry in figures["codebooks"]:
        rows.append((name_of(entry), entry["cache_bytes"] / n_ctx, f"{entry['bits_codes']:.2f}",
                     f"{entry['ppl']:.2f}", f"{entry['kld_mean']:.3f}",
                     f"{100 * entry['top1']:.1f} %"))
    print(f"{'cache':<30}{'bytes/token':>12}{'bits/channel':>14}{'perplexity':>12}"
          f"{'KL divergence':>15}{'top-1 agreement':>17}")
    for name, size, bits, ppl, kld, top1 in rows:
        print(f"{name:<30}{size:>12,.0f}{bits:>14}{ppl:>12}{kld:>15}{top1:>17}")
    print(f"\n{figures['codebooks'][0]['n_scored']:,} predictions at context {n_ctx}. KL divergence "
          "and agreement are against the 16-bit cache.\nA window of 128+4 keeps the last 128 tokens "
          "and the first 4 exact; bytes count its rows.")


if __name__ == "__main__":
    main()
