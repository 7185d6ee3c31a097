"""What an adapter becomes for other programs, each asked the same questions as the adapter on its base (ADR 14).

A format is a module:

    write(job, out) -> dict                       files into the empty directory `out`; returns what is worth knowing of them,
                                                  and `library`: whose files they are (Hugging Face: peft, transformers, gguf)
    probe(job, out, asked, reference) -> dict     {verdict: pass|fail|not_measured, message, runtime, fix?, ...} of those files,
                                                  loaded by the program that will run them (`probe.py` for the comparison)
    how(job, facts) -> str                        how to load it, in Markdown, for its model card
    dtype(job) -> str                             optional: what weights are written in where nobody asks (else as trained)

`max_abs_logit_diff`, `mean_kl` and `top1_agreement` are among what a probe returns where its runtime gives logits.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

FORMATS = {"peft": "tunesmith.exports.peft", "merged": "tunesmith.exports.merged", "vllm": "tunesmith.exports.vllm",
           "gguf": "tunesmith.exports.gguf", "ollama": "tunesmith.exports.ollama"}
"""What `export --format` takes, and the module of each."""


def of(name: str) -> ModuleType:
    """The module of a format. Raises UsageError: there is none of that name."""
    if name not in FORMATS:
        from tunesmith.errors import UsageError

        raise UsageError(f"no format {name!r}", fix=f"--format {', '.join(FORMATS)}")
    return import_module(FORMATS[name])
