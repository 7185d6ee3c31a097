"""What other models say of the rows, computed once before step 1 and kept beside the dataset.

    datasets/ID/reference/KEY/train.npz     logps [rows, answers]: log p of each row's answers by the base; or
                                            words [labels, K], logps [labels, K + 1]: a teacher's most likely words
                                            done [rows]: which rows have been asked for by now

KEY is a hash of everything the numbers depend on besides the dataset: the model's bytes, dtype, device, path, kernels, and the
code that computes them. A file that is not as it was written is computed again. A run remembers the digest of the numbers that
it trains with, and does not go on with others.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.data.dataset import Dataset, stem
from tunesmith.data.pack import plan_steps
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
    files = [p for room in ROOMS for p in sorted((package / room).rglob("*")) if p.suffix in (".py", ".c")]
    code = sha256_bytes(b"".join(p.read_bytes() for p in files))
    return sha256_json(facts | {"code": code}).removeprefix("sha256:")[:20]


class Kept:
    """Arrays of one part on disk, whole or absent; `done` says for which rows they are filled in."""

    def __init__(self, dataset: Dataset, part: str, name: str, say: Say):
        self.path, self.rows, self.say = dataset.path / FOLDER / name / f"{stem(part)}.npz", len(dataset.tokens(part)), say
        self.part = part
        self.arrays: dict[str, np.ndarray] = self._read() or {}

    def missing(self, rows: Sequence[int]) -> list[int]:
        done = self.arrays.get("done")
        return [r for r in sorted(set(rows)) if done is None or not done[r]]

    def write(self) -> None:
        import numpy as np

        buffer = io.BytesIO()
        np.savez(buffer, digest=np.array(self._digest(self.arrays)), **self.arrays)
        write_bytes(self.path, buffer.getvalue())

    @staticmethod
    def _digest(arrays: dict[str, np.ndarray]) -> str:
        return sha256_json({name: sha256_bytes(array.tobytes()) for name, array in arrays.items()})

    def _read(self) -> dict[str, np.ndarray] | None:
        """What was written there, if it still is what was written."""
        import numpy as np

        if not self.path.is_file():
            return None
        try:
            with explain_os_errors(self.path, "read"), np.load(self.path) as file:
                found = dict(file)
            if str(found.pop("digest")) == self._digest(found) and len(found["done"]) == self.rows:
                return found
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
            pass
        self.say(f"{self.path} is damaged: it is computed again")
        return None

    def fill(self, rows: Sequence[int], lengths: Sequence[int], pack_tokens: int, whose: str,
             ask: Callable[[list[int]], None]) -> None:
        """`ask` for packs of these rows, and write what it has put into the arrays. `lengths`: tokens of each row."""
        steps = plan_steps([lengths[r] for r in rows], tokens_per_step=pack_tokens)
        packs = [[rows[i] for i in pack] for step in steps for pack in step.packs]
        for number, pack in enumerate(packs, 1):
            ask(pack)
            self.arrays["done"][pack] = True
            if number == 1 or number % REPORTED == 0 or number == len(packs):
                self.say(f"{whose} log-probabilities of {self.part!r}: {number} of {len(packs)} packs")
        self.write()


def base_logps(kept: Kept, model, answer_logps: Callable, rows: Sequence[int], family: Callable[[int], Any],
               pack_tokens: int, adapted: bool = False) -> np.ndarray:
    """Log p of each answer of `rows` by the model without its adapter, float64 [rows of the part, answers]; `adapted`: with the
    one that it begins with (`train.start_from`).

    Only what no run has asked for before is computed; rows that nobody has are NaN.
    """
    import numpy as np
    import torch

    from tunesmith.objectives import families

    if missing := kept.missing(rows):
        made = {r: family(r) for r in missing}
        if not kept.arrays:
            kept.arrays = {"done": np.zeros(kept.rows, bool), "logps": np.full((kept.rows, len(made[missing[0]]) - 1), np.nan)}

        def ask(pack: list[int]) -> None:
            found = answer_logps(model, [made[r] for r in pack]).double().cpu().numpy()
            kept.arrays["logps"][pack] = found.reshape(len(pack), -1)[:, 1:]

        was_training = model.training
        model.eval()
        off = not adapted and hasattr(model, "disable_adapter")
        with torch.inference_mode(), model.disable_adapter() if off else nullcontext():
            kept.fill(missing, {r: families.tokens(rows) for r, rows in made.items()}, pack_tokens,
                      "the first adapter's" if adapted else "the base's", ask)
        model.train(was_training)
    return kept.arrays["logps"]


def teachings(kept: Kept, teacher: Callable[[], tuple[Any, str]], rows: Sequence[int], sample: Callable[[int], Any],
              trained: Sequence[int], most: tuple[int, float, int], pack_tokens: int) -> Callable[[int], tuple]:
    """From a row to its teacher's (words [N, K], log p [N, K + 1]). `most`: `engine.distill.teach`'s count, temperature, words.

    `teacher` loads the model and says its path; it is called only when there is something that no run has asked for before.
    """
    import numpy as np
    import torch

    begins = np.concatenate([[0], np.cumsum(trained)])
    if missing := kept.missing(rows):
        from tunesmith.engine.distill import teach
        from tunesmith.engine.memory import give_back

        model, engine = teacher()
        model.eval()
        made = {r: sample(r) for r in missing}

        def ask(pack: list[int]) -> None:
            for r, (words, logps) in zip(pack, teach(model, [made[r] for r in pack], *most, engine), strict=True):
                if not kept.arrays:
                    kept.arrays = {"done": np.zeros(kept.rows, bool), "words": np.zeros((begins[-1], words.shape[1]), np.int32),
                                   "logps": np.full((begins[-1], logps.shape[1]), np.nan, np.float32)}
                kept.arrays["words"][begins[r] : begins[r + 1]] = words.cpu().numpy()
                kept.arrays["logps"][begins[r] : begins[r + 1]] = logps.cpu().numpy()

        kept.fill(missing, {r: len(ids) for r, (ids, _) in made.items()}, pack_tokens, "the teacher's", ask)
        del model
        give_back()

    def taught(row: int) -> tuple:
        part = slice(begins[row], begins[row + 1])
        return torch.from_numpy(kept.arrays["words"][part].astype(np.int64)), torch.from_numpy(kept.arrays["logps"][part])

    return taught


def digest(kept: Kept, rows: Sequence[int], trained: Sequence[int]) -> str:
    """Of the numbers of these rows. `trained`: labels of each row, where there is a number for each label."""
    import numpy as np

    arrays = {name: array for name, array in sorted(kept.arrays.items()) if name != "done"}
    if "words" in arrays:
        begins = np.concatenate([[0], np.cumsum(trained)])
        return sha256_bytes(b"".join(a[begins[r] : begins[r + 1]].tobytes() for a in arrays.values() for r in rows))
    return sha256_bytes(arrays["logps"][list(rows)].tobytes())
