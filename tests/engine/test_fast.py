"""The fast path against PEFT and transformers as they come, on every architecture it claims to know.

pytest tests/engine/test_fast.py
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig
from transformers import CONFIG_MAPPING, AttentionInterface, AutoModelForCausalLM

from tunesmith.engine import attention, fast, plain
from tunesmith.engine.native import build
from tunesmith.engine.packing import layout
from tunesmith.methods import lora
from tunesmith.objectives.sft import forward_backward
from tunesmith.recipe.methods import Lora

ARCHITECTURES = sorted(fast.KNOWN_ARCHITECTURES)
LINEAR = {"phi": 6, "phi3": 4}
"""Linear layers of one decoder layer, where they are not q, k, v, o, gate, up and down."""
RAGGED = [17, 1, 40, 2, 33, 5, 18, 40, 9, 26]
EQUAL = [12, 12, 12, 12]
LENGTHS = {"ragged": RAGGED, "equal": EQUAL, "single": [23], "two tokens": [2], "two tokens among longer": [30, 2, 31]}


def loss_and_gradients(forward_loss, model, packs) -> tuple[float, int, dict[str, torch.Tensor]]:
    model.zero_grad()
    total, hits = 0.0, 0
    for pack in packs:
        loss, right = forward_loss(model, pack)
        loss.backward()
        total, hits = total + loss.item(), hits + right.item()
    return total, hits, {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def accelerated(model):
    fast.accelerate(model)
    return model


def hidden_states(model, rows) -> list[torch.Tensor]:
    """Last hidden states of each row of one pack, with the kernels if they are loaded."""
    lengths = [len(ids) for ids, _ in rows]
    tokens_1T = torch.tensor([[t for ids, _ in rows for t in ids]])
    plan = layout(lengths)
    with torch.no_grad(), build.used():
        out = model.get_base_model().model(input_ids=tokens_1T, position_ids=plan.positions_T[None], use_cache=False,
                                           packing=plan)
    return list(out.last_hidden_state[0].split(lengths))


def rows_that_leak(model, rows) -> set[tuple[int, int]]:
    """(changed row, row whose hidden states moved because of it), for every row changed in turn."""
    before = hidden_states(model, rows)
    leaks = set()
    for changed in range(len(rows)):
        other = [(([(t + 1) % 90 for t in ids], labels) if i == changed else (ids, labels))
                 for i, (ids, labels) in enumerate(rows)]
        after = hidden_states(model, other)
        assert not torch.equal(before[changed], after[changed])
        leaks |= {(changed, i) for i in range(len(rows)) if i != changed and not torch.equal(before[i], after[i])}
    return leaks


def leaking_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, packing=None, **_kwargs):
    """One causal mask over the whole pack: what packing does when nobody isolates the rows."""
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2).contiguous(), None


@pytest.fixture
def attend_without():
    """Call it with what to take away from attention's keyword arguments; the real one comes back afterwards."""
    def register(take_away):
        def attend(*args, **kwargs):
            take_away(kwargs)
            return attention.packed_attention(*args, **kwargs)
        AttentionInterface.register(attention.NAME, attend)
    yield register
    attention.register()


