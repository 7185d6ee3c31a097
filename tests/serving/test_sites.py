"""Rows with different adapters in one call get what each gets alone, from Transformers with PEFT or tunesmith.methods.

Shapes: B = rows of a call, L = longest row, V = vocabulary. A call is padded on the right; every row is a segment of L tokens.

pytest tests/serving/test_sites.py
"""

import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.methods.reference import METHODS, VOCABULARY, decoder, moved

from tunesmith import methods
from tunesmith.engine.native import build
from tunesmith.engine.native.replace import replace
from tunesmith.errors import UsageError
from tunesmith.recipe.methods import Bottleneck, Ia3, Lora
from tunesmith.serving import sites as module_of_sites
from tunesmith.serving.adapters import PACKED, linear_sites, read, weight_of
from tunesmith.serving.sites import Sites

LENGTHS = (5, 9, 3, 7)
CLOSE = {"rtol": 1e-4, "atol": 2e-5}
FAR = 0.05
"""Every adapter moves some logit by more than this."""
IN_SITES = [n for n in METHODS if n.split()[0] not in ("full", "qlora", "whole", "prompt", "prefix")]
FAMILIES = {
    "llama": {n: METHODS[n] for n in IN_SITES},
    "phi": {"lora": Lora(rank=3), "dora": Lora(rank=2, dora=True), "ia3": Ia3(targets=["q_proj", "v_proj", "fc1", "fc2"],
                                                                              feedforward=["fc2"]),
            "bottleneck both": METHODS["bottleneck both"]},
    "phi3": {"lora": Lora(rank=3), "patterns": Lora(rank=3, rank_pattern={"qkv_proj": 5}, alpha_pattern={"down_proj": 3.0}),
             "dora": Lora(rank=2, dora=True), "ia3": Ia3(), "bottleneck": Bottleneck(size=5, after=["attention"])},
    "gemma3_text": {n: METHODS[n] for n in ("rslora", "dora", "ia3", "bottleneck both", "one layer")},
    "qwen2": {n: METHODS[n] for n in ("lora", "dora", "ia3 named", "bottleneck")} | {
        "ia3 inputs": Ia3(targets=["q_proj", "gate_proj"], feedforward=["q_proj", "gate_proj"])},
}
"""qwen2 and phi have biases, phi3 fused projections, gemma3 norms behind the modules and sliding windows."""


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def kernels():
    """`kernels(dtype)`: those of this machine."""
    if reason := build.start():
        pytest.skip(reason)

    def of(dtype):
        with build.used():
            return build.library_for(torch.empty(0, dtype=dtype))

    return of


@pytest.fixture(scope="module", params=["torch", "kernels"])
def library(request):
    """`library(dtype)`: None, or the kernels."""
    return request.getfixturevalue("kernels") if request.param == "kernels" else lambda dtype: None


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """`saved("lora", "phi3", seed)`: a directory of an adapter with random numbers, made once."""
    made = {}

    def make(name: str, architecture: str = "llama", seed: int = 2):
        key = name, architecture, seed
        if key not in made:
            torch.manual_seed(1)
            model = moved(methods.attach(decoder(architecture), FAMILIES[architecture][name], "tiny"), seed, std=0.1)
            made[key] = tmp_path_factory.mktemp("adapter")
            methods.save(model, made[key])
        return made[key]

    return make


def rows_of(lengths=LENGTHS) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(4)
    return [torch.randint(3, VOCABULARY, (n,), generator=draw) for n in lengths]


@torch.no_grad()
def alone(model, ids: torch.Tensor) -> torch.Tensor:
    return model.eval()(input_ids=ids[None]).logits[0].float()


@torch.no_grad()
def together(model, rows: list[torch.Tensor]) -> list[torch.Tensor]:
    """One padded call of all rows; the logits of each row's own tokens."""
    longest = max(map(len, rows))
    ids_BL = torch.stack([torch.nn.functional.pad(r, (0, longest - len(r))) for r in rows])
    mask_BL = torch.stack([torch.arange(longest) < len(r) for r in rows]).long()
    logits_BLV = model(input_ids=ids_BL, attention_mask=mask_BL).logits.float()
    return [row[: len(ids)] for row, ids in zip(logits_BLV, rows, strict=True)]


def bounds(rows) -> list[int]:
    return [n * max(map(len, rows)) for n in range(len(rows) + 1)]


