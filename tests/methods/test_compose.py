"""What each way of composing computes, against the papers' formulas in float64 written down a second time here.

pytest tests/methods/test_compose.py
"""

import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tunesmith import methods
from tunesmith.errors import AdapterError, UsageError
from tunesmith.methods.compose import HOWS, Parent, Settings, _dropped, _elected, _trimmed, compose
from tunesmith.recipe.methods import Ia3, Lora, Qlora

PROMPT = torch.tensor([[5, 6, 7, 8, 9, 10]])
A, B = ".lora_A.weight", ".lora_B.weight"


@pytest.fixture
def trained(decoder, tmp_path):
    """`trained("a", Lora(rank=4))`: the directory of an adapter with random numbers in it."""

    def make(name: str, method=None, std: float = 0.2, architecture: str = "llama") -> Path:
        seed = sum(map(ord, name))
        torch.manual_seed(seed)
        model = methods.attach(decoder(architecture), method or Lora(rank=4, alpha=8.0), "tiny")
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.copy_(std * torch.randn(p.shape, generator=draw))
        path = tmp_path / name
        methods.save(model, path)
        return path

    return make


@pytest.fixture
def composed(tmp_path):
    """`composed({a: 1.0, b: 0.5}, how="cat")`: (the directory, the facts)."""
    count = itertools.count()

    def make(parents: dict[Path, float], **given):
        out = tmp_path / f"composed-{next(count)}"
        out.mkdir()
        facts = compose([Parent(d, w, d.name) for d, w in parents.items()], out, Settings(**given))
        return out, facts

    return make


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=PROMPT).logits[0].double()


# ---- the reference: from the files alone ------------------------------------------------------------------------------


def factors(directory: Path) -> dict[str, tuple[np.ndarray, np.ndarray, float]]:
    """{layer: (A, B, s)} in float64, as the papers of LoRA and rsLoRA and PEFT's patterns say."""
    config = json.loads((directory / "adapter_config.json").read_text())
    tensors = {k: v.double().numpy() for k, v in load_file(directory / "adapter_model.safetensors").items()}
    found = {}
    for name in tensors:
        if name.endswith(A):
            layer = name.removesuffix(A)
            a, b = tensors[name], tensors[layer + B]
            fits = [v for k, v in config["alpha_pattern"].items() if re.match(rf"(.*\.)?({k})$", layer)]
            alpha = fits[0] if fits else config["lora_alpha"]
            found[layer] = a, b, alpha / (math.sqrt(len(a)) if config["use_rslora"] else len(a))
    return found


def updates(directory: Path) -> dict[str, np.ndarray]:
    return {layer: s * b @ a for layer, (a, b, s) in factors(directory).items()}


def weighted_sum(parents: dict[Path, float]) -> dict[str, np.ndarray]:
    total: dict[str, np.ndarray] = {}
    for directory, weight in parents.items():
        for layer, update in updates(directory).items():
            total[layer] = total.get(layer, 0.0) + weight * update
    return total


def trim(x: np.ndarray, density: float) -> np.ndarray:
    """TIES, step 1: the largest of its numbers, as many as int(density n)."""
    keep = np.sort(np.abs(x).ravel())[::-1][max(1, int(density * x.size)) - 1]
    return np.where(np.abs(x) >= keep, x, 0.0)


def elect(tensors: list[np.ndarray], frequency: bool = False) -> np.ndarray:
    """TIES, steps 2 and 3, number by number."""
    out = np.zeros_like(tensors[0])
    for at in np.ndindex(out.shape):
        values = [t[at] for t in tensors]
        gamma = np.sign(sum(np.sign(values)) if frequency else sum(values))
        agree = [v for v in values if gamma and np.sign(v) == gamma]
        out[at] = sum(agree) / len(agree) if agree else 0.0
    return out


