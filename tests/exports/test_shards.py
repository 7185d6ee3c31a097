"""Our writer and reader of safetensors against the format's own.

pytest tests/exports/test_shards.py
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tunesmith.exports.merging import shards
from tunesmith.exports.merging.shards import DTYPES, Planned, stored, write

SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)
FILES = st.dictionaries(st.text(min_size=1, max_size=12).filter(lambda n: n != "__metadata__"),
                        st.tuples(st.sampled_from(list(DTYPES.values())), SHAPES), max_size=6)


def random(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3
    return values > 0 if dtype == torch.bool else values.abs().to(dtype) if dtype == torch.uint8 else values.to(dtype)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(
        a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))


@settings(max_examples=60, deadline=None)
@given(made=FILES)
def test_what_we_write_the_library_reads_and_the_other_way_round(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    tensors = {n: random(dtype, shape, i) for i, (n, (dtype, shape)) in enumerate(made.items())}
    write(folder / "ours", [Planned(n, t.dtype, tuple(t.shape), lambda t=t: iter([t])) for n, t in tensors.items()])
    theirs = load_file(folder / "ours")
    assert theirs.keys() == tensors.keys() and all(same(theirs[n], t) for n, t in tensors.items())
    save_file(tensors, folder / "theirs")
    for name in ("ours", "theirs"):
        found = stored(folder / name)
        assert found.keys() == tensors.keys() and all(same(one.read(), tensors[n]) for n, one in found.items())
        assert all((one.begin % one.dtype.itemsize) == 0 for one in found.values())


def test_rows_and_pieces(tmp_path, monkeypatch):
    tensor = torch.randn(7, 3, 2)
    save_file({"x": tensor}, tmp_path / "f")
    one = stored(tmp_path / "f")["x"]
    assert torch.equal(one.read(2, 5), tensor[2:5]) and torch.equal(one.read(6), tensor[6:])
    monkeypatch.setattr(shards, "COPY_BYTES", 10)
    assert torch.equal(torch.cat(list(one.pieces())).view(torch.float32).view(7, 3, 2), tensor)
    write(tmp_path / "g", [Planned("x", torch.float32, (7, 3, 2), one.pieces)])
    assert torch.equal(load_file(tmp_path / "g")["x"], tensor)


def test_pieces_of_another_dtype_or_size_are_found(tmp_path):
    for pieces in ([torch.zeros(3)], [torch.zeros(2), torch.zeros(3)], [torch.zeros(4).half()]):
        with pytest.raises(ValueError, match="planned"):
            write(tmp_path / "f", [Planned("x", torch.float32, (4,), lambda pieces=pieces: iter(pieces))])


@pytest.mark.parametrize("spoil", [lambda b: b[:-1], lambda b: b[:20], lambda b: b"\xff" * 8 + b[8:], lambda b: b""])
def test_a_damaged_file_is_no_file(tmp_path, spoil):
    save_file({"x": torch.zeros(4)}, tmp_path / "f")
    (tmp_path / "f").write_bytes(spoil((tmp_path / "f").read_bytes()))
    with pytest.raises(ValueError):
        stored(tmp_path / "f")
