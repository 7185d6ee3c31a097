"""Linear layers that share adapters, and attention over pages: what a server's step does, in C (decode.c, pages.c).

Shapes: T = tokens of a step, rows one behind the other, H = query heads, K = key/value heads, D = head size, N = outputs,
C = inputs of a layer, R = rank, S = segments of a step, B = most pages of a row.

A token's result has the same bits whatever else is in the step and for any number of threads: each output is one chain of sums
in a fixed order. Everything is summed in float32 and rounded once to the library's dtype; between A and B of an adapter,
scale x A^T is rounded too, since it is an operand of the next product.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tunesmith.engine.native.functions import LANES

if TYPE_CHECKING:
    from tunesmith.engine.native.build import Library

BLOCK = 32
"""Tokens of a page."""
COLUMNS = 32
"""Outputs of a linear layer that lie together."""


class _Matrix(ctypes.Structure):
    _fields_ = [("weight", c_void_p), ("outputs", c_int64), ("inputs", c_int64)]


class _Part(ctypes.Structure):
    _fields_ = [("segment", c_int64), ("rank", c_int64), ("a", c_void_p), ("b", c_void_p), ("scale", c_float)]


class _Paged(ctypes.Structure):
    _fields_ = [*((n, c_int64) for n in ("heads", "kv_heads", "size", "window")), ("scale", c_float),
                *((n, c_int64) for n in ("q_token", "q_head"))]


ARGUMENTS = {
    "per_word": "",
    "bytes_of_real": "",
    "pack": "piiiiip",
    "linear": "ppipippp" + "ii",
    "pages_write": "piipiipiiippi",
    "pages_attend": "pppppppp" + "iii",
}
"""Of each function in decode.c: p, a pointer; i, a number. Told to ctypes once, so that a call converts plain integers."""


def _functions(library: Library) -> ctypes.CDLL:
    functions = library.functions
    if functions.linear.argtypes is None:
        for name, arguments in ARGUMENTS.items():
            getattr(functions, name).argtypes = [c_void_p if a == "p" else c_int64 for a in arguments]
            getattr(functions, name).restype = c_int64 if not arguments else c_int
    return functions


def _dtype(functions: ctypes.CDLL) -> torch.dtype:
    return torch.float32 if functions.bytes_of_real() == 4 else torch.bfloat16


def _packed(functions: ctypes.CDLL, weight_NC: torch.Tensor, step: int) -> torch.Tensor:
    """The weight in blocks of 32 outputs, flat; N rounded up to `step` and C to whole words, with zeros."""
    weight_NC = weight_NC.detach().to(_dtype(functions))
    outputs, inputs = weight_NC.shape
    padded, per_word = -(-outputs // step) * step, functions.per_word()
    out = torch.empty(padded * -(-inputs // per_word) * per_word, dtype=weight_NC.dtype)
    functions.pack(weight_NC.data_ptr(), weight_NC.stride(0), weight_NC.stride(1), outputs, inputs, padded, out.data_ptr())
    return out


class Packed:
    """A linear layer's weight, [N, C], laid out for the kernel; converted to the library's dtype."""

    def __init__(self, library: Library, weight_NC: torch.Tensor):
        self.functions = _functions(library)
        self.outputs, self.inputs = self.shape = tuple(weight_NC.shape)
        self._data = _packed(self.functions, weight_NC, COLUMNS)
        self.dtype, self.nbytes = self._data.dtype, self._data.nbytes
        self._matrix = _Matrix(self._data.data_ptr(), self.outputs, self.inputs)
        self._address = ctypes.addressof(self._matrix)

    def unpacked(self) -> torch.Tensor:
        """The weight again, [N, C]."""
        per_word = self.functions.per_word()
        blocks = self._data.view(-(-self.outputs // COLUMNS), -1, COLUMNS, per_word)
        return blocks.transpose(1, 2).reshape(blocks.shape[0] * COLUMNS, -1)[: self.outputs, : self.inputs].contiguous()


class LowRank:
    """A, [R, C], and B, [N, R], of one LoRA, laid out for the kernel with zeros up to a multiple of 16 ranks.

    Raises:
        ValueError: where the ranks differ.
    """

    def __init__(self, library: Library, a_RC: torch.Tensor, b_NR: torch.Tensor):
        functions = _functions(library)
        self.rank, self.inputs = a_RC.shape
        self.outputs = b_NR.shape[0]
        if b_NR.shape[1] != self.rank:
            raise ValueError(f"A has {self.rank} ranks and B {b_NR.shape[1]}")
        self.padded = -(-self.rank // LANES) * LANES
        wide_NR = b_NR if self.padded == self.rank else torch.nn.functional.pad(b_NR.detach(), (0, self.padded - self.rank))
        self._a, self._b = _packed(functions, a_RC, LANES), _packed(functions, wide_NR, COLUMNS)
        self.nbytes = self._a.nbytes + self._b.nbytes


class Parts:
    """What is added in which segment of a layer; made by `parts`, and good for every step with that sequence of segments."""

    __slots__ = ("address", "count", "kept", "segments", "shape")

    def __init__(self, given: list[tuple[int, LowRank, float]]):
        ordered = sorted(given, key=lambda part: part[0])
        array = (_Part * len(ordered))(*((segment, low.padded, low._a.data_ptr(), low._b.data_ptr(), scale)
                                         for segment, low, scale in ordered))
        self.kept = array, [low for _, low, _ in ordered]
        self.address, self.count = ctypes.addressof(array), len(ordered)
        self.segments = ordered[-1][0] + 1 if ordered else 0
        shapes = {(low.outputs, low.inputs) for _, low, _ in ordered}
        if len(shapes) > 1:
            raise ValueError(f"parts of one layer have different shapes: {sorted(shapes)}")
        self.shape = next(iter(shapes), None)


def parts(given: list[tuple[int, LowRank, float]]) -> Parts:
    """(segment number, factors, scale * weight) of a layer; several of one segment are summed in the order given.

    Raises:
        ValueError: where they are of different layers.
    """
    return Parts(given)


def linear(library: Library, x_TC: torch.Tensor, packed: Packed, bias_N: torch.Tensor | None, bounds_S1: torch.Tensor,
           given: Parts | None) -> torch.Tensor:
    """y = x W^T + bias + the sum over the parts of a token's segment of scale (x A^T) B^T, [T, N].

    `bounds_S1`, int64, says where segments begin and end: segment s is tokens bounds[s] to bounds[s + 1].

    Raises:
        ValueError: for another dtype or width than the weight's, or parts of another shape or of a segment that is not there.
        MemoryError: for none.
    """
    tokens, inputs = x_TC.shape
    if inputs != packed.inputs or x_TC.dtype != packed.dtype:
        raise ValueError(f"the layer takes [T, {packed.inputs}] of {packed.dtype}, not {list(x_TC.shape)} of {x_TC.dtype}")
    if x_TC.stride(1) != 1:
        x_TC = x_TC.contiguous()
    y_TN = torch.empty(tokens, packed.outputs, dtype=packed.dtype)
    address = count = bounds = 0
    if given is not None and given.count:
        address, count, bounds = given.address, given.count, bounds_S1.data_ptr()
        if given.segments >= bounds_S1.shape[0] or given.shape != packed.shape:
            raise ValueError(f"parts of {given.shape} in {given.segments} segments do not fit a layer of {packed.shape} and "
                             f"{len(bounds_S1) - 1} segments")
    if packed.functions.linear(packed._address, address, count, x_TC.data_ptr(), x_TC.stride(0),
                               0 if bias_N is None else bias_N.data_ptr(), bounds, y_TN.data_ptr(), tokens,
                               torch.get_num_threads()):
        raise MemoryError(f"no memory for the ranks of {tokens} tokens")
    return y_TN


@dataclass(frozen=True)
class Rows:
    """Whose query tokens are whose, and where their keys and values lie. All int64 and contiguous."""

    starts_R1: torch.Tensor
    """First query token of each row, and the number of all query tokens."""
    lengths_R: torch.Tensor
    """Tokens in the pages of each row, those of this step included; the query tokens are the last of them."""
    tables_RB: torch.Tensor
    """Pages of each row in the order of its tokens; what stands behind its last page is not read."""


class Pages:
    """Keys and values of all layers in blocks of 32 tokens, [(K, D)] for each layer; memory is touched when it is written.

    Keys lie as columns, [block, K, words, 32], as the scores of a query with 32 keys are computed; values [block, K, 32, D].

    Raises:
        ValueError: for a head size that is not a multiple of 16.
    """

    def __init__(self, library: Library, layers: list[tuple[int, int]], blocks: int):
        self.functions = _functions(library)
        self.dtype, self.blocks, self._layers = _dtype(self.functions), blocks, layers
        if odd := next((size for _, size in layers if size % LANES), None):
            raise ValueError(f"a head of {odd} is not a multiple of {LANES}")
        per_word = self.functions.per_word()
        self._keys = [torch.empty(blocks, heads, size // per_word, BLOCK, per_word, dtype=self.dtype) for heads, size in layers]
        self._values = [torch.empty(blocks, heads, BLOCK, size, dtype=self.dtype) for heads, size in layers]
        self.nbytes = sum(x.nbytes for x in (*self._keys, *self._values))

    def write(self, layer: int, k_1KTD: torch.Tensor, v_1KTD: torch.Tensor, slots_T: torch.Tensor) -> None:
        """Keys and values of tokens into their slots, block * 32 + place, which the caller answers for.

        Raises:
            ValueError: for shapes or a dtype that are not the layer's.
        """
        heads, size = self._layers[layer]
        tokens = len(slots_T)
        for x in (k_1KTD, v_1KTD):
            if x.shape != (1, heads, tokens, size) or x.dtype != self.dtype:
                raise ValueError(f"layer {layer} keeps [1, {heads}, {tokens}, {size}] of {self.dtype}, not {list(x.shape)} of "
                                 f"{x.dtype}")
        k_1KTD, v_1KTD = (x if x.stride(3) == 1 else x.contiguous() for x in (k_1KTD, v_1KTD))
        self.functions.pages_write(k_1KTD.data_ptr(), k_1KTD.stride(2), k_1KTD.stride(1), v_1KTD.data_ptr(), v_1KTD.stride(2),
                                   v_1KTD.stride(1), slots_T.data_ptr(), tokens, heads, size, self._keys[layer].data_ptr(),
                                   self._values[layer].data_ptr(), torch.get_num_threads())

    def read(self, layer: int, slots_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of the keys and values in these slots, [T, K, D] each."""
        block_T, place_T = slots_T // BLOCK, slots_T % BLOCK
        return self._keys[layer][block_T, :, :, place_T].flatten(2), self._values[layer][block_T, :, place_T]

    def attend(self, layer: int, q_1HTD: torch.Tensor, rows: Rows, scale: float, window: int | None) -> torch.Tensor:
        """Causal attention of each row's query tokens over its pages, laid out as [1, T, H, D].

        Query token i of row r stands at position lengths[r] - count[r] + i and sees the keys from 0 up to there, or the last
        `window` of them. The softmax is computed over 256 keys at a time (arXiv 2205.14135), counted from the row's beginning.

        Raises:
            ValueError: for shapes or a dtype that are not the layer's.
            MemoryError: for none.
        """
        kv_heads, size = self._layers[layer]
        _, heads, tokens, width = q_1HTD.shape
        if width != size or heads % kv_heads or q_1HTD.dtype != self.dtype:
            raise ValueError(f"layer {layer} has {kv_heads} key heads of {size} in {self.dtype}, not {list(q_1HTD.shape)} of "
                             f"{q_1HTD.dtype}")
        if q_1HTD.stride(3) != 1:
            q_1HTD = q_1HTD.contiguous()
        shape = _Paged(heads, kv_heads, size, window or 0, scale, q_1HTD.stride(2), q_1HTD.stride(1))
        out_1THD = torch.empty(1, tokens, heads, size, dtype=self.dtype)
        if self.functions.pages_attend(ctypes.addressof(shape), self._keys[layer].data_ptr(), self._values[layer].data_ptr(),
                                       q_1HTD.data_ptr(), out_1THD.data_ptr(), rows.starts_R1.data_ptr(),
                                       rows.lengths_R.data_ptr(), rows.tables_RB.data_ptr(), rows.tables_RB.shape[1],
                                       len(rows.lengths_R), torch.get_num_threads()):
            raise MemoryError("no memory for the tiles of attention")
        return out_1THD


