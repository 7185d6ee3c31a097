"""All near-duplicate pairs of real addresses: over Ray Data and on one machine, in one run, and whether they are equal.

    python benchmarks/near_duplicates_ray.py DIRECTORY [--rows 10000 100000] [--blocks 8] [--parts 8]

DIRECTORY as in benchmarks/prepare.py, whose rows these are. Needs the extra `ray`. The cluster is this machine.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from pathlib import Path

from prepare import write_rows

from tunesmith.data.normalise import rows_of
from tunesmith.data.similar import Index
from tunesmith.data.spool import encode

NEAR = 0.8


def on_one_machine(rows) -> tuple[float, set[tuple[int, int]]]:
    began = time.perf_counter()
    index = Index(rows, NEAR)
    found = {(i, j) for j, hits in enumerate(index.near_each(rows)) for i, _ in hits if i < j}
    return time.perf_counter() - began, found


def over_ray(ray, rows, blocks: int, parts: int) -> tuple[float, set[tuple[int, int]], dict]:
    import pyarrow as pa

    from tunesmith.data.over_ray import near_pairs

    bounds = [len(rows) * n // blocks for n in range(blocks + 1)]
    ds = ray.data.from_arrow([
        pa.table({"at": pa.array(range(a, b), pa.int64()), "row": pa.array(map(encode, rows[a:b]), pa.large_string())})
        for a, b in zip(bounds, bounds[1:], strict=False)])
    told: dict = {}
    began = time.perf_counter()
    pairs = near_pairs(ds, NEAR, parts, told)
    seconds = time.perf_counter() - began
    found = {pair for table in pairs.iter_batches(batch_format="pyarrow")
             for pair in zip(table["at_a"].to_pylist(), table["at_b"].to_pylist(), strict=True)}
    return seconds, found, told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--parts", type=int, default=8)
    options = parser.parse_args()
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel("WARNING")
    ray.data.DataContext.get_current().enable_progress_bars = False
    print("| rows | pairs | equal | one machine | Ray | prefixes a row | bytes a row | candidates a row |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as place:
        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=3_000_000_000, log_to_driver=False,
                 logging_level="warning", _temp_dir=place)
        for count in options.rows:
            path = Path(place) / "rows.jsonl"
            write_rows(options.folder, path, count)
            rows = list(rows_of(path, path.name))
            seconds, found, told = over_ray(ray, rows, options.blocks, options.parts)
            alone, expected = on_one_machine(rows)
            prefixes, sent, candidates = (told[name] / count for name in ("prefixes", "bytes", "candidates"))
            print(f"| {count:,} | {len(expected):,} | {found == expected} | {alone:.1f} s | {seconds:.1f} s "
                  f"| {prefixes:.1f} | {sent:,.0f} | {candidates:.2f} |", flush=True)
        ray.shutdown()


if __name__ == "__main__":
    main()