def cut(x: np.ndarray, rank: int) -> np.ndarray:
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def near(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for layer, update in expected.items():
        assert np.abs(found[layer] - update).max() <= tolerance * max(np.abs(update).max(), 1e-12), layer


MANY = {"same": (Lora(rank=4, alpha=8.0), Lora(rank=4, alpha=8.0)),
        "other ranks and scalings": (Lora(rank=2, alpha=3.0), Lora(rank=5, alpha=8.0, rslora=True)),
        "patterns": (Lora(rank=4, alpha=8.0, rank_pattern={"mlp.down_proj": 7, "layers.0.self_attn.v_proj": 1},
                          alpha_pattern={"o_proj": 1.5}), Lora(rank=3, alpha=8.0, targets=["q_proj", "down_proj"])),
        "pissa and some layers": (Lora(rank=3, alpha=6.0, init="pissa"), Lora(rank=4, layers_to_transform=[1]))}
PAIRS = list(MANY)


# ---- cat and svd: the sum --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("how, more", [("cat", {}), ("svd", {"rank": 40})])
def test_cat_and_svd_of_full_rank_are_the_weighted_sum(trained, composed, pair, how, more):
    parents = {trained("a", MANY[pair][0]): 0.7, trained("b", MANY[pair][1]): -1.3}
    out, facts = composed(parents, how=how, **more)
    near(updates(out), weighted_sum(parents))
    assert facts["error"] < 1e-6 and facts["layers"] == len(updates(out))
    assert facts["parameters"] == sum(t.numel() for t in load_file(out / "adapter_model.safetensors").values())
    if how == "svd":
        assert facts["kept"] == pytest.approx(1.0)


@pytest.mark.parametrize("rank", [1, 3])
def test_svd_is_the_nearest_of_its_rank_and_says_what_it_lost(trained, composed, rank):
    parents = {trained("a"): 1.0, trained("b"): 0.5}
    out, facts = composed(parents, how="svd", rank=rank)
    total = weighted_sum(parents)
    near(updates(out), {layer: cut(x, rank) for layer, x in total.items()})
    whole = sum((x**2).sum() for x in total.values())
    lost = sum(((x - cut(x, rank)) ** 2).sum() for x in total.values())
    assert facts["rank"] == rank and facts["kept"] == pytest.approx(1 - lost / whole)
    assert facts["error"] == pytest.approx(math.sqrt(lost / whole), rel=1e-4) and facts["error"] > 0.1


def test_facts_are_those_of_the_updates_themselves(trained, composed):
    a, b = trained("a"), trained("b")
    _, facts = composed({a: 2.0, b: 0.0}, how="cat")
    flat = [np.concatenate([u.ravel() for _, u in sorted(updates(d).items())]) for d in (a, b)]
    cosine = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    assert np.allclose(facts["overlap"], [[1, cosine], [cosine, 1]])
    assert np.allclose(facts["lengths"], [2 * np.linalg.norm(flat[0]), 0])


# ---- linear and its error --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.3, -0.8)])
def test_linear_adds_cross_terms_and_says_how_large_they_are(trained, composed, weights):
    parents = dict(zip((trained("a"), trained("b", Lora(rank=4, alpha=16.0, rslora=True))), weights, strict=True))
    out, facts = composed(parents, how="linear")
    expected, total = {}, weighted_sum(parents)
    both = [factors(d) for d in parents]
    for layer in both[0]:
        c = [w * f[layer][2] for w, f in zip(weights, both, strict=True)]
        a = sum(np.sign(x) * abs(x) ** 0.5 * f[layer][0] for x, f in zip(c, both, strict=True))
        b = sum(abs(x) ** 0.5 * f[layer][1] for x, f in zip(c, both, strict=True))
        expected[layer] = b @ a
    near(updates(out), expected)
    distance = math.sqrt(sum(((expected[k] - total[k]) ** 2).sum() for k in total))
    length = math.sqrt(sum((x**2).sum() for x in total.values()))
    assert facts["error"] == pytest.approx(distance / length, rel=1e-5) and facts["error"] > 0.3


# ---- TIES, DARE, magnitude -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", ["total", "frequency"])
@pytest.mark.parametrize("how", ["ties_svd", "magnitude_prune_svd", "ties", "magnitude_prune"])
def test_ties_and_magnitude_pruning_are_the_papers_formula(trained, composed, how, sign):
    """On the whole updates, and, without _svd, on each factor with its share of weight and scaling."""
    rule = HOWS[how]
    parents = {trained("a"): 1.0, trained("b"): 0.6, trained("c"): -0.4}
    given = {"density": 0.3} | ({"sign": sign} if rule.elect else {}) | ({"rank": 48} if rule.on == "delta" else {})
    out, facts = composed(parents, how=how, **given)
    both = [factors(d) for d in parents]

    def merged(tensors: list[np.ndarray]) -> np.ndarray:
        tensors = [trim(t, 0.3) for t in tensors]
        return elect(tensors, sign == "frequency") if rule.elect else sum(tensors)

    expected = {}
    for layer in both[0]:
        c = [w * f[layer][2] for w, f in zip(parents.values(), both, strict=True)]
        if rule.on == "delta":
            expected[layer] = merged([x * f[layer][1] @ f[layer][0] for x, f in zip(c, both, strict=True)])
        else:
            expected[layer] = merged([abs(x) ** 0.5 * f[layer][1] for x, f in zip(c, both, strict=True)]) @ merged(
                [np.sign(x) * abs(x) ** 0.5 * f[layer][0] for x, f in zip(c, both, strict=True)])
    near(updates(out), expected, 1e-4)
    assert facts["error"] > 0.1, "pruning is not the sum"


numbers = st.lists(st.floats(-3, 3, allow_nan=False, width=32), min_size=6, max_size=6)


@given(st.lists(numbers, min_size=2, max_size=4), st.sampled_from(["total", "frequency"]))
@settings(max_examples=100, deadline=None)
def test_an_election_is_the_papers_number_by_number(columns, sign):
    tensors = [torch.tensor(c, dtype=torch.float64) for c in columns]
    found = _elected(tensors, sign).numpy()
    totals = np.array(columns).sum(0)
    clear = np.abs(totals) > 1e-9 if sign == "total" else np.ones(6, bool)  # sums in another order: a draw may not be one
    assert np.allclose(found[clear], elect([np.array(c) for c in columns], sign == "frequency")[clear])


def test_two_parents_that_disagree_elect_nobody_by_frequency():
    """PEFT counts a draw as a majority for the positive sign."""
    found = _elected([torch.tensor([1.0, 2.0, -3.0]), torch.tensor([-5.0, 1.0, -1.0])], "frequency")
    assert found.tolist() == [0.0, 1.5, -2.0]


@given(st.integers(2, 60), st.floats(0.05, 1.0))
@settings(max_examples=50, deadline=None)
def test_trimming_keeps_the_largest_and_as_many_as_asked(n, density):
    x = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    kept = _trimmed(x, density)
    count = max(1, int(density * n)) if density < 1 else n
    assert int((kept != 0).sum()) == count
    assert torch.equal(kept[kept != 0], x[kept != 0])
    assert count == n or x[kept == 0].abs().max() <= kept[kept != 0].abs().min()


@pytest.mark.parametrize("density", [0.2, 0.7])
def test_dare_keeps_the_expected_share_and_the_expected_value(density):
    """Of 40,000 numbers: 5 standard deviations of the share that stays, and of the mean."""
    x = torch.full((200, 200), 2.0, dtype=torch.float64)
    found = _dropped(x, density, "s")
    share = float((found != 0).double().mean())
    assert abs(share - density) < 5 * math.sqrt(density * (1 - density) / x.numel())
    assert set(found.unique().tolist()) == {0.0, 2.0 / density}
    assert abs(float(found.mean()) - 2.0) < 5 * 2.0 * math.sqrt((1 - density) / density / x.numel())


@pytest.mark.parametrize("how", ["dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd"])
def test_dare_is_the_same_under_a_seed_and_another_under_another(trained, composed, how):
    a, b = trained("a"), trained("b")
    one, two = ((composed({a: 1.0, b: 0.5}, how=how, density=0.6, seed=3)[0] / "adapter_model.safetensors").read_bytes()
                for _ in range(2))
    torch.manual_seed(99)
    three = (composed({a: 1.0, b: 0.5}, how=how, density=0.6, seed=4)[0] / "adapter_model.safetensors").read_bytes()
    assert one == two != three


def test_a_and_b_are_pruned_by_chances_of_their_own(trained, composed):
    """With one stream for the two, the first numbers of both would be gone together, and the product would be biased."""
    out, _ = composed({trained("a"): 1.0, trained("b"): 0.0}, how="dare_linear", density=0.5)
    same = [(a.ravel()[:128] != 0) == (b.ravel()[:128] != 0) for a, b, _ in factors(out).values()]
    assert len(same) == 14 and all(0.25 < one.mean() < 0.75 for one in same)


def test_dare_on_the_updates_is_the_papers_formula(trained, composed):
    """With the same masks: which numbers stay is read off each parent alone."""
    a, b = trained("a"), trained("b")
    given = {"how": "dare_linear_svd", "density": 0.6, "rank": 48}
    out, _ = composed({a: 1.0, b: 0.5}, **given)
    alone = [updates(composed(p, **given)[0]) for p in ({a: 1.0, b: 0.0}, {a: 0.0, b: 0.5})]
    near(updates(out), {k: alone[0][k] + alone[1][k] for k in alone[0]}, 1e-4)
    for weight, d, one in zip((1.0, 0.5), (a, b), alone, strict=True):
        for layer, update in updates(d).items():
            stays = np.abs(one[layer]) > 1e-3 * np.abs(update).max()
            assert 0.4 < stays.mean() < 0.7
            assert np.allclose(one[layer][stays], (weight * update / 0.6)[stays], atol=1e-3 * np.abs(update).max())


@pytest.mark.parametrize("how", sorted(h for h, r in HOWS.items() if r.prune))
def test_a_density_of_1_prunes_nothing(trained, composed, how):
    rule, parents = HOWS[how], {trained("a"): 1.0, trained("b"): 0.6}
    more = {"rank": 48} if rule.on == "delta" else {}
    out, _ = composed(parents, how=how, density=1.0, **more)
    if rule.elect:
        other, _ = composed(parents, how={"ties": "dare_ties", "dare_ties": "ties"}[how.removesuffix("_svd")] +
                            "_svd" * how.endswith("_svd"), density=1.0, **more)
    else:
        other, _ = composed(parents, how="svd" if rule.on == "delta" else "linear", **more)
    near(updates(out), updates(other), 1e-4)


# ---- what holds for all ----------------------------------------------------------------------------------------------


def whole(how: str) -> dict:
    """Settings under which a way changes nothing of a single adapter."""
    rule = HOWS[how]
    return {"how": how} | ({"density": 1.0} if rule.prune else {}) | ({"rank": 48} if rule.on in ("svd", "delta") else {})


@pytest.mark.parametrize("how", HOWS)
def test_a_weight_of_0_leaves_the_other_parent_alone(trained, composed, decoder, how):
    """Its update, and its logits."""
    a, b = trained("a"), trained("b")
    out, _ = composed({a: 1.0, b: 0.0}, **whole(how))
    near(updates(out), updates(a), 1e-4)
    expected = logits(methods.load(decoder(), a))
    assert (logits(methods.load(decoder(), out)) - expected).abs().max() < 1e-3 < (expected - logits(decoder())).abs().max()


@pytest.mark.parametrize("how", ["cat", "svd", "linear", "ties"])
def test_a_parent_of_weight_0_gives_no_rank(trained, composed, how):
    """And is not refused for its rank where factors are added: it is not added."""
    _, facts = composed({trained("a"): 1.0, trained("b", Lora(rank=6)): 0.0}, how=how)
    assert facts["rank"] == 4


@pytest.mark.parametrize("how", HOWS)
def test_the_order_of_the_parents_does_not_count(trained, composed, how):
    a, b = trained("a"), trained("b")
    given = whole(how) | ({"density": 0.5} if HOWS[how].prune else {})
    near(updates(composed({a: 0.9, b: 0.4}, **given)[0]), updates(composed({b: 0.4, a: 0.9}, **given)[0]), 1e-4)


@pytest.mark.parametrize("how", HOWS)
def test_plain_peft_loads_it_and_its_merged_weights_are_base_plus_update(trained, composed, decoder, how):
    from peft import PeftModel

    parents = {trained("a", Lora(rank=4, alpha=8.0, rslora=True)): 0.5, trained("b"): 0.25}
    out, _ = composed(parents, how=how)
    plain = PeftModel.from_pretrained(decoder(), str(out))
    ours = methods.load(decoder(), out)
    assert torch.equal(logits(plain), logits(ours))
    before = {n: p.detach().double().numpy() for n, p in decoder().named_parameters()}
    merged = dict(methods.merge(ours).named_parameters())
    for layer, update in updates(out).items():
        name = layer.removeprefix("base_model.model.") + ".weight"
        assert np.abs(merged[name].detach().double().numpy() - before[name] - update).max() < 1e-5
    assert (logits(plain) - logits(decoder())).abs().max() > 1e-3


@pytest.mark.parametrize("pair", PAIRS)
def test_layers_and_ranks_that_differ_load_as_they_are(trained, composed, decoder, pair):
    parents = {trained("a", MANY[pair][0]): 0.7, trained("b", MANY[pair][1]): -0.6}
    model = methods.load(decoder(), composed(parents, how="cat")[0])
    base, total = decoder(), weighted_sum(parents)
    with torch.no_grad():
        for layer, update in total.items():
            base.get_submodule(layer.removeprefix("base_model.model.")).weight.add_(torch.from_numpy(update).float())
    assert (logits(model) - logits(base)).abs().max() < 1e-3


# ---- PEFT's own, as a second reference --------------------------------------------------------------------------------


def by_peft(decoder, parents: dict[Path, float], how: str, **given) -> dict[str, np.ndarray]:
    from peft import PeftModel

    names = [f"p{i}" for i in range(len(parents))]
    model = None
    for name, directory in zip(names, parents, strict=True):
        if model is None:
            model = PeftModel.from_pretrained(decoder(), str(directory), adapter_name=name)
        else:
            model.load_adapter(str(directory), adapter_name=name)
    model.add_weighted_adapter(names, list(parents.values()), "made", combination_type=how, **given)
    return {"base_model.model." + n.removeprefix("base_model.model."): m.get_delta_weight("made").detach().double().numpy()
            for n, m in model.named_modules() if hasattr(m, "lora_A") and "made" in m.lora_A}


@pytest.mark.parametrize("how, given, theirs", [
    ("cat", {}, {}), ("svd", {"rank": 3}, {"svd_rank": 3}), ("linear", {}, {}),
    ("ties", {"density": 0.4}, {"density": 0.4}), ("ties_svd", {"density": 0.4, "rank": 4}, {"density": 0.4, "svd_rank": 4}),
    ("magnitude_prune", {"density": 0.4}, {"density": 0.4}),
    ("magnitude_prune_svd", {"density": 0.4, "rank": 4}, {"density": 0.4, "svd_rank": 4}),
])
def test_with_equal_weights_it_is_what_peft_computes(trained, composed, decoder, how, given, theirs):
    """PEFT elects by unweighted numbers: with equal weights and scalings that is the same election."""
    parents = {trained("a"): 0.8, trained("b"): 0.8}
    near(updates(composed(parents, how=how, **given)[0]), by_peft(decoder, parents, how, **theirs), 1e-4)


def test_pefts_own_cat_of_rslora_is_too_large_by_the_root_of_its_rank(trained, composed, decoder):
    """Why the arithmetic is done here (ADR 15). When PEFT mends it, this test says so."""
    parents = {trained("a", Lora(rank=4, alpha=8.0, rslora=True)): 1.0, trained("b", Lora(rank=4, alpha=8.0, rslora=True)): 1.0}
    total, theirs = weighted_sum(parents), by_peft(decoder, parents, "cat")
    near(theirs, {k: math.sqrt(8) * v for k, v in total.items()}, 1e-4)
    near(updates(composed(parents, how="cat")[0]), total)


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method, words", [
    (Lora(rank=4, dora=True), "is a DoRA"), (Ia3(), "is no LoRA"),
    (Lora(rank=2, targets=["q_proj"], modules_to_save=["lm_head"]), "holds whole modules"),
])
def test_what_is_no_sum_of_b_a_is_refused(trained, method, words):
    with pytest.raises(UsageError) as error:
        Parent(trained("odd", method), 1.0, "odd")
    assert words in error.value.what and error.value.why and error.value.fix and str(error.value.where).endswith("odd")