def close(found, wanted, **tolerance) -> bool:
    return all(torch.allclose(f, w, **tolerance or CLOSE) for f, w in zip(found, wanted, strict=True))


@pytest.mark.parametrize("architecture", FAMILIES)
def test_rows_of_every_kind_in_one_call_are_what_each_is_alone(library, saved, architecture):
    names = list(FAMILIES[architecture])
    model = decoder(architecture)
    base = decoder(architecture)
    rows = rows_of([4 + n % 5 for n in range(len(names) + 1)])
    sites = Sites(model, library(torch.float32))
    mixes = [(), *(((read(saved(n, architecture), model, library(torch.float32)), 1.0),) for n in names)]
    wanted = [alone(base, rows[0])]
    for name, ids in zip(names, rows[1:], strict=True):
        wanted.append(alone(methods.load(decoder(architecture), saved(name, architecture)), ids))
        assert (wanted[-1] - alone(base, ids)).abs().max() > FAR, name
    with sites.segments(bounds(rows), mixes):
        found = together(model, rows)
    assert [n for n, f, w in zip(["the base", *names], found, wanted, strict=True) if not torch.allclose(f, w, **CLOSE)] == []
    for first in range(len(mixes) - 1):  # the control: two rows' adapters are exchanged, and exactly those rows are wrong
        swapped = [*mixes[:first], mixes[first + 1], mixes[first], *mixes[first + 2 :]]
        with sites.segments(bounds(rows), swapped):
            wrong = together(model, rows)
        assert [close([f], [w]) for f, w in zip(wrong, wanted, strict=True)] == [
            n not in (first, first + 1) for n in range(len(mixes))], names


@pytest.mark.parametrize("architecture", FAMILIES)
def test_outside_of_segments_and_in_those_of_nobody_the_base_is_as_it_was(library, saved, architecture):
    model, rows = decoder(architecture), rows_of()
    before = together(model, rows)
    sites = Sites(model, library(torch.float32))
    adapter = read(saved(next(iter(FAMILIES[architecture])), architecture), model, library(torch.float32))
    outside = [together(model, rows)]
    with sites.segments(bounds(rows), [(), ((adapter, 1.0),), (), ()]):
        mixed = together(model, rows)
    with pytest.raises(ZeroDivisionError), sites.segments(bounds(rows), [((adapter, 1.0),)] * 4):
        raise ZeroDivisionError
    outside.append(together(model, rows))
    with sites.segments(bounds(rows), [()] * 4):
        outside.append(together(model, rows))
    if library(torch.float32) is None:
        assert all(torch.equal(f, w) for found in outside for f, w in zip(found, before, strict=True))
    else:
        assert all(close(found, before) for found in outside)
        assert all(torch.equal(f, w) for found in outside[1:] for f, w in zip(found, outside[0], strict=True))
    assert [close([m], [b]) for m, b in zip(mixed, before, strict=True)] == [True, False, True, True]


def test_the_base_beside_others_is_as_it_was_bit_for_bit(library, saved):
    """A row's bits do not depend on the company's adapters, where its company has the same shape."""
    model, rows = decoder(), rows_of()
    sites = Sites(model, library(torch.float32))
    with sites.segments(bounds(rows), [()] * 4):
        base = together(model, rows)
    for name in IN_SITES:
        adapter = read(saved(name), model, library(torch.float32))
        with sites.segments(bounds(rows), [(), ((adapter, 1.0),), ((adapter, 1.0),), ()]):
            found = together(model, rows)
        assert torch.equal(found[0], base[0]) and torch.equal(found[3], base[3])
        assert not close(found[1:3], base[1:3])


@pytest.mark.parametrize("architecture", FAMILIES)
def test_in_bfloat16_the_error_is_that_of_bfloat16(library, saved, architecture):
    """Against float32 it is no larger than twice what Transformers and PEFT make in the same dtype."""
    names = list(FAMILIES[architecture])
    model = decoder(architecture, torch.bfloat16)
    sites = Sites(model, library(torch.bfloat16))
    rows = rows_of([6] * len(names))
    mixes = [((read(saved(n, architecture), model, library(torch.bfloat16)), 1.0),) for n in names]
    with sites.segments(bounds(rows), mixes):
        found = together(model, rows)
    for name, ids, ours in zip(names, rows, found, strict=True):
        exact = alone(methods.load(decoder(architecture, torch.bfloat16).float(), saved(name, architecture)), ids)
        theirs = alone(methods.load(decoder(architecture, torch.bfloat16), saved(name, architecture)), ids)
        error, usual = ((x - exact).square().mean().sqrt().item() for x in (ours, theirs))
        assert error < 2 * usual, (name, error, usual)
        other = alone(decoder(architecture, torch.bfloat16).float(), ids)  # the control: without the adapter it is far
        assert (other - exact).square().mean().sqrt().item() > 4 * usual, name


