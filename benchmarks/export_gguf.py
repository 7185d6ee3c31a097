"""A release as GGUF in every type: size, and how far llama.cpp is from the adapter on its base.

    python benchmarks/export_gguf.py RELEASE [--quants f16,q8_0]

One row a type, in Markdown: the file's size, KL of what the file says (in torch) and of what llama.cpp says, share of tokens at
which both find the same one the likeliest, greedy answers that are the same.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import tunesmith
from tunesmith.exports.gguf.file import QUANTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("release")
    parser.add_argument("--quants", default=",".join(QUANTS))
    options = parser.parse_args()
    print("| type | MB | KL of the file | KL of llama.cpp | same likeliest token | same greedy answers | verdict |")
    print("|---" * 7 + "|")
    for quant in options.quants.split(","):
        with tempfile.TemporaryDirectory() as folder:
            done = tunesmith.export(options.release, "gguf", Path(folder) / "out", quant=quant)
        probe = done["probe"]
        print(f"| {quant} | {done['facts']['bytes'] / 1e6:.0f} | {probe['file']['mean_kl']:.2g} | {probe['mean_kl']:.2g} | "
              f"{probe['top1_agreement']:.1%} of {probe['llama_cpp']['tokens']} | {probe['same_texts']:.0%} of "
              f"{probe['questions']} | {probe['verdict']} |", flush=True)


if __name__ == "__main__":
    main()
