"""Tunesmith: fine-tuning with proof.

    import tunesmith
    result = tunesmith.run("recipe.yaml")       # check, train, eval, release
"""

import os

# A thread that waits for another spins for a moment and then sleeps: spinning for long makes a training on shared cores
# several times slower, sleeping at once a third slower on idle ones (docs/measurements.md). OpenMP reads both when torch is
# loaded, so they are set before; a waiting policy of your own is kept.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# oneDNN compiles a product for each shape and keeps the last 1,024, most of a megabyte each. Batches of ever new lengths would
# grow by 5 MB a step; a step meets its own shapes once a layer, and a few dozen are enough for that.
if "LRU_CACHE_CAPACITY" not in os.environ:
    os.environ["LRU_CACHE_CAPACITY"] = "64"
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

from tunesmith.verbs import (
    audit,
    check,
    compare,
    compose,
    convert_data,
    count_votes,
    diff_data,
    evaluate,
    export,
    gc,
    import_recipe,
    init,
    merge,
    new_key,
    prepare,
    promote,
    pull,
    push,
    release,
    rollback,
    run,
    runs,
    show,
    show_rows,
    sign_release,
    sweep,
    train,
    verify_merge,
    verify_packing,
    verify_quantised,
    verify_release,
    verify_replay,
    verify_resume,
    vote,
    watch,
)

__version__ = "0.1.0"
__all__ = [
    "audit", "check", "compare", "compose", "convert_data", "count_votes", "diff_data", "evaluate", "export", "gc",
    "import_recipe", "init", "merge", "new_key", "prepare", "promote", "pull", "push", "release", "rollback", "run", "runs",
    "show", "show_rows", "sign_release", "sweep", "train", "verify_merge", "verify_packing", "verify_quantised",
    "verify_release", "verify_replay", "verify_resume", "vote", "watch",
]