def test_norms_and_gates_may_be_kernels_too(kernels, saved):
    library = kernels(torch.float32)
    for late in (False, True):  # before the layers' weights are gone, and after
        model, rows, names = decoder(), rows_of(), ("lora", "dora", "ia3", "bottleneck both")
        replaced = [] if late else replace(model)
        sites = Sites(model, library)
        assert {"LlamaRMSNorm", "LlamaMLP"} <= set(replaced or replace(model))
        wanted = [alone(methods.load(decoder(), saved(n)), ids) for n, ids in zip(names, rows, strict=True)]
        mixes = [((read(saved(n), model, library), 1.0),) for n in names]
        with build.used(), sites.segments(bounds(rows), mixes):
            assert close(together(model, rows), wanted)


# ---- mixes ------------------------------------------------------------------------------------------------------------


def test_weighted_mixes_are_sums_as_peft_makes_them(library, saved):
    from peft import PeftModel

    model, rows = decoder(), rows_of()
    lib = library(torch.float32)
    sites = Sites(model, lib)
    folders = {"a": saved("lora"), "b": saved("rslora", seed=7), "c": saved("patterns", seed=9)}
    read_in = {n: read(f, model, lib) for n, f in folders.items()}
    weights = [{"a": 1.0, "b": 1.0}, {"a": 0.25, "b": -1.5, "c": 0.75}, {"a": 0.5}, {"c": 0.3, "b": 0.7}]
    peft = PeftModel.from_pretrained(decoder(), folders["a"], adapter_name="a")
    for n in "bc":
        peft.load_adapter(folders[n], adapter_name=n)
    wanted = []
    for at, (mix, ids) in enumerate(zip(weights, rows, strict=True)):
        peft.add_weighted_adapter(list(mix), list(mix.values()), f"mix{at}", combination_type="cat")
        peft.set_adapter(f"mix{at}")
        wanted.append(alone(peft, ids))
    mixes = [tuple((read_in[n], w) for n, w in mix.items()) for mix in weights]
    with sites.segments(bounds(rows), mixes):
        found = together(model, rows)
    assert close(found, wanted)
    with sites.segments(bounds(rows), [mixes[0], (*mixes[1][:2], (read_in["c"], 0.7)), *mixes[2:]]):  # the control
        found = together(model, rows)
    assert [close([f], [w]) for f, w in zip(found, wanted, strict=True)] == [True, False, True, True]


def test_a_mix_is_the_base_plus_the_sum_of_its_updates(saved, library):
    """Written down a second time: W + sum of w s B A, in the weights themselves."""
    model, plain, lib = decoder("phi3"), decoder("phi3"), library(torch.float32)
    sites = Sites(model, lib)
    parts = [(saved("lora", "phi3"), 0.6), (saved("patterns", "phi3", 5), -0.8)]
    for folder, weight in parts:
        for name, of in read(folder, plain).factors.items():
            plain.get_submodule(name).weight += weight * of.scale * of.b_NR @ of.a_RC
    rows = rows_of((8,))
    with sites.segments([0, 8], [tuple((read(folder, model, lib), weight) for folder, weight in parts)]):
        assert close(together(model, rows), [alone(plain, rows[0])])


def test_a_mix_that_cannot_be_is_refused_before_anything_is_computed(saved):
    model = decoder()
    sites, dora = Sites(model), read(saved("dora"), model)
    with pytest.raises(UsageError, match="goes alone"), sites.segments([0, 4], [((dora, 0.5),)]):
        raise AssertionError("not to be reached")
    for wrong in ([0, 4, 5], [1, 4], [0], [0, 5, 4]):
        with pytest.raises(ValueError, match="bounds"), sites.segments(wrong, [((dora, 1.0),)] * (2 if wrong[-1] == 4 else 1)):
            raise AssertionError("not to be reached")
    with sites.segments([0, 4], [()]), pytest.raises(ValueError, match="5 tokens, and segments of 4"):
        together(model, rows_of((5,)))


