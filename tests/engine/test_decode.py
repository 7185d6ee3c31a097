"""The kernels of a server's step against torch in float64, and that a token's bits do not depend on its company.

pytest tests/engine/test_decode.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.engine.native import build, decode
from tunesmith.engine.native.decode import BLOCK, LowRank, Packed, Pages, Rows, linear, parts

DTYPES = [torch.float32, torch.bfloat16]
ROUNDING = {torch.float32: 4e-6, torch.bfloat16: 2**-8}
"""Of one result, relative to the largest: a few additions in float32, or one rounding to bfloat16."""


@pytest.fixture(params=DTYPES, ids=["float32", "bfloat16"])
def dtype(request):
    assert build.start() is None
    return request.param


def random(*shape: int, dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def equal(ours: torch.Tensor, exact: torch.Tensor, slack: float = 1.0) -> None:
    within = slack * ROUNDING[ours.dtype]
    torch.testing.assert_close(ours.double(), exact, rtol=within, atol=within * max([1.0, *exact.abs().flatten().tolist()]) / 4)


# ---- linear layers


def layer_of(library, dtype, outputs, inputs, segments, ranks, seed, biased):
    """A layer, bounds, and the parts that those segments use: (segment, index of an adapter, scale)."""
    weight, bias = random(outputs, inputs, dtype=dtype, seed=seed), random(outputs, dtype=dtype, seed=seed + 1)
    factors = [(random(r, inputs, dtype=dtype, seed=seed + 2 + r), random(outputs, r, dtype=dtype, seed=seed + 3 + r))
               for r in ranks]
    draw = torch.Generator().manual_seed(seed)
    used = [(s, i, float(torch.rand((), generator=draw)) * 2 - 0.5) for s in range(len(segments)) for i in range(len(ranks))
            if torch.rand((), generator=draw) < 0.6]
    bounds = torch.tensor([0, *torch.tensor(segments).cumsum(0).tolist()])
    low = [LowRank(library, a, b) for a, b in factors]
    return weight, bias if biased else None, factors, used, bounds, low


def linear_exact(x, weight, bias, factors, used, bounds):
    exact = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    for s, i, scale in used:
        here = slice(bounds[s], bounds[s + 1])
        h = (scale * (x[here].double() @ factors[i][0].double().T)).to(x.dtype)
        exact[here] += h.double() @ factors[i][1].double().T
    return exact


@settings(max_examples=40, deadline=None)
@given(segments=st.lists(st.integers(0, 21), min_size=1, max_size=5), outputs=st.sampled_from([1, 15, 32, 33, 96, 200]),
       inputs=st.sampled_from([1, 2, 17, 64, 129]), ranks=st.lists(st.integers(1, 64), max_size=3),
       biased=st.booleans(), strided=st.booleans(), seed=st.integers(0, 99))
def test_linear_layer_with_the_parts_of_each_segment(segments, outputs, inputs, ranks, biased, strided, seed):
    assert build.start() is None
    for dtype in DTYPES:
        library = build._loaded[dtype]
        weight, bias, factors, used, bounds, low = layer_of(library, dtype, outputs, inputs, segments, ranks, seed, biased)
        tokens = sum(segments)
        x = random(tokens, inputs + 3, dtype=dtype, seed=seed + 7)[:, 1 : inputs + 1]
        x = x if strided else x.contiguous()
        packed = Packed(library, weight)
        assert torch.equal(packed.unpacked(), weight)
        ours = linear(library, x, packed, bias, bounds, parts([(s, low[i], scale) for s, i, scale in used]))
        equal(ours, linear_exact(x, weight, bias, factors, used, bounds), slack=3)  # an h may fall on the other side of a tie


@pytest.mark.parametrize("tokens", [1, 300, 1500])
def test_number_of_tokens_and_ranks_of_a_prompt(dtype, tokens):
    """Enough of both that the threads share what they compute of A."""
    library, segments = build._loaded[dtype], [tokens // 3, tokens - tokens // 3]
    weight, bias, factors, used, bounds, low = layer_of(library, dtype, 96, 256, segments, [64, 16], 3, True)
    x = random(tokens, 256, dtype=dtype)
    ours = linear(library, x, Packed(library, weight), bias, bounds, parts([(s, low[i], scale) for s, i, scale in used]))
    equal(ours, linear_exact(x, weight, bias, factors, used, bounds), slack=3)
    torch.set_num_threads(2)
    again = linear(library, x, Packed(library, weight), bias, bounds, parts([(s, low[i], scale) for s, i, scale in used]))
    assert torch.equal(again, ours)


@settings(max_examples=25, deadline=None)
@given(segments=st.lists(st.integers(1, 40), min_size=1, max_size=5), outputs=st.sampled_from([33, 192, 576]),
       inputs=st.sampled_from([64, 129, 577]), ranks=st.lists(st.integers(1, 40), min_size=1, max_size=3),
       seed=st.integers(0, 99))
def test_token_has_the_same_bits_alone_and_in_any_step(segments, outputs, inputs, ranks, seed):
    assert build.start() is None
    for dtype in DTYPES:
        library = build._loaded[dtype]
        weight, bias, _, used, bounds, low = layer_of(library, dtype, outputs, inputs, segments, ranks, seed, True)
        packed, x = Packed(library, weight), random(sum(segments), inputs, dtype=dtype, seed=seed)
        together = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            together.append(linear(library, x, packed, bias, bounds, parts([(s, low[i], scale) for s, i, scale in used])))
        assert torch.equal(*together)
        torch.set_num_threads(1)
        for s in range(len(segments)):
            own = parts([(0, low[i], scale) for t, i, scale in used if t == s])
            for t in {bounds[s].item(), (bounds[s] + bounds[s + 1]).item() // 2, bounds[s + 1].item() - 1}:
                alone = linear(library, x[t : t + 1], packed, bias, torch.tensor([0, 1]), own)
                assert torch.equal(alone[0], together[0][t])


def test_callers_at_the_same_time_get_the_same_bits(dtype):
    """The pool helps one caller at a time; the others work alone."""
    library = build._loaded[dtype]
    packed, low = Packed(library, random(640, 256, dtype=dtype)), LowRank(library, random(40, 256, dtype=dtype),
                                                                          random(640, 40, dtype=dtype))
    x, bounds, own = random(300, 256, dtype=dtype), torch.tensor([0, 290, 300]), parts([(0, low, 1.0)])

    def computed(_=None) -> torch.Tensor:
        torch.set_num_threads(3)
        return linear(library, x, packed, None, bounds, own)

    want = computed()
    with ThreadPoolExecutor(3) as callers:
        assert all(torch.equal(made, want) for made in callers.map(computed, range(60)))


FORKING = """
import os, signal, sys, torch
from tunesmith.engine.native import build
from tunesmith.engine.native.decode import Packed, linear
assert build.start() is None
torch.set_num_threads(3)
library, bounds = build._loaded[torch.float32], torch.tensor([0, 300])
x, packed = torch.randn(300, 256), Packed(library, torch.randn(640, 256))
computed = lambda: linear(library, x, packed, None, bounds, None).view(torch.uint8).numpy().tobytes()
want = computed()
child = os.fork()
if not child:
    signal.alarm(60)
    os._exit(0 if all(computed() == want for _ in range(5)) else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_child_of_fork_makes_threads_of_its_own():
    """In a process of its own: where OpenMP has run, torch itself hangs in a child of fork."""
    done = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_other_segment_s_adapter_does_not_reach_a_token(dtype):
    """Whatever is in it: not a number times zero would be seen."""
    library = build._loaded[dtype]
    weight, broken = random(64, 64, dtype=dtype), torch.full((16, 64), torch.nan, dtype=dtype)
    low = LowRank(library, broken, broken.T.contiguous())
    x, packed = random(12, 64, dtype=dtype), Packed(library, weight)
    y = linear(library, x, packed, None, torch.tensor([0, 5, 8, 12]), parts([(1, low, 1.0)]))
    assert y[5:8].isnan().all() and y[:5].isfinite().all() and y[8:].isfinite().all()
    assert torch.equal(y[:5], linear(library, x[:5], packed, None, torch.tensor([0, 5]), None))


def test_what_does_not_fit_is_refused(dtype):
    library = build._loaded[dtype]
    packed, bounds = Packed(library, random(64, 32, dtype=dtype)), torch.tensor([0, 3])
    low = LowRank(library, random(4, 32, dtype=dtype), random(64, 4, dtype=dtype))
    x = random(3, 32, dtype=dtype)
    with pytest.raises(ValueError, match="2 segments do not fit"):
        linear(library, x, packed, None, bounds, parts([(1, low, 1.0)]))
    with pytest.raises(ValueError, match="do not fit a layer"):
        linear(library, x, Packed(library, random(32, 32, dtype=dtype)), None, bounds, parts([(0, low, 1.0)]))
    with pytest.raises(ValueError, match="different shapes"):
        parts([(0, low, 1.0), (1, LowRank(library, random(4, 32, dtype=dtype), random(32, 4, dtype=dtype)), 1.0)])
    with pytest.raises(ValueError, match="takes"):
        linear(library, x[:, :31], packed, None, bounds, None)
    with pytest.raises(ValueError, match="ranks"):
        LowRank(library, random(4, 32, dtype=dtype), random(64, 5, dtype=dtype))
    with pytest.raises(ValueError, match="multiple of 16"):
        Pages(library, [(1, 24)], 2)


# ---- pages


class Case:
    """Rows of some lengths whose pages are scattered over a pool, with keys and values written in any order."""

    def __init__(self, library, dtype, rows, kv, group, size, seed, shared=0):
        """`rows`: (tokens before this step, tokens of this step); the first `shared` blocks of all rows are the same."""
        draw = torch.Generator().manual_seed(seed)
        lengths = [before + count for before, count in rows]
        blocks = [-(-length // BLOCK) for length in lengths]
        free = torch.randperm(sum(blocks) + 3, generator=draw).tolist()
        tables = torch.full((len(rows), max(blocks)), 10**9)  # never read behind a row's own
        common = [free.pop() for _ in range(shared)]
        for r, count in enumerate(blocks):
            tables[r, :count] = torch.tensor([common[b] if b < shared else free.pop() for b in range(count)])
        self.pages = Pages(library, [(1, 16), (kv, size)], sum(blocks) + 3)
        for pool in (*self.pages._keys, *self.pages._values):
            pool.fill_(torch.nan)  # as memory may be that nobody has written
        self.k = [random(1, kv, length, size, dtype=dtype, seed=seed + 31 * r) for r, length in enumerate(lengths)]
        self.v = [random(1, kv, length, size, dtype=dtype, seed=seed + 31 * r + 1) for r, length in enumerate(lengths)]
        for x in (self.k, self.v):
            for one in x[1:]:
                one[:, :, : shared * BLOCK] = x[0][:, :, : shared * BLOCK]
        slots = [tables[r, torch.arange(n) // BLOCK] * BLOCK + torch.arange(n) % BLOCK for r, n in enumerate(lengths)]
        self.slots = torch.cat(slots)
        order = torch.randperm(len(self.slots), generator=draw)
        by_token = [torch.cat(x, 2).transpose(1, 2)[:, order].transpose(1, 2) for x in (self.k, self.v)]  # strided
        self.pages.write(1, *by_token, self.slots[order])
        counts = torch.tensor([count for _, count in rows])
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        self.rows = Rows(starts, torch.tensor(lengths), tables)
        self.q = random(1, int(starts[-1]), kv * group, size, dtype=dtype, seed=seed + 999).transpose(1, 2)

    def exact(self, scale, window):
        outs = []
        for r, (k, v) in enumerate(zip(self.k, self.v, strict=True)):
            q = self.q[:, :, self.rows.starts_R1[r] : self.rows.starts_R1[r + 1]].double()
            group = q.shape[1] // k.shape[1]
            place = torch.arange(k.shape[2])
            here = place[-q.shape[2] :, None]
            seen = (place <= here) & (place > here - (window or k.shape[2]))
            s = q @ k.double().repeat_interleave(group, 1).transpose(2, 3) * scale
            outs.append(s.masked_fill(~seen, -torch.inf).softmax(-1) @ v.double().repeat_interleave(group, 1))
        return torch.cat(outs, 2).transpose(1, 2)

    def piece(self, r, first, count, window):
        """What `count` query tokens of row r give when nothing else is in the step."""
        begin = int(self.rows.starts_R1[r]) + first
        after = int(self.rows.starts_R1[r + 1]) - begin - count
        rows = Rows(torch.tensor([0, count]), self.rows.lengths_R[r : r + 1] - after, self.rows.tables_RB[r : r + 1])
        return self.pages.attend(1, self.q[:, :, begin : begin + count], rows, 0.3, window)[0]


rows_of_a_step = st.lists(st.tuples(st.sampled_from([0, 0, 1, 31, 32, 63, 300, 515]), st.sampled_from([1, 1, 2, 7, 40, 90])),
                          min_size=1, max_size=4)


@settings(max_examples=30, deadline=None)
@given(rows=rows_of_a_step, kv=st.integers(1, 2), group=st.sampled_from([1, 2, 3, 7, 9]),
       size=st.sampled_from([16, 32, 48, 64, 80]), window=st.sampled_from([None, None, 1, 8, 33, 256, 400]),
       seed=st.integers(0, 99))
def test_attention_of_each_row_over_its_pages(rows, kv, group, size, window, seed):
    assert build.start() is None
    for dtype in DTYPES:
        case = Case(build._loaded[dtype], dtype, rows, kv, group, size, seed)
        equal(case.pages.attend(1, case.q, case.rows, 0.3, window), case.exact(0.3, window), slack=2)


@settings(max_examples=15, deadline=None)
@given(rows=rows_of_a_step, group=st.sampled_from([1, 3, 9]), window=st.sampled_from([None, 8, 100]), seed=st.integers(0, 99))
def test_token_attends_with_the_same_bits_alone_in_a_piece_and_in_any_step(rows, group, window, seed):
    assert build.start() is None
    for dtype in DTYPES:
        case = Case(build._loaded[dtype], dtype, rows, 2, group, 32, seed)
        together = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            together.append(case.pages.attend(1, case.q, case.rows, 0.3, window)[0])
        assert torch.equal(*together)
        torch.set_num_threads(1)
        for r, (_, count) in enumerate(rows):
            begin = int(case.rows.starts_R1[r])
            for first, own in ((0, 1), (count - 1, 1), (count // 3, max(count // 2, 1))):
                assert torch.equal(case.piece(r, first, own, window), together[0][begin + first : begin + first + own])


def test_rows_that_share_a_beginning_share_its_pages(dtype):
    case = Case(build._loaded[dtype], dtype, [(70, 1), (64, 30), (100, 1)], 2, 2, 32, 5, shared=2)
    assert (case.rows.tables_RB[:, :2] == case.rows.tables_RB[0, :2]).all()
    equal(case.pages.attend(1, case.q, case.rows, 0.3, None), case.exact(0.3, None), slack=2)


def test_pages_give_back_what_was_written_and_only_that_slot_changes(dtype):
    case = Case(build._loaded[dtype], dtype, [(50, 3), (33, 1)], 3, 1, 48, 1)
    k, v = (torch.cat(x, 2)[0].transpose(0, 1) for x in (case.k, case.v))
    found = case.pages.read(1, case.slots)
    assert torch.equal(found[0], k) and torch.equal(found[1], v)
    case.pages.write(1, torch.ones(1, 3, 1, 48, dtype=dtype), torch.ones(1, 3, 1, 48, dtype=dtype), case.slots[40:41])
    changed = [(new != old).flatten(1).any(1).nonzero().flatten().tolist()
               for new, old in zip(case.pages.read(1, case.slots), (k, v), strict=True)]
    assert changed == [[40], [40]]


def test_scores_of_hundreds_do_not_overflow_and_what_is_not_a_number_stays_seen(dtype):
    case = Case(build._loaded[dtype], dtype, [(300, 4), (40, 2)], 1, 2, 32, 2)
    assert case.pages.attend(1, case.q * 100, case.rows, 10.0, None).isfinite().all()
    broken = torch.full((1, 1, 1, 32), torch.nan, dtype=dtype)
    case.pages.write(1, broken, torch.zeros_like(broken), case.slots[7:8])
    out = case.pages.attend(1, case.q, case.rows, 0.3, None)[0]
    assert out[:4].isnan().all() and out[4:].isfinite().all()


def test_pages_refuse_what_they_do_not_keep(dtype):
    case = Case(build._loaded[dtype], dtype, [(3, 1)], 2, 1, 16, 1)
    x = random(1, 2, 1, 16, dtype=dtype)
    with pytest.raises(ValueError, match="layer 1 keeps"):
        case.pages.write(1, x, x[:, :1], case.slots[:1])
    with pytest.raises(ValueError, match="key heads"):
        case.pages.attend(1, x.double(), case.rows, 0.3, None)


# ---- controls


@pytest.mark.parametrize(("change", "named"), [
    ("s/if (inputs % PER_WORD)/if (inputs > 99)/", "linear layer"),
    ("s/u->a + first \\* j->words/u->a/", "linear layer"),
    ("s/p < last && p->begin < to/p < last - 1/", "linear layer"),
    ("s/float by = before == -INFINITY ? 0.0f : exponential(before - now)/float by = 0.9f/", "attention over pages"),
    ("s/here - s->window + 1 : 0;$/here - s->window : 0;/", "attention over pages"),
    ("s/place = slots\\[t\\] % PAGE/place = 31 - slots[t] % PAGE/", "attention over pages"),
])
def test_kernel_that_computes_something_else_is_refused_by_name(tmp_path, monkeypatch, change, named):
    """A miscompiled kernel, as a compiler's bug would make it."""
    for file in (*build.SOURCES, build.HEADER):
        shutil.copy(file, tmp_path)
    sources = [tmp_path / name for name in ("decode.c", "pages.c", "pool.c")]
    before = [source.read_text() for source in sources]
    subprocess.run(["sed", "-i", change, *map(str, sources)], check=True)
    assert [source.read_text() for source in sources] != before
    monkeypatch.setattr(build, "SOURCES", sources)
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    dtype = torch.bfloat16
    made = build._library(os.environ.get("CC") or shutil.which("cc"), "wrong", dtype)
    assert decode.disagreement(build.Library(made, "wrong"), dtype) == named


def test_processor_without_bfloat16_products_gives_the_same_to_rounding(tmp_path, monkeypatch):
    """The path that widens what it reads; as good as the other, in another order of rounding."""
    assert build.start() is None
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-mno-avx512bf16", "-Wno-psabi"))
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    compiler = os.environ.get("CC") or shutil.which("cc")
    if subprocess.run([compiler, *build.FLAGS, "-xc", os.devnull, "-o", os.devnull], capture_output=True).returncode:
        pytest.skip("this compiler has no such processor")
    library = build.Library(build._library(compiler, "plain", torch.bfloat16), "plain")
    assert decode.disagreement(library, torch.bfloat16) is None
    assert library.functions.per_word() == 1
    case = Case(library, torch.bfloat16, [(70, 5), (0, 40)], 2, 3, 48, 4)
    equal(case.pages.attend(1, case.q, case.rows, 0.3, 50), case.exact(0.3, 50), slack=2)
