"""Tunesmith: fine-tuning with proof.

    import tunesmith
    result = tunesmith.run("recipe.yaml")       # check, train, eval, release
"""

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