def disagreement(library: Library, dtype: torch.dtype) -> str | None:
    """The kernel that does not compute what torch does, on a small example of each; None when all agree."""
    draw = torch.Generator().manual_seed(0)
    within = 4 * torch.finfo(dtype).eps + 1e-5

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw).to(dtype)

    def differ(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
        return not torch.allclose(ours.float(), theirs, rtol=within, atol=within * theirs.abs().max().item())

    x, weight, bias, low = random(11, 37), random(45, 37), random(45), [(random(r, 37), random(45, r)) for r in (3, 40)]
    want = x.float() @ weight.float().T + bias.float()
    for begin, (a, b) in zip((2, 0), low, strict=True):
        want[begin:9] += (0.5 * x[begin:9].float() @ a.float().T).to(dtype).float() @ b.float().T
    low = [LowRank(library, a, b) for a, b in low]
    given = parts([(1, low[0], 0.5), (0, low[1], 0.5), (1, low[1], 0.5)])
    if differ(linear(library, x, Packed(library, weight), bias, torch.tensor([0, 2, 9, 11]), given), want):
        return "linear layer"
    pages, length = Pages(library, [(2, 48)], 12), 300  # more than are weighed at a time
    blocks = torch.randperm(12, generator=draw)[None, :10].contiguous()
    k, v, q = random(1, 2, length, 48), random(1, 2, length, 48), random(1, 6, 9, 48)
    place = torch.arange(length)
    pages.write(0, k, v, blocks[0][place // BLOCK] * BLOCK + place % BLOCK)
    rows = Rows(torch.tensor([0, 9]), torch.tensor([length]), blocks)
    query = torch.arange(length - 9, length)[:, None]
    for window in (None, 35):
        seen = (place <= query) & (place > query - (window or length))
        plain = torch.nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=seen, scale=0.2,
                                                                 enable_gqa=True)
        if differ(pages.attend(0, q, rows, 0.2, window), plain.transpose(1, 2)):
            return "attention over pages"
    return None
