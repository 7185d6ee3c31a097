"""The C kernels against torch in float64, and when they are not used.

pytest tests/engine/test_native.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.engine import fast
from tunesmith.engine.native import build
from tunesmith.engine.native.functions import GELU_TANH, SILU, Attention, Gated, RmsNorm, Rotary, cross_entropy, disagreement
from tunesmith.engine.native.replace import MARK, replace
from tunesmith.engine.packing import layout

DTYPES = [torch.float32, torch.bfloat16]
ROUNDING = {torch.float32: 3e-6, torch.bfloat16: 2**-8}
"""Of one result, relative: a few additions in float32, or one rounding to bfloat16."""


@pytest.fixture(params=DTYPES, ids=["float32", "bfloat16"])
def library(request):
    assert build.start() is None
    return build._loaded[request.param]


@pytest.fixture
def dtype(library):
    return next(d for d, found in build._loaded.items() if found is library)


def random(*shape: int, dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def equal(ours: torch.Tensor, exact: torch.Tensor, dtype, slack: float = 1.0) -> None:
    """Each value to the rounding of its dtype, and of the largest value, or of 1, where sums cancel."""
    within = slack * ROUNDING[dtype]
    torch.testing.assert_close(ours.double(), exact, rtol=within, atol=within * max(exact.abs().max().item(), 1.0) / 4)


def check(ours: torch.Tensor, exact: torch.Tensor, inputs: list[torch.Tensor], doubles: list[torch.Tensor], slack: float = 1.0):
    """Values, and the gradients of random upstream ones."""
    dtype = ours.dtype
    equal(ours, exact, dtype, slack)
    up = torch.randn(ours.shape, generator=torch.Generator().manual_seed(9)).to(dtype)
    for got, want in zip(torch.autograd.grad(ours, inputs, up), torch.autograd.grad(exact, doubles, up.double()), strict=True):
        equal(got, want, dtype, slack)


def doubled(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [t.detach().double().requires_grad_() for t in tensors]


@pytest.mark.parametrize("offset", [False, True], ids=["llama", "gemma"])
@pytest.mark.parametrize("dim", [2, 7, 16, 48, 576])
def test_norm(library, dtype, dim, offset):
    x, weight = random(3, 5, dim, dtype=dtype), random(dim, dtype=dtype, seed=1).detach()
    (d,) = doubled(x)
    n = d * torch.rsqrt(d.square().mean(-1, keepdim=True) + 1e-5)
    exact = n * (weight.double() + offset)
    check(RmsNorm.apply(library, x, weight, 1e-5, offset), exact, [x], [d], slack=2)


@pytest.mark.parametrize("act", [SILU, GELU_TANH])
@pytest.mark.parametrize("width", [1, 17, 80])
def test_gate(library, dtype, width, act):
    gate, up = random(2, 5, width, dtype=dtype), random(2, 5, width, dtype=dtype, seed=1)
    g, u = doubled(gate, up)
    exact = (F.silu(g) if act == SILU else F.gelu(g, approximate="tanh")) * u
    check(Gated.apply(library, gate, up, act), exact, [gate, up], [g, u], slack=2)


def test_gate_of_the_two_halves_of_one_tensor(library, dtype):
    both = random(2, 5, 34, dtype=dtype)
    (d,) = doubled(both)
    g, u = d.chunk(2, dim=-1)
    check(Gated.apply(library, *both.chunk(2, dim=-1), SILU), F.silu(g) * u, [both], [d], slack=2)


@pytest.mark.parametrize("value", [-1e4, -100.0, -87.4, -20.0, 0.0, 20.0, 88.8, 1e4])
def test_gate_far_out_is_finite(library, dtype, value):
    gate, up = torch.full((1, 16), value, dtype=dtype).requires_grad_(), torch.ones(1, 16, dtype=dtype).requires_grad_()
    y = Gated.apply(library, gate, up, SILU)
    torch.testing.assert_close(y.float(), F.silu(gate.float()), rtol=1e-2, atol=1e-6)
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), (gate, up)))


@pytest.mark.parametrize("turned", [32, 16])
def test_rotation_of_queries_laid_out_by_token(library, dtype, turned):
    """A view of [1, T, H, D], as attention gets it; the first `turned` columns turn."""
    x = random(1, 9, 3, 32, dtype=dtype)
    angle = torch.rand(1, 9, turned // 2, generator=torch.Generator().manual_seed(1)).repeat(1, 1, 2) * 6
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    (d,) = doubled(x)
    view = d.transpose(1, 2)
    rot, rest = view[..., :turned], view[..., turned:]
    half = torch.cat([-rot[..., turned // 2 :], rot[..., : turned // 2]], -1)
    exact = torch.cat([rot * cos.double() + half * sin.double(), rest], -1)
    check(Rotary.apply(library, x.transpose(1, 2), cos, sin), exact, [x], [d])


def attention_exact(q, k, v, lengths, scale, window):
    """Each row alone, every score, in float64; [1, T, H, D]."""
    outs = []
    for one, keys, values in zip(*(x.split(lengths, dim=2) for x in (q, k, v)), strict=True):
        group = one.shape[1] // keys.shape[1]
        scores = one @ keys.repeat_interleave(group, 1).transpose(2, 3) * scale
        place = torch.arange(one.shape[2])
        unseen = place[None] > place[:, None]
        if window:
            unseen |= place[None] <= place[:, None] - window
        outs.append(scores.masked_fill(unseen, -torch.inf).softmax(-1) @ values.repeat_interleave(group, 1))
    return torch.cat(outs, dim=2).transpose(1, 2)


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 70), min_size=1, max_size=5), kv=st.integers(1, 2), group=st.integers(1, 3),
       size=st.sampled_from([16, 32, 48, 64, 80]), window=st.sampled_from([None, None, 1, 8, 13, 32, 100]),
       seed=st.integers(0, 99))
def test_attention_is_each_row_alone(lengths, kv, group, size, window, seed):
    assert build.start() is None
    for dtype, off in ((torch.float32, 1e-5), (torch.bfloat16, 0.02)):
        tokens = sum(lengths)
        x = [random(1, tokens, heads, size, dtype=dtype, seed=seed + i) for i, heads in enumerate((kv * group, kv, kv))]
        d = doubled(*x)
        exact = attention_exact(*(t.transpose(1, 2) for t in d), lengths, 0.3, window)
        plan = layout(lengths)
        ours = Attention.apply(build._loaded[dtype], *(t.transpose(1, 2) for t in x), plan.starts, plan.families, 0.3, window)
        up = random(*ours.shape, dtype=dtype, seed=seed + 9).detach()
        found, wanted = torch.autograd.grad(ours, x, up), torch.autograd.grad(exact, d, up.double())
        for got, want in zip((ours, *found), (exact, *wanted), strict=True):
            for row, true in zip(got.double().split(lengths, dim=1), want.split(lengths, dim=1), strict=True):
                assert (row - true).norm() < off * (true.norm() + true.numel() ** 0.5)  # a row of one token has gradients of 0


def test_attention_with_scores_of_hundreds_does_not_overflow(library, dtype):
    q, k, v = (random(1, 1, 20, 16, dtype=dtype, seed=s).detach().mul(60).requires_grad_() for s in range(3))
    out = Attention.apply(library, q, k, v, torch.tensor([0, 20]), torch.tensor([0, 1]), 1.0, None)
    assert out.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), (q, k, v)))


@pytest.mark.parametrize("words", [2, 33, 1000])
def test_loss(library, dtype, words):
    logits = random(6, words, dtype=dtype).detach() * 3
    labels = torch.tensor([0, words - 1, -100, 1, 1, -100])
    (d,) = doubled(logits)
    want = F.cross_entropy(d, labels, reduction="none")
    (gradient,) = torch.autograd.grad(want.sum(), d)
    ours = logits.clone()
    loss, hits = cross_entropy(library, ours, labels, gradient=True)
    torch.testing.assert_close(loss.double(), want.detach(), rtol=2e-6, atol=2e-6)
    equal(ours, gradient, dtype, slack=2)
    assert hits.bool().tolist() == [bool(n >= 0 and row[n] == row.max()) for row, n in zip(logits, labels, strict=True)]
    kept = logits.clone()
    cross_entropy(library, kept, labels, gradient=False)
    assert torch.equal(kept, logits)


def test_what_is_not_a_number_stays_seen(library, dtype):
    """An overflow must reach the loss, where the run stops; a kernel that swallows it would hide it."""
    x = random(4, 32, dtype=dtype).detach()
    x[1, 3] = torch.nan
    weight = torch.ones(32, dtype=dtype)
    assert RmsNorm.apply(library, x, weight, 1e-5, False)[1].isnan().all()
    assert Gated.apply(library, x, x, SILU)[1, 3].isnan()
    loss, _ = cross_entropy(library, x.clone(), torch.tensor([0, 1, 2, 3]), gradient=True)
    assert loss.isnan().tolist() == [False, True, False, False]
    q = torch.cat([x, x[2:]]).view(1, 1, 6, 32)
    out = Attention.apply(library, q, q, q, torch.tensor([0, 4, 6]), torch.tensor([0, 1, 2]), 1.0, None)[0, :, 0]
    assert out[1:4].isnan().any(dim=-1).all() and out[4:].isfinite().all()


def test_number_of_threads_changes_no_bit(library, dtype):
    lengths = [40, 3, 70, 1, 22]
    tokens, plan = sum(lengths), layout(lengths, families=[1, 3, 1])

    def everything() -> list[torch.Tensor]:
        x = [random(1, tokens, heads, 32, dtype=dtype, seed=heads) for heads in (4, 2, 2)]
        out = Attention.apply(library, *(t.transpose(1, 2) for t in x), plan.starts, plan.families, 0.3, None)
        y = RmsNorm.apply(library, out.flatten(2), torch.ones(128, dtype=dtype), 1e-5, False)
        z = Gated.apply(library, y, y * 2, SILU)
        return [z, *torch.autograd.grad(z.float().square().sum(), x)]

    one = everything()
    torch.set_num_threads(2)
    assert all(torch.equal(a, b) for a, b in zip(one, everything(), strict=True))


# ---- when they are used, and when not


OWN = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma3_text": "Gemma3", "phi3": "Phi3"}
"""How the classes of an architecture begin; phi has layer norms and no gate."""


@pytest.mark.parametrize("architecture", sorted(fast.KNOWN_ARCHITECTURES))
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_architecture_gets_the_kernels_it_can_use(make_base, architecture, dtype):
    assert build.start() is None
    model = make_base(architecture).to(dtype)
    own = [f"{OWN[architecture]}{what}" for what in ("MLP", "RMSNorm") ] if architecture in OWN else []
    assert replace(model) == [*own, "apply_rotary_pos_emb"]
    assert replace(model) == ["apply_rotary_pos_emb"]


def test_module_that_computes_something_else_is_left_alone(make_base):
    """A norm of the same name and shape, with its weight squared: nobody would see it from outside."""
    build.start()
    model = make_base("llama")
    kind = type(model.model.norm)
    strange = type(kind.__name__, (kind,), {"forward": lambda self, x: kind.forward(self, x) * self.weight})
    for module in model.modules():
        if type(module) is kind:
            module.__class__ = strange
    assert "LlamaRMSNorm" not in replace(model)
    assert not hasattr(model.model.norm, MARK)


def test_outside_of_the_fast_path_a_replaced_model_is_transformers_own_bit_for_bit(make_base):
    ids = torch.randint(0, 97, (1, 11))
    with torch.no_grad():
        expected = make_base()(input_ids=ids).logits
        model = make_base()
        build.start()
        replace(model)
        assert torch.equal(model(input_ids=ids).logits, expected)
        with build.used():
            close = model(input_ids=ids).logits
    assert not torch.equal(close, expected)
    torch.testing.assert_close(close, expected, rtol=1e-4, atol=1e-4)


def test_norm_whose_weight_is_trained_keeps_its_own_gradient(make_base):
    build.start()
    model = make_base()
    replace(model)
    model.model.norm.weight.requires_grad_()
    with build.used():
        model.model.norm(torch.randn(2, 96)).sum().backward()
    assert model.model.norm.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("change", "named"), [
    ("s/float back = dot/float back = 0.99f * dot/", "norm"),
    ("s/two \\* load(s\\[half + i\\])/two * load(s[i]) * 0.9f/", "rotation"),
    ("s/grad \\* x \\* s)/grad * x)/", "gate"),
    ("s/scores\\[j\\] - dot/scores[j]/", "attention"),
    ("s/gradient = exponential(chosen - largest) \\* by - 1.0f/gradient = 0.0f/", "loss"),
])
def test_kernel_that_computes_something_else_is_refused_by_name(tmp_path, monkeypatch, change, named):
    """A miscompiled kernel, as a compiler's bug would make it: one constant or one factor off."""
    for file in (*build.SOURCES, build.HEADER):
        shutil.copy(file, tmp_path)
    sources = [tmp_path / file.name for file in build.SOURCES]
    before = [source.read_text() for source in sources]
    subprocess.run(["sed", "-i", change, *map(str, sources)], check=True)
    assert [source.read_text() for source in sources] != before
    monkeypatch.setattr(build, "SOURCES", sources)
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    made = build._library(os.environ.get("CC") or shutil.which("cc"), "wrong", torch.float32)
    assert disagreement(build.Library(made, "wrong"), torch.float32) == named


@pytest.mark.slow
@pytest.mark.parametrize(("compiler", "reason"), [("/no/such/cc", "No such file"), ("false", "compiler failed"), ("true", "")])
def test_without_a_compiler_torch_does_it_and_the_reason_is_told(tmp_path, compiler, reason):
    """In a process of its own; `true` says that it compiled and leaves nothing."""
    script = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from tunesmith.engine import fast
from tunesmith.engine.native import build
from tunesmith.methods import lora
from tunesmith.recipe.methods import Lora
config = LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=50)
model = lora.attach(LlamaForCausalLM(config), Lora(rank=2), "tiny")
print(fast.accelerate(model), build.digest())
loss, _ = fast.forward_loss(model, [([1, 2, 3], [2, 3, -100])])
loss.backward()
assert loss.isfinite()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True,
                          env=os.environ | {"CC": compiler, "TUNESMITH_CACHE": str(tmp_path)})
    assert done.stdout.strip().endswith(" torch")
    assert reason in done.stdout and not done.stdout.startswith("None")
    assert not list((tmp_path / "kernels").glob("*")) if (tmp_path / "kernels").exists() else True