@pytest.mark.parametrize("weights, given, words", [
    ((1.0, math.nan), {}, "the weight of b is nan"), ((1.0, math.inf), {}, "the weight of b is inf"),
    ((0.0, 0.0), {}, "every weight is 0"), ((1.0, 1.0), {"how": "slerp"}, "no way to compose called 'slerp'"),
    ((1.0, 1.0), {"how": "cat", "rank": 4}, "--rank changes nothing of --how cat"),
    ((1.0, 1.0), {"how": "svd", "density": 0.5}, "--density changes nothing of --how svd"),
    ((1.0, 1.0), {"how": "ties", "seed": 1}, "--seed changes nothing of --how ties"),
    ((1.0, 1.0), {"how": "dare_linear", "sign": "total"}, "--sign changes nothing of --how dare_linear"),
    ((1.0, 1.0), {"how": "ties", "density": 0.0}, "--density 0"),
    ((1.0, 1.0), {"how": "ties", "density": 1.5}, "--density 1.5"),
    ((1.0, 1.0), {"how": "svd", "rank": 0}, "--rank 0"), ((1.0, 1.0), {"how": "ties", "sign": "all"}, "--sign 'all'"),
])
def test_settings_that_mean_nothing_are_refused(trained, composed, weights, given, words):
    with pytest.raises(UsageError) as error:
        composed(dict(zip((trained("a"), trained("b")), weights, strict=True)), **given)
    assert words in error.value.what


