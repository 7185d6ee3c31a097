"""What other models say of the rows, computed once before step 1 and kept beside the dataset.

    datasets/ID/reference/KEY/train.npz     log p of each row's answers by the base, NaN where no run has asked yet

KEY is a hash of everything the numbers depend on besides the dataset: the base's bytes, dtype, device, path, kernels, and the
code that computes them. A file that is not as it was written is computed again. A run remembers the digest of the numbers that
it trains with, and does not go on with others.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.data.dataset import Dataset, stem
from tunesmith.data.pack import plan_steps
from tunesmith.objectives import families
from tunesmith.objectives.families import Family
from tunesmith.store.files import explain_os_errors, sha256_bytes, sha256_json, write_bytes

if TYPE_CHECKING:
    import numpy as np

Say = Callable[[str], None]
FOLDER = "reference"
ROOMS = ("engine", "objectives")
REPORTED = 20
"""Packs between two lines that say how far it is."""


def key(**facts: Any) -> str:
    """Name of the folder for numbers that depend on these facts and on the code of the rooms that compute them."""
    package = Path(__file__).parent.parent
    code = sha256_bytes(b"".join(p.read_bytes() for room in ROOMS for p in sorted((package / room).rglob("*.[pc]*"))
                                 if p.suffix in (".py", ".c")))
    return sha256_json(facts | {"code": code}).removeprefix("sha256:")[:20]


def base_logps(model, answer_logps: Callable, dataset: Dataset, part: str, name: str, rows: Sequence[int],
               family: Callable[[int], Family], pack_tokens: int, say: Say) -> np.ndarray:
    """Log p of each answer of `rows` by the model without its adapter, float64, [rows of the part, answers].

    Only what no run has computed before is computed. Other rows are NaN.
    """
    import numpy as np
    import torch

    path = dataset.path / FOLDER / name / f"{stem(part)}.npz"
    count = len(dataset.tokens(part))
    values = _read(path, count, say)
    missing = [r for r in sorted(set(rows)) if values is None or np.isnan(values[r]).any()]
    if not missing:
        return values
    made = {r: family(r) for r in missing}
    if values is None:
        values = np.full((count, len(made[missing[0]]) - 1), np.nan)
    packs = _packs(missing, made, pack_tokens)
    was_training = model.training
    model.eval()
    with torch.inference_mode(), model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext():
        for number, pack in enumerate(packs, 1):
            found = answer_logps(model, [made[r] for r in pack]).double().cpu().numpy()
            for r, row in zip(pack, np.split(found, np.cumsum([len(made[r]) for r in pack])[:-1]), strict=True):
                values[r] = row[1:]
            if number == 1 or number % REPORTED == 0 or number == len(packs):
                say(f"the base's log-probabilities of {part!r}: {number} of {len(packs)} packs")
    model.train(was_training)
    _write(path, values)
    return values


def _packs(rows: Sequence[int], made: dict[int, Family], pack_tokens: int) -> list[list[int]]:
    steps = plan_steps([families.tokens(made[r]) for r in rows], tokens_per_step=pack_tokens)
    return [[rows[i] for i in pack] for step in steps for pack in step.packs]


def digest(arrays: Iterator[np.ndarray]) -> str:
    """Of the numbers that a run trains with."""
    return sha256_bytes(b"".join(a.tobytes() for a in arrays))


def _write(path: Path, values: np.ndarray) -> None:
    import numpy as np

    buffer = io.BytesIO()
    np.savez(buffer, values=values, digest=np.array(sha256_bytes(values.tobytes())))
    write_bytes(path, buffer.getvalue())


def _read(path: Path, count: int, say: Say) -> np.ndarray | None:
    """What was written there, if it still is what was written."""
    import zipfile

    import numpy as np

    if not path.is_file():
        return None
    try:
        with explain_os_errors(path, "read"), np.load(path) as found:
            values = found["values"]
            if len(values) == count and str(found["digest"]) == sha256_bytes(values.tobytes()):
                return values
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    say(f"{path} is damaged: it is computed again")
    return None
