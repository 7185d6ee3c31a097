"""Tunesmith: fine-tuning with proof.

    import tunesmith
    result = tunesmith.run("recipe.yaml")       # check, train, eval, release
"""

import os

# Threads that spin while they wait can make a training on shared cores several times slower (docs/measurements.md). OpenMP
# reads this when torch is loaded, so it is set before; a value of your own is kept.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from tunesmith.verbs import (
    check,
    evaluate,
    init,
    prepare,
    promote,
    release,
    rollback,
    run,
    runs,
    show,
    show_rows,
    train,
    verify_packing,
    verify_release,
    verify_resume,
)

__version__ = "0.1.0"
__all__ = [
    "check", "evaluate", "init", "prepare", "promote", "release", "rollback", "run", "runs", "show", "show_rows", "train",
    "verify_packing", "verify_release", "verify_resume",
]