@pytest.fixture
def leak():
    """Replace the registered attention; the real one comes back afterwards."""
    yield lambda: AttentionInterface.register(attention.NAME, leaking_attention)
    attention.register()


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_and_every_gradient_equal_the_plain_path(make_model, make_rows, architecture, lengths):
    model, rows = make_model(architecture), make_rows(lengths, seed=3)
    loss, hits, gradients = loss_and_gradients(plain.forward_loss, model, [rows])
    fast_loss, fast_hits, fast_gradients = loss_and_gradients(fast.forward_loss, accelerated(model), [rows])
    assert loss > 0
    assert fast_loss == pytest.approx(loss, rel=2e-6)
    assert fast_hits == hits
    assert gradients.keys() == fast_gradients.keys()
    assert len(gradients) == 2 * 2 * LINEAR.get(architecture, 7)
    largest = max(g.norm() for g in gradients.values())  # a gradient that is zero but for rounding has no scale of its own
    for name, g in gradients.items():
        assert (fast_gradients[name] - g).norm() < 1e-5 * g.norm() + 5e-7 * largest, name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_row_has_the_logits_of_the_row_alone(make_model, make_rows, architecture):
    model, rows = make_model(architecture).eval(), make_rows(RAGGED)
    with torch.no_grad():
        alone = [model(input_ids=torch.tensor([ids]), use_cache=False).logits[0] for ids, _ in rows]
        fast.accelerate(model)
        packed = [model.get_output_embeddings()(h) for h in hidden_states(model, rows)]
    for one, other in zip(alone, packed, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_changing_one_row_changes_no_bit_of_the_others(make_model, make_rows, architecture):
    assert rows_that_leak(accelerated(make_model(architecture)), make_rows(RAGGED)) == set()


def test_control_one_causal_mask_over_the_pack_fails_the_isolation_check(make_model, make_rows, leak):
    model, rows = accelerated(make_model()), make_rows(EQUAL)
    leak()
    assert rows_that_leak(model, rows) == {(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)}


def test_loss_of_one_row_has_no_gradient_at_the_tokens_of_another(make_model, make_rows):
    model, rows = accelerated(make_model()), make_rows(RAGGED)
    causal_lm, lengths = model.get_base_model(), RAGGED
    plan = layout(lengths)
    embeddings_1TD = causal_lm.model.embed_tokens(torch.tensor([[t for ids, _ in rows for t in ids]])).requires_grad_()
    with build.used():
        hidden_1TD = causal_lm.model(inputs_embeds=embeddings_1TD, position_ids=plan.positions_T[None], use_cache=False,
                                     packing=plan).last_hidden_state
    for row, part in enumerate(hidden_1TD[0].split(lengths)):
        (gradient_1TD,) = torch.autograd.grad(part.square().sum(), embeddings_1TD, retain_graph=True)
        touched = [bool(g.any()) for g in gradient_1TD[0].split(lengths)]
        assert touched == [other == row for other in range(len(lengths))]


def cut(rows, sizes: list[int]) -> list[list]:
    packs, at = [], 0
    for size in sizes:
        packs.append(rows[at : at + size])
        at += size
    assert at == len(rows)
    return packs


@pytest.mark.parametrize("sizes", [[3, 7], [1, 2, 3, 4], [1] * 10], ids=["two packs", "four packs", "a pack a row"])
def test_step_does_not_depend_on_how_it_is_cut_into_packs(make_model, make_rows, sizes):
    model, rows = accelerated(make_model()), make_rows(RAGGED)

    def step(packs):
        model.zero_grad()
        measured = forward_backward(fast.forward_loss, model, packs)
        return measured, torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])

    whole, gradient = step([rows])
    other, other_gradient = step(cut(rows, sizes))
    assert (other.tokens, other.trained_tokens, other.accuracy) == (whole.tokens, whole.trained_tokens, whole.accuracy)
    assert other.loss == pytest.approx(whole.loss, rel=1e-6)
    residual = other_gradient - gradient
    assert residual.norm() < 1e-5 * gradient.norm()
    drift = (residual @ gradient) / (gradient @ gradient)
    assert abs(drift) < 1e-6  # along the gradient itself: what a wrong weight of some pack would leave
    assert abs(residual.mean()) < 4 * residual.std() / residual.numel() ** 0.5  # rounding has no side


def test_control_mean_of_the_packs_means_is_another_step(make_model, make_rows):
    model, rows = accelerated(make_model()), make_rows(RAGGED)
    whole = forward_backward(fast.forward_loss, model, [rows]).loss
    packs = cut(rows, [3, 7])
    naive = sum(forward_backward(fast.forward_loss, model, [p]).loss for p in packs) / len(packs)
    assert naive != pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bfloat16_is_as_close_to_float32_as_the_plain_path_is(make_model, make_rows, architecture):
    """Loss within 1%, gradient within 5% in norm and, over four packs, at most a fifth farther off than PEFT's own bfloat16."""
    packs = [make_rows(RAGGED, seed) for seed in range(4)]

    def measure(forward_loss, model):
        found = [loss_and_gradients(forward_loss, model, [rows]) for rows in packs]
        return [(loss, torch.cat([g.flatten().float() for g in gradients.values()])) for loss, _, gradients in found]

    exact = measure(plain.forward_loss, make_model(architecture))
    rounded = make_model(architecture, dtype=torch.bfloat16)
    assert {p.dtype for p in rounded.parameters() if p.requires_grad} == {torch.float32}
    errors = {}
    for name, path in (("plain", plain.forward_loss), ("fast", fast.forward_loss)):
        found = measure(path, accelerated(rounded) if name == "fast" else rounded)
        assert all(loss == pytest.approx(want, rel=1e-2) for (loss, _), (want, _) in zip(found, exact, strict=True))
        errors[name] = [relative(gradient, want) for (_, gradient), (_, want) in zip(found, exact, strict=True)]
    assert max(errors["fast"]) < 0.05
    assert sum(errors["fast"]) < 1.2 * sum(errors["plain"])


