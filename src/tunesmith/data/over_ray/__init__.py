"""The stages of the data room over Ray Data, for rows that one machine cannot go through in time.

    ds = read({"a.jsonl": path, ...})                       at (place in the order of files), row (encoded, data.spool)
    ds, findings = without_exact_duplicates(ds)             the first in file order stays
    pairs = near_pairs(ds, 0.8)                             at_a < at_b, similarity: what Index.near gives
    train, held_out = split(ds, config, seed, similar)      by random, source or key; stratified or not
    findings = leaks(train, {"test": rows}, 0.8)            exact, normalised, numbers, reordered, near
    counts = write(rendered(train, tokenizer), folder, "train", config, dropped)

Each gives the same answer as the local stage of that name, whatever the number and order of blocks, because both call the same
function for a row, and draws go by content. A stage that groups rows sends them to `parts` buckets by hash; one bucket
must fit in the memory of a worker.

Not there: raw text, repairs, split by time, filters, mix, the survey of text quality, contradictions, near-duplicate findings,
and of leaks those in part (contained, prompt, answer). They need counts over the corpus that have no merge yet.
"""

from tunesmith.data.over_ray.near import near_pairs
from tunesmith.data.over_ray.stages import leaks, read, rendered, split, without_exact_duplicates, write

__all__ = ["leaks", "near_pairs", "read", "rendered", "split", "without_exact_duplicates", "write"]
