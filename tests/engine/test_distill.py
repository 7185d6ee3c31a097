"""A teacher's most likely words against the whole distributions, and the slopes against torch's own in float64.

pytest tests/engine/test_distill.py
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.engine import distill as room
from tunesmith.engine import fast
from tunesmith.engine.distill import Distances, Settings, fast_distances, most_likely, plain_distances, teach
from tunesmith.engine.loss import IGNORE

HIDDEN, WORDS = 12, 31


def exact(z_NV: torch.Tensor, teacher_NV: torch.Tensor, kl: str) -> torch.Tensor:
    """KL of whole distributions, [N]."""
    p, q = teacher_NV.log_softmax(-1), z_NV.log_softmax(-1)
    before, after = (p, q) if kl == "forward" else (q, p)
    return (before.exp() * (before - after)).sum(-1)


def bucketed(z_NV, words_NK, logps_NK1, kl: str) -> torch.Tensor:
    """The same over the named words and all others as one, from the probabilities themselves."""
    q = z_NV.softmax(-1)
    top = q.gather(1, words_NK)
    q = torch.cat([top, 1 - top.sum(-1, keepdim=True)], -1)
    p = logps_NK1.exp()
    before, after = (p, q) if kl == "forward" else (q, p)
    return (before * (before.log() - after.log())).sum(-1)


@pytest.mark.parametrize("kl", ["forward", "reverse"])
@given(tokens=st.integers(1, 9), count=st.integers(1, WORDS), temperature=st.sampled_from([0.7, 1.0, 2.5]),
       alpha=st.sampled_from([0.0, 0.3, 1.0]), chunk=st.sampled_from([1, 4, 100]), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_loss_and_gradient_are_the_formulas(kl, tokens, count, temperature, alpha, chunk, seed):
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, HIDDEN, generator=draw).requires_grad_()
    weight, bias = torch.randn(WORDS, HIDDEN, generator=draw).requires_grad_(), torch.randn(WORDS, generator=draw)
    teacher = torch.randn(tokens, WORDS, generator=draw) * 3
    labels = torch.randint(0, WORDS, (tokens,), generator=draw)
    labels[torch.rand(tokens, generator=draw) < 0.2] = IGNORE
    words, logps = most_likely(teacher, count, temperature, WORDS)
    doubles = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    z = doubles[0] @ doubles[1].T + bias.double()
    want_kl = exact(z / temperature, teacher.double() / temperature, kl) if count == WORDS else \
        bucketed(z / temperature, words, logps.double(), kl)
    ce = torch.nn.functional.cross_entropy(z, labels, ignore_index=IGNORE, reduction="none")
    want = (alpha * temperature**2 * want_kl + (1 - alpha) * ce) * (labels != IGNORE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "CHUNK_TOKENS", chunk)
        loss, kl_N, ce_N, _ = Distances.apply(hidden, weight, bias, labels, words, logps, Settings(temperature, alpha, kl))
        above = torch.randn(tokens, generator=draw)
        found = torch.autograd.grad(loss, (hidden, weight), above)
    torch.testing.assert_close(loss.double(), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ce_N.double(), ce * (labels != IGNORE), rtol=1e-4, atol=1e-5)
    assert (kl_N >= -1e-5).all()
    for got, exactly in zip(found, torch.autograd.grad(want, doubles, above.double()), strict=True):
        torch.testing.assert_close(got.double(), exactly, rtol=1e-3, atol=2e-4)


def test_fewer_words_say_less_and_all_words_say_everything():
    torch.manual_seed(0)
    teacher, student = torch.randn(20, WORDS) * 2, torch.randn(20, WORDS) * 2
    whole = exact(student, teacher, "forward")
    before = torch.zeros(20)
    for count in (1, 2, 5, 12, WORDS):
        words, logps = most_likely(teacher, count, 1.0, WORDS)
        found, _ = room._divergence(student, words, logps, False)
        assert (found >= before - 1e-5).all() and (found <= whole + 1e-5).all()
        before = found
    torch.testing.assert_close(before, whole, rtol=1e-4, atol=1e-5)


def test_probabilities_of_a_teacher_are_whole_and_its_surplus_words_do_not_count():
    teacher = torch.randn(7, WORDS + 5)
    for count in (3, WORDS, WORDS + 5):
        words, logps = most_likely(teacher, count, 2.0, WORDS)
        assert words.max() < WORDS and words.shape == (7, min(count, WORDS))
        torch.testing.assert_close(logps.exp().sum(-1), torch.ones(7))
    assert (logps[:, -1] == -torch.inf).all()


@pytest.mark.parametrize("kl", ["forward", "reverse"])
@pytest.mark.parametrize("count", [5, 97])
def test_fast_and_plain_path_agree_in_loss_and_every_gradient(make_model, make_rows, kl, count):
    rows = make_rows([9, 30, 14])
    taught = teach(make_model("qwen3"), rows, count, 2.0, 97, "plain")
    words, logps = (torch.cat(column) for column in zip(*taught, strict=True))
    model = make_model("llama")
    parameters = [p for p in model.parameters() if p.requires_grad]

    def measured(path):
        loss, kl_N, ce_N, hits = path(model, rows, words, logps, Settings(2.0, 0.6, kl))
        gradients = torch.autograd.grad(loss.sum(), parameters)
        return [loss.sum().detach(), kl_N.sum(), ce_N.sum(), hits], gradients

    want, wanted = measured(plain_distances)
    fast.accelerate(model)
    got, found = measured(fast_distances)
    for ours, exactly in zip(got, want, strict=True):
        torch.testing.assert_close(ours, exactly, rtol=1e-4, atol=1e-4)
    largest = max(g.norm() for g in wanted)
    assert all((a - b).norm() < 1e-4 * b.norm() + 1e-5 * largest for a, b in zip(found, wanted, strict=True))


def test_a_teacher_says_the_same_on_both_paths_and_nothing_to_learn_when_it_is_the_student(make_model, make_rows):
    model, rows = make_model().eval(), make_rows([9, 30, 14])
    want = teach(model, rows, 6, 1.0, 97, "plain")
    fast.accelerate(model)
    for (words, logps), (others, exactly) in zip(teach(model, rows, 6, 1.0, 97, "fast"), want, strict=True):
        assert torch.equal(words, others)
        torch.testing.assert_close(logps, exactly, rtol=1e-4, atol=1e-5)
    words, logps = (torch.cat(column) for column in zip(*want, strict=True))
    loss, kl, _, _ = fast_distances(model, rows, words, logps, Settings(1.0, 1.0, "forward"))
    gradients = torch.autograd.grad(loss.sum(), [p for p in model.parameters() if p.requires_grad])
    assert kl.abs().max() < 1e-4 and max(g.norm() for g in gradients) < 1e-3