def test_parents_that_do_not_go_together_are_refused(trained, composed, tmp_path):
    a, other_rank, quantised = trained("a"), trained("b", Lora(rank=3)), trained("q", Qlora(rank=4))
    for how in ("linear", "ties", "dare_ties", "magnitude_prune", "dare_linear"):
        with pytest.raises(UsageError, match=f"--how {how} needs adapters of one rank"):
            composed({a: 1.0, other_rank: 1.0}, how=how)
    with pytest.raises(UsageError, match="one of a quantised base and one of a whole base"):
        composed({a: 1.0, quantised: 1.0})
    with pytest.raises(UsageError, match="quantised in different ways"):
        composed({quantised: 1.0, trained("r", Qlora(rank=4, block_size=128, double_quant=False)): 1.0})
    with pytest.raises(UsageError, match="nothing to compose"):
        composed({a: 1.0})
    with pytest.raises(UsageError, match="are the same adapter"):
        compose([Parent(a, 1.0, "a"), Parent(a, 0.5, "again")], tmp_path, Settings())


def test_two_adapters_of_one_quantised_base_are_one_of_it(trained, composed, decoder):
    a, b = trained("q", Qlora(rank=4)), trained("r", Qlora(rank=2))
    out, _ = composed({a: 1.0, b: 0.0})
    assert methods.kind(out) == "qlora"
    assert (logits(methods.load(decoder(), out)) - logits(methods.load(decoder(), a))).abs().max() < 1e-4