def plain_torch_curve(model, steps) -> list[float]:
    """The same training with nothing of ours: one padded batch a step, AdamW, clipping, cosine after warm-up."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.01)
    losses = []
    for rows in steps:
        longest = max(len(ids) for ids, _ in rows)
        ids_BL, labels_BL, mask_BL = (torch.full((len(rows), longest), fill) for fill in (0, -100, 0))
        for b, (ids, labels) in enumerate(rows):
            ids_BL[b, : len(ids)], labels_BL[b, : len(ids)], mask_BL[b, : len(ids)] = (
                torch.tensor(ids), torch.tensor(labels), torch.ones(len(ids)))
        logits_BLV = model(input_ids=ids_BL, attention_mask=mask_BL).logits
        loss = F.cross_entropy(logits_BLV.transpose(1, 2), labels_BL)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_twenty_steps_give_the_curve_of_a_plain_peft_loop(make_model, make_rows, architecture):
    steps = [make_rows([7 + (5 * s + 3 * i) % 30 for i in range(6)], seed=s) for s in [0, 1] * 10]
    model = make_model(architecture)
    expected = plain_torch_curve(copy.deepcopy(model), steps)
    fast.accelerate(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.01)
    losses = []
    for rows in steps:
        losses.append(forward_backward(fast.forward_loss, model, [rows[:2], rows[2:]]).loss)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert losses == pytest.approx(expected, rel=1e-4)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_known_architectures_take_the_fast_path(make_model, architecture):
    assert fast.why_not(make_model(architecture), max_tokens=256) is None


@pytest.mark.parametrize(("architecture", "shape"), [
    ("gpt2", {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 97}),
    ("opt", {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 64, "vocab_size": 97,
             "word_embed_proj_dim": 32}),
])
def test_unknown_architecture_is_refused_by_name(architecture, shape):
    model = lora.attach(AutoModelForCausalLM.from_config(CONFIG_MAPPING[architecture](**shape)), Lora(rank=2), "tiny")
    reason = fast.why_not(model, max_tokens=64)
    assert repr(architecture) in reason
    assert all(known in reason for known in ARCHITECTURES)


def test_lora_dropout_is_refused_naming_the_layer(make_model):
    reason = fast.why_not(make_model(dropout=0.1), max_tokens=64)
    assert "layers.0.self_attn.q_proj has dropout" in reason


@pytest.mark.parametrize(("architecture", "setting", "value"), [
    ("llama", "attention_dropout", 0.1),
    ("phi", "resid_pdrop", 0.1),
    ("phi3", "embd_pdrop", 0.1),
    ("gemma3_text", "attn_logit_softcapping", 50.0),
    ("gemma3_text", "final_logit_softcapping", 30.0),
    ("gemma3_text", "use_bidirectional_attention", True),
])
def test_setting_that_makes_it_another_model_is_refused_by_name(make_model, architecture, setting, value):
    assert setting in fast.why_not(make_model(architecture, **{setting: value}), max_tokens=64)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_position_encoding_that_looks_at_the_longest_row_is_refused_where_it_does(make_model, make_rows, rope_type):
    """Rows within the pretrained length are encoded alike whatever stands beside them; beyond it they are not."""
    rope = {"rope_type": rope_type, "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 16}
    rope |= {"long_factor": [2.0] * 8, "short_factor": [1.0] * 8} if rope_type == "longrope" else {}
    model = make_model(rope_parameters=rope, max_position_embeddings=16)
    assert fast.why_not(model, max_tokens=16) is None
    assert rope_type in fast.why_not(model, max_tokens=17)
    assert same_as_alone(model, make_rows([16, 3, 16, 9]))
    assert not same_as_alone(model, make_rows([40, 3, 16, 9]))


WINDOW = 8


def same_as_alone(model, rows) -> bool:
    quick = accelerated(copy.deepcopy(model))
    with torch.no_grad():
        alone = [model.get_base_model().model(input_ids=torch.tensor([ids])).last_hidden_state[0] for ids, _ in rows]
    return all(torch.allclose(a, h, atol=1e-5) for a, h in zip(alone, hidden_states(quick, rows), strict=True))


@pytest.mark.parametrize(("architecture", "changes", "windowed"), [
    ("mistral", {"sliding_window": WINDOW}, True),
    ("mistral", {"sliding_window": None}, False),
    ("mistral", {"sliding_window": WINDOW, "use_sliding_window": False}, True),  # Mistral does not know that key
    ("phi3", {"sliding_window": WINDOW}, True),
    ("qwen2", {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 0}, True),
    ("qwen2", {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 1}, True),
    ("qwen2", {"sliding_window": WINDOW, "use_sliding_window": False}, False),
    ("qwen3", {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 0}, True),
    ("gemma3_text", {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}, True),
])
@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "torch"])
def test_sliding_window_is_the_one_of_transformers(make_model, make_rows, without_kernels, attend_without, architecture,
                                                   changes, windowed, kernels):
    """Rows shorter than, as long as, and longer than the window. Control: without it the loss is another."""
    model = make_model(architecture, **changes)
    assert fast.why_not(model, max_tokens=4 * WINDOW) is None
    rows = make_rows([WINDOW, 3, WINDOW + 1, 4 * WINDOW, 2 * WINDOW, 5])
    loss, _, gradients = loss_and_gradients(plain.forward_loss, model, [rows])
    fast.accelerate(model)
    if not kernels:
        without_kernels()
    fast_loss, _, fast_gradients = loss_and_gradients(fast.forward_loss, model, [rows])
    assert fast_loss == pytest.approx(loss, rel=2e-6)
    largest = max(g.norm() for g in gradients.values())
    for name, g in gradients.items():
        assert (fast_gradients[name] - g).norm() < 1e-5 * g.norm() + 5e-7 * largest, name
    attend_without(lambda kwargs: kwargs.pop("sliding_window"))
    blind, _, _ = loss_and_gradients(fast.forward_loss, model, [rows])
    assert (blind != pytest.approx(loss, rel=1e-4)) == windowed


def with_second_adapter(model):
    """`other` beside `default`, with another rank, scaling and weights."""
    model.add_adapter("other", LoraConfig(r=3, lora_alpha=9, target_modules=["q_proj", "down_proj"]))
    for name, p in model.named_parameters():
        if ".other." in name:
            torch.nn.init.normal_(p, std=0.1)
    return model.eval()


def test_fuse_leaves_layers_with_dropout_to_peft(make_model):
    model = make_model(dropout=0.1)
    fast.fuse(model)
    layers = [layer for _, layer in fast._lora_layers(model)]
    assert len(layers) == 14
    assert all("forward" not in vars(layer) for layer in layers)


def test_fuse_takes_every_layer_without_dropout(make_model):
    model = make_model()
    fast.fuse(model)
    assert all("forward" in vars(layer) for _, layer in fast._lora_layers(model))


def test_disabled_adapter_on_a_fused_model_is_the_base_bit_for_bit(make_base, make_model):
    ids = torch.randint(0, 97, (2, 11))
    model = make_model().eval()
    fast.fuse(model)
    with torch.no_grad():
        expected = make_base()(input_ids=ids).logits
        tuned = model(input_ids=ids).logits
        with model.disable_adapter():
            assert torch.equal(model(input_ids=ids).logits, expected)
        assert torch.equal(model(input_ids=ids).logits, tuned)
    assert (tuned - expected).abs().max() > 0.1


def test_set_adapter_switches_the_fused_forward(make_model):
    ids = torch.randint(0, 97, (2, 11))
    model = with_second_adapter(make_model())
    fused = copy.deepcopy(model)
    fast.fuse(fused)
    seen = []
    with torch.no_grad():
        for name in ("default", "other", "default"):
            model.set_adapter(name)
            fused.set_adapter(name)
            seen.append(fused(input_ids=ids).logits)
            torch.testing.assert_close(seen[-1], model(input_ids=ids).logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(seen[0], seen[2])
    assert (seen[0] - seen[1]).abs().max() > 0.1


@pytest.mark.parametrize("state", ["both active", "merged", "an adapter a row"])
def test_what_the_fused_forward_does_not_know_goes_through_peft(make_model, state):
    ids = torch.randint(0, 97, (2, 11))
    model = with_second_adapter(make_model())
    fused = copy.deepcopy(model)
    fast.fuse(fused)
    logits = []
    with torch.no_grad():
        for m in (model, fused):
            if state == "both active":
                m.base_model.set_adapter(["default", "other"])
            elif state == "merged":
                m.merge_adapter(["default"])
            more = {"adapter_names": ["other", "__base__"]} if state == "an adapter a row" else {}
            logits.append(m(input_ids=ids, **more).logits)
    assert torch.equal(logits[0], logits[1])
