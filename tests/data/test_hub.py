"""Datasets on the hub, out of a cache as huggingface_hub lays it out; without a network the rest must be said clearly.

    python -m pytest tests/data/test_hub.py
"""

from __future__ import annotations

import gzip
import json

import pytest

from tunesmith.data.read import find_files, name_of, read_records
from tunesmith.errors import DataError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROW = json.dumps({"prompt": "q", "completion": "a"}) + "\n"


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """`cached("owner/name", "train.jsonl", ...)`: a dataset that was fetched before."""
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def make(repo: str, *files: str):
        top = tmp_path / "hub" / f"datasets--{repo.replace('/', '--')}"
        (top / "refs").mkdir(parents=True)
        (top / "refs" / "main").write_text(COMMIT)
        for name in files:
            path = top / "snapshots" / COMMIT / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(gzip.compress(ROW.encode()) if name.endswith(".gz") else ROW.encode())
        return top / "snapshots" / COMMIT

    return make


def names(pattern, snapshot):
    return [p.relative_to(snapshot).as_posix() for p in find_files(pattern, snapshot.parent)]


def test_data_files_of_a_dataset_are_found_and_read_with_their_place_on_the_hub(cached, tmp_path):
    snapshot = cached("ann/streets", "README.md", ".gitattributes", "dataset_infos.json", "data/b.jsonl", "data/a.jsonl.gz")
    assert names("hf:ann/streets", snapshot) == ["data/a.jsonl.gz", "data/b.jsonl"]
    path = find_files("hf:ann/streets", tmp_path)[0]
    assert name_of(path, tmp_path) == "hf:ann/streets@01234567/data/a.jsonl.gz"
    assert [r.where for r in read_records(path, name_of(path, tmp_path))] == ["hf:ann/streets@01234567/data/a.jsonl.gz:1"]
    assert names(f"hf:ann/streets@{COMMIT}", snapshot) == names("hf:ann/streets@main", snapshot)


@pytest.mark.parametrize("chosen, files", [
    ("train", ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"]), ("test", ["data/test_0.jsonl"]),
    ("train_sft", ["data/train_sft-00000.jsonl"]), ("data/te*", ["data/test_0.jsonl"]), ("dev", ["dev/x.jsonl"]),
    ("*.jsonl", ["data/test_0.jsonl", "data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl",
                 "data/train_sft-00000.jsonl", "dev/x.jsonl"]),
])
def test_split_or_glob_chooses_files(cached, chosen, files):
    snapshot = cached("ann/streets", "data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/test_0.jsonl",
                      "data/train_sft-00000.jsonl", "dev/x.jsonl")
    assert names(f"hf:ann/streets:{chosen}", snapshot) == files


def test_test_split_is_never_taken_for_training_unasked(cached, tmp_path):
    cached("ann/streets", "train.jsonl", "test.jsonl")
    with pytest.raises(DataError, match="has several splits: train, test") as error:
        find_files("hf:ann/streets", tmp_path)
    assert error.value.fix == "name one: hf:ann/streets:train"


@pytest.mark.parametrize("name, what", [
    ("hf:streets", "names no dataset on the hub"), ("hf:ann/streets/data", "names no dataset on the hub"),
    ("hf:", "names no dataset on the hub"), ("hf:ann/streets:none", "no data file for 'hf:ann/streets:none'"),
    ("hf:ann/other", "could not be had from the Hugging Face hub"),
    ("hf:ann/streets@v9", "could not be had from the Hugging Face hub"),
    ("hf:../..", "could not be had from the Hugging Face hub"),
])
def test_dataset_that_cannot_be_had_is_refused_with_what_to_do(cached, tmp_path, name, what):
    cached("ann/streets", "train.jsonl")
    with pytest.raises(DataError) as error:
        find_files(name, tmp_path)
    assert what in error.value.what and error.value.fix and error.value.exit_code == 2


def test_hub_dataset_with_rows_and_text_is_of_several_kinds(cached, tmp_path):
    cached("ann/streets", "train.jsonl", "book.txt")
    with pytest.raises(DataError, match="files of several kinds"):
        find_files("hf:ann/streets", tmp_path)