def test_an_adapter_of_another_base_is_refused_by_its_shapes(trained, composed, tmp_path):
    a, b = trained("a"), trained("b")
    tensors = load_file(b / "adapter_model.safetensors")
    name = next(n for n in tensors if n.endswith(A))
    save_file(tensors | {name: tensors[name][:, :-2].contiguous()}, b / "adapter_model.safetensors")
    with pytest.raises(UsageError, match="a and b are not of one base"):
        composed({a: 1.0, b: 1.0})


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_parent_that_is_not_finite_is_refused_by_name_and_layer(trained, composed, bad):
    a, b = trained("a"), trained("b")
    tensors = load_file(b / "adapter_model.safetensors")
    name = sorted(n for n in tensors if n.endswith(B))[-1]
    tensors[name][0, 0] = bad
    save_file(tensors, b / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="b has weights that are not finite") as error:
        composed({a: 1.0, b: 1.0})
    assert name.removesuffix(B).removeprefix("base_model.model.") in error.value.where


def test_what_does_nothing_or_overflows_is_refused(trained, composed):
    a, b = trained("a"), trained("b")
    save_file({k: v * (1.0000001 if k.endswith(B) else 1.0) for k, v in load_file(a / "adapter_model.safetensors").items()},
              b / "adapter_model.safetensors")
    for how in ("cat", "svd", "linear"):
        with pytest.raises(AdapterError, match="does nothing"):
            composed({a: 1.0, b: -1.0}, how=how)
    with pytest.raises(AdapterError, match="the composed adapter is not finite"):
        composed({a: 1e39, trained("c"): 1.0})


def test_a_rank_that_vllm_does_not_load_is_said(trained, composed):
    _, small = composed({trained("a"): 1.0, trained("b"): 1.0})
    assert small["vllm"] == {"loads": True, "max_lora_rank": 8, "refused": []}
    _, large = composed({trained("c", Lora(rank=300, targets=["q_proj"])): 1.0,
                         trained("d", Lora(rank=300, targets=["q_proj"])): 1.0})
    assert not large["vllm"]["loads"] and "600 is above 512" in large["vllm"]["refused"][0]