# ---- one layer --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_layer(library, saved):
    """A layer with a bias, and what each of five mixes makes of any inputs, written down by itself in float64."""
    lib, model, plain = library(torch.float32), decoder("qwen2"), decoder("qwen2")
    sites, name = Sites(model, lib), "model.layers.1.self_attn.q_proj"
    layer, of = model.get_submodule(name), plain.get_submodule(name)
    weight, bias = of.weight.double(), of.bias.double()
    lora, dora, ia3, inputs = (read(saved(n, "qwen2"), plain) for n in ("lora", "dora", "ia3 named", "ia3 inputs"))
    other = read(saved("lora", "qwen2", 8), plain)

    def update(adapter):
        factors = adapter.factors[name]
        return factors.scale * factors.b_NR.double() @ factors.a_RC.double()

    ratio = dora.magnitudes[name].double()
    wanted = [lambda x: x @ weight.T + bias,
              lambda x: x @ (weight + 0.5 * update(lora) - 2 * update(other)).T + bias,
              lambda x: ratio * (x @ (weight + update(dora)).T) + bias,
              lambda x: ia3.outputs[name].double() * (x @ weight.T + bias),
              lambda x: (x * inputs.inputs[name].double()) @ weight.T + bias]
    used = [read(saved(which, "qwen2", seed), model, lib)
            for which, seed in (("lora", 2), ("lora", 8), ("dora", 2), ("ia3 named", 2), ("ia3 inputs", 2))]
    return sites, layer, [(), ((used[0], 0.5), (used[1], -2.0)), *(((one, 1.0),) for one in used[2:])], wanted


@settings(deadline=None, max_examples=60)
@given(step=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 40)), min_size=1, max_size=9))
def test_a_token_gets_what_its_own_segment_says_however_a_step_is_cut(one_layer, step):
    sites, layer, mixes, wanted = one_layer
    counts = [count for _, count in step]
    x_TC = torch.randn(sum(counts), 48, generator=torch.Generator().manual_seed(sum(counts)))
    ends = torch.tensor([0, *counts]).cumsum(0).tolist()
    with sites.segments(ends, [mixes[which] for which, _ in step]), torch.no_grad():
        given_TC = x_TC.clone()
        y_TN = layer(given_TC[None])[0]
    assert torch.equal(given_TC, x_TC)  # what other layers see too
    for (which, _), begin, end in zip(step, ends, ends[1:], strict=False):
        assert torch.allclose(y_TN[begin:end].double(), wanted[which](x_TC[begin:end].double()), rtol=1e-4, atol=1e-5)


# ---- memory -----------------------------------------------------------------------------------------------------------


def test_an_adapter_that_is_forgotten_is_gone_and_sequences_are_bounded(saved, library):
    model, rows, lib = decoder(), rows_of((4,)), library(torch.float32)
    sites = Sites(model, lib)
    adapter, stays = read(saved("lora"), model, lib), read(saved("rslora"), model, lib)
    for n in range(module_of_sites.SEQUENCES + 9):
        with sites.segments([0, 4], [((stays, 1.0 + n),)]):
            pass
    assert len(sites._sequences) == module_of_sites.SEQUENCES
    with sites.segments([0, 4, 4], [((adapter, 1.0),), ((stays, 1.0),)]):
        together(model, rows)
    of = adapter.factors["model.layers.0.mlp.up_proj"]
    watched = weakref.ref(of.a_RC if of.packed is None else of.packed)
    del of
    sites.forget(adapter)
    del adapter
    assert watched() is None
    with sites.segments([0, 4], [((stays, 1.0),)]):
        assert not close(together(model, rows), [alone(decoder(), rows[0])])


def test_with_kernels_a_weight_is_held_once(library):
    lib, model, plain = library(torch.float32), decoder(), decoder()
    Sites(model, lib)
    for name, module in linear_sites(model).items():
        assert torch.equal(weight_of(module), plain.get_submodule(name).weight)
        assert (module.weight.numel() == 0) == (PACKED in vars(module)) == (lib is not None)
