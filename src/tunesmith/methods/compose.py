"""Several LoRA adapters of one base as one, from their files alone: no base is loaded, one layer at a time is in memory.

    D_i = s_i B_i A_i     what parent i adds to a weight, [out, in]: s_i its scaling, A_i [r, in], B_i [out, r]; w_i its weight

    cat               [w_1 s_1 A_1; w_2 s_2 A_2], [B_1, B_2]: the sum of w_i D_i, exactly; the ranks add up
    svd               the nearest to that sum of a lower rank (Eckart and Young 1936); the same from the sum of the ranks on
    linear            a_i = sgn(w_i) sqrt|w_i s_i| A_i and b_i = sqrt|w_i s_i| B_i are summed, each for itself: (sum b)(sum a)
                      has every b_i a_j, which no parent has learned
    magnitude_prune   the sum of what is left of each when only its `density` largest numbers stay
    dare_linear       the same, of numbers kept by chance and divided by `density` (Yu et al. 2023, arXiv 2311.03099)
    ties              prune by magnitude, elect a sign for each number, and take the mean of those that have it (Yadav et al.
                      2023, arXiv 2306.01708)
    dare_ties         the same after pruning by chance

The last four, as `linear`, work on a and b; with `_svd` behind the name on w_i D_i, which is what the papers mean: A and B
have no signs and sizes of their own ((B R)(R^-1 A) is the same adapter). The names are PEFT's (`add_weighted_adapter`); where
the numbers are not, and why: docs/adr/0015.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tunesmith.errors import AdapterError, UsageError
from tunesmith.methods import QUANTISATION_FILE
from tunesmith.methods.files import WEIGHTS_FILE, fitting, read_config, write
from tunesmith.methods.lora import _pattern
from tunesmith.methods.report import vllm

if TYPE_CHECKING:
    from torch import Tensor

PREFIX, A_END, B_END = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
NOTHING = 1e-6
"""Of the parents' summed lengths: a combination shorter than this is only rounding."""
DENSITY = 0.5


@dataclass(frozen=True, slots=True)
class Rule:
    on: Literal["cat", "svd", "factors", "delta"]
    """What is combined: the factors side by side; their sum by its singular values; each factor; each whole update."""
    prune: Literal["magnitude", "random"] | None = None
    elect: bool = False

    @property
    def reads(self) -> set[str]:
        """Names of the settings that change its result."""
        return ({"rank"} if self.on in ("svd", "delta") else set()) | ({"density"} if self.prune else set()) | (
            {"sign"} if self.elect else set()) | ({"seed"} if self.prune == "random" else set())


HOWS = {"cat": Rule("cat"), "svd": Rule("svd"), "linear": Rule("factors")} | {
    name + end: Rule(on, prune, elect)
    for name, prune, elect in (("ties", "magnitude", True), ("dare_linear", "random", False), ("dare_ties", "random", True),
                               ("magnitude_prune", "magnitude", False))
    for end, on in (("", "factors"), ("_svd", "delta"))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    how: str = "cat"
    rank: int | None = None
    """Of `svd` and `..._svd`; None: the largest of the parents'."""
    density: float | None = None
    """Share of the numbers that pruning keeps; None: 0.5 where something is pruned."""
    sign: Literal["total", "frequency"] | None = None
    """Elected is the sign of the sum (None: this one), or the one that more parents have."""
    seed: int | None = None
    """Of pruning by chance; None: 0."""

    @property
    def rule(self) -> Rule:
        return HOWS[self.how]

    def checked(self) -> Settings:
        """With what its `how` needs, and nothing that it does not read. Raises UsageError."""
        if self.how not in HOWS:
            raise UsageError(f"there is no way to compose called {self.how!r}", fix=f"one of {', '.join(HOWS)}")
        rule = self.rule
        for name in ("rank", "density", "sign", "seed"):
            if getattr(self, name) is not None and name not in rule.reads:
                users = ", ".join(h for h, r in HOWS.items() if name in r.reads)
                raise UsageError(f"--{name} changes nothing of --how {self.how}", fix=f"leave it out; it is read by {users}")
        if self.rank is not None and self.rank < 1:
            raise UsageError(f"--rank {self.rank}: a rank is 1 or more")
        if self.density is not None and not 0 < self.density <= 1:
            raise UsageError(f"--density {self.density:g}: a share above 0, up to 1, which prunes nothing")
        if self.sign not in (None, "total", "frequency"):
            raise UsageError(f"--sign {self.sign!r}: total or frequency")
        return Settings(how=self.how, rank=self.rank, density=(self.density or DENSITY) if rule.prune else None,
                        sign=(self.sign or "total") if rule.elect else None,
                        seed=(self.seed or 0) if rule.prune == "random" else None)


@dataclass(slots=True)
class Parent:
    """An adapter's directory, opened. Settings that make it more than s B A are refused."""

    directory: Path
    weight: float
    name: str
    """For messages."""
    config: dict = field(init=False)
    layers: set[str] = field(init=False)
    """Full names of the adapted modules."""
    digest: str = field(init=False)
    """sha256 of its tensors' file: what pruning by chance is drawn from, whatever the order of the parents."""

    def __post_init__(self) -> None:
        from safetensors import safe_open

        from tunesmith.store.files import sha256_file

        self.config = read_config(self.directory)
        refuse(self.config, self.name, self.directory)
        with fitting(self.directory), safe_open(self.directory / WEIGHTS_FILE, framework="pt") as file:
            names = set(file.keys())
        ends = {end: {n.removeprefix(PREFIX).removesuffix(end) for n in names if n.endswith(end)} for end in (A_END, B_END)}
        if odd := sorted(n for n in names if not n.endswith((A_END, B_END))):
            raise UsageError(f"{self.name} has more than A and B of linear layers", where=str(self.directory / WEIGHTS_FILE),
                             why=f"{len(odd)} other tensors, for example {odd[0]}", fix="compose adapters of plain LoRA")
        if not names or ends[A_END] != ends[B_END]:
            raise AdapterError(f"{self.name} has an A without its B, or nothing", where=str(self.directory / WEIGHTS_FILE),
                               fix="bring the adapter back from where it was saved, or train it again")
        self.layers, self.digest = ends[A_END], sha256_file(self.directory / WEIGHTS_FILE)

    def factors(self, layer: str) -> tuple[Tensor, Tensor, float]:
        """(A [r, in], B [out, r], s) of a layer, in float64. Raises AdapterError: a number is not finite."""
        from safetensors import safe_open

        with fitting(self.directory), safe_open(self.directory / WEIGHTS_FILE, framework="pt") as file:
            a, b = (file.get_tensor(PREFIX + layer + end).double() for end in (A_END, B_END))
        if not (a.isfinite().all() and b.isfinite().all()):
            raise AdapterError(f"{self.name} has weights that are not finite",
                               where=f"{self.directory / WEIGHTS_FILE}: {layer}",
                               why="a NaN or infinity spreads to whatever is made of it",
                               fix="train this adapter again, or leave it out")
        patterns = self.config.get("alpha_pattern") or {}
        alpha = patterns.get(_pattern(list(patterns), layer), self.config["lora_alpha"])
        return a, b, alpha / (math.sqrt(len(a)) if self.config.get("use_rslora") else len(a))


def refuse(config: dict, name: str, directory: Path) -> None:
    """Raises UsageError for an adapter that is no plain LoRA: what it learned is not s B A."""
    kind, where = config["peft_type"], str(directory)
    if kind != "LORA":
        raise UsageError(f"{name} is no LoRA", where=where, why=f"it is of type {kind}: composing is defined for weights that "
                         "are sums of B A", fix="train it with method: {type: lora}")
    if config.get("use_dora"):
        raise UsageError(f"{name} is a DoRA", where=where, why="it also sets the length of each weight row, which depends on "
                         "the base's own weight and cannot be added up", fix="train it with dora: false")
    if extra := config.get("modules_to_save"):
        raise UsageError(f"{name} holds whole modules: {', '.join(extra)}", where=where, why="two whole copies of a module "
                         "have no sum of low rank", fix="train it without method.modules_to_save")
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        raise UsageError(f"{name} trains biases", where=where, why="they are no part of B A", fix="train it with bias: none")
    if odd := [k for k in ("layer_replication", "target_parameters", "alora_invocation_tokens") if config.get(k)]:
        raise UsageError(f"{name} uses {odd[0]}", where=where, why="it is then no sum of B A on the base's own layers",
                         fix="compose adapters of plain LoRA")


def compose(parents: Sequence[Parent], out: Path, settings: Settings) -> dict:
    """Write the composed adapter into `out`, an empty directory that the caller publishes, and say what it is.

    A parent without a layer adds nothing to it; one of weight 0 adds nothing at all. Returns `{rank, layers, parameters, error,
    kept, overlap[[...]], lengths[...], vllm}`: `error` is the distance from the sum of w_i D_i over that sum's length, in
    Frobenius norms over all layers, None where that sum is 0; `kept` the share of the squared length that survived cutting to a
    rank, None without one; `overlap` the cosine of each pair of parents' updates, `lengths` those of w_i D_i.

    Raises:
        UsageError: fewer than two parents, the same twice, weights not finite or all 0, settings that its `how` does not read,
            quantised and not quantised bases, ranks that differ where factors are added, shapes that differ.
        AdapterError: a parent or the result is not finite, or the result does nothing.
    """
    import torch

    settings = settings.checked()
    _check(parents, settings)
    active = [p for p in parents if p.weight]
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    sums = _Sums([p.weight for p in parents])
    limit = settings.rank or max(r for p in active for r in (p.config["r"], *(p.config.get("rank_pattern") or {}).values()))
    with torch.no_grad():
        for layer in sorted(set().union(*(p.layers for p in parents))):
            found = {i: p.factors(layer) for i, p in enumerate(parents) if layer in p.layers}
            _same_shape(parents, layer, found)
            counted = {i: f for i, f in found.items() if parents[i].weight}
            if not counted:
                sums.add(found, None)
                continue
            a, b = _layer(parents, layer, counted, settings, limit, sums)
            if not (a.isfinite().all() and b.isfinite().all()):
                raise AdapterError("the composed adapter is not finite", where=layer, fix="give smaller weights")
            tensors[PREFIX + layer + A_END], tensors[PREFIX + layer + B_END] = a, b
            ranks[layer] = len(a)
            sums.add(found, (a.double(), b.double()))
    if sums.nothing(sums.composed):
        raise AdapterError("the composed adapter does nothing", where=", ".join(p.name for p in parents),
                           why="its update is zero: the parents cancel each other, or nothing of them is left",
                           fix="give other weights, or a higher density")
    config = _config(parents, ranks)
    write(out, config, tensors)
    if (quantised := parents[0].directory / QUANTISATION_FILE).is_file():
        shutil.copyfile(quantised, out / QUANTISATION_FILE)
    return {"rank": max(ranks.values()), "layers": len(ranks), "parameters": sum(t.numel() for t in tensors.values()),
            **sums.facts(), "vllm": vllm(config)}


def _check(parents: Sequence[Parent], settings: Settings) -> None:
    if len(parents) < 2:
        raise UsageError("there is nothing to compose", why=f"{len(parents)} adapter was given",
                         fix="give --adapter twice or more; to scale a single one, change its alpha")
    for i, parent in enumerate(parents):
        if not math.isfinite(parent.weight):
            raise UsageError(f"the weight of {parent.name} is {parent.weight}", fix="give a number, such as 0.5")
        if twin := next((p for p in parents[:i] if p.digest == parent.digest), None):
            raise UsageError(f"{parent.name} and {twin.name} are the same adapter", why="their tensors are the same bytes",
                             fix="give it once, with both weights added up")
    if not any(p.weight for p in parents):
        raise UsageError("every weight is 0", why="the composed adapter would do nothing",
                         fix="give at least one of them another weight")
    files = [p.directory / QUANTISATION_FILE for p in parents]
    kinds = [f.read_text(encoding="utf-8") if f.is_file() else None for f in files]
    if odd := next((i for i, kind in enumerate(kinds) if kind != kinds[0]), None):
        what = "are of bases that are quantised in different ways" if kinds[0] and kinds[odd] else \
            "are one of a quantised base and one of a whole base"
        raise UsageError(f"{parents[0].name} and {parents[odd].name} {what}", where=str(files[odd]),
                         why="each has learned to live with the rounding of its own base",
                         fix="train both with the same method")
    if odd := next((p for p in parents if p.config.get("fan_in_fan_out") != parents[0].config.get("fan_in_fan_out")), None):
        raise UsageError(f"{parents[0].name} and {odd.name} store their base's weights in different directions",
                         why="fan_in_fan_out differs", fix="compose adapters of one base")


def _same_shape(parents: Sequence[Parent], layer: str, found: dict) -> None:
    shapes = {i: (a.shape[1], b.shape[0]) for i, (a, b, _) in found.items()}
    first = next(iter(shapes))
    for i, shape in shapes.items():
        if shape != shapes[first]:
            raise UsageError(f"{parents[first].name} and {parents[i].name} are not of one base", where=layer,
                             why=f"this layer has {shapes[first]} inputs and outputs in one, {shape} in the other",
                             fix="compose adapters of one base")


def _layer(parents: Sequence[Parent], layer: str, found: dict, settings: Settings, limit: int,
           sums: _Sums) -> tuple[Tensor, Tensor]:
    """(A, B) of the composed layer, float32, with a scaling of 1. `found`: the factors of the parents that count here."""
    import torch

    rule = settings.rule

    def drop(i: int, what: str, tensor: Tensor) -> Tensor:
        return _dropped(tensor, settings.density, f"{settings.seed}/{parents[i].digest}/{layer}/{what}")

    if rule.on == "factors":
        ranks = {len(a) for a, _, _ in found.values()}
        if len(ranks) > 1:
            told = ", ".join(f"{parents[i].name} {len(a)}" for i, (a, _, _) in found.items())
            raise UsageError(f"--how {settings.how} needs adapters of one rank", where=layer, why=f"it adds A to A: {told}",
                             fix="use --how cat or svd, or train with the same rank")
        roots = {i: math.sqrt(abs(parents[i].weight * s)) for i, (_, _, s) in found.items()}
        signs = {i: math.copysign(1.0, parents[i].weight * s) for i, (_, _, s) in found.items()}
        a = combined([signs[i] * roots[i] * found[i][0] for i in found], settings, lambda n, t: drop(list(found)[n], "A", t))
        b = combined([roots[i] * found[i][1] for i in found], settings, lambda n, t: drop(list(found)[n], "B", t))
        return a.float(), b.float()
    a = torch.cat([parents[i].weight * s * a for i, (a, _, s) in found.items()])
    b = torch.cat([b for _, b, _ in found.values()], 1)
    if rule.on == "cat":
        return a.float(), b.float()
    if rule.on == "svd":
        (q_b, r_b), (q_a, r_a) = torch.linalg.qr(b), torch.linalg.qr(a.T)
        u, s, vt = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
        u, vt = q_b @ u, vt @ q_a.T
    else:
        deltas = [(parents[i].weight * s * (b @ a)).float() for i, (a, b, s) in found.items()]
        delta = combined(deltas, settings, lambda n, t: drop(list(found)[n], "BA", t))
        u, s, vt = torch.linalg.svd(delta, full_matrices=False)
    sums.cut(s, limit)
    root = s[:limit].sqrt()
    return (root[:, None] * vt[:limit]).float(), (u[:, :limit] * root).float()


def combined(tensors: list[Tensor], settings: Settings, drop) -> Tensor:
    """Weighted tensors of the parents, pruned, and added up or elected. `drop(n, tensor)`: pruned by chance."""
    rule = settings.rule
    if rule.prune == "magnitude":
        tensors = [_trimmed(t, settings.density) for t in tensors]
    elif rule.prune == "random":
        tensors = [drop(n, t) for n, t in enumerate(tensors)]
    return _elected(tensors, settings.sign) if rule.elect else sum(tensors[1:], tensors[0])


def _trimmed(tensor: Tensor, density: float) -> Tensor:
    """Its largest numbers by magnitude, at least one, and zeros."""
    if density == 1:
        return tensor
    import torch

    flat = tensor.flatten()
    kept = torch.topk(flat.abs(), max(1, int(density * len(flat)))).indices
    return torch.zeros_like(flat).index_copy(0, kept, flat[kept]).view_as(tensor)


def _dropped(tensor: Tensor, density: float, stream: str) -> Tensor:
    """Each number stays with probability `density`, and is divided by it; `stream` says which, on any machine."""
    import numpy as np
    import torch

    seed = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:16])
    kept = np.random.Generator(np.random.Philox(seed)).random(tuple(tensor.shape)) < density
    return tensor * torch.from_numpy(kept) / density


def _elected(tensors: list[Tensor], sign: str) -> Tensor:
    """The mean of the numbers that have the elected sign; 0 where none has, and where the vote is a draw."""
    import torch

    stacked = torch.stack(tensors)
    elected = (stacked if sign == "total" else stacked.sign()).sum(0).sign()
    agree = stacked.sign() == elected
    return (stacked * agree).sum(0) / agree.sum(0).clamp(min=1)


class _Sums:
    """Lengths and products of updates over all layers, from their factors: <B A, B' A'> = sum of (B^T B') * (A A'^T)."""

    def __init__(self, weights: list[float]):
        self.weights = weights
        self.grams = [[0.0] * len(weights) for _ in weights]
        """<D_i, D_j>"""
        self.composed = self.target = self.apart = self.left = self.whole = 0.0

    def add(self, found: dict, made: tuple[Tensor, Tensor] | None) -> None:
        """`found`: the parents' factors of one layer; `made`: the composed (A, B) in float64, None where there is none."""
        import torch

        updates = {i: (s * a, b) for i, (a, b, s) in found.items()}
        for i, update in updates.items():
            for j, other in updates.items():
                self.grams[i][j] += _product(update, other)
        if made is None:
            return
        whole = (torch.cat([self.weights[i] * a for i, (a, _) in updates.items()]),
                 torch.cat([b for _, b in updates.values()], 1))
        apart = torch.cat([made[0], -whole[0]]), torch.cat([made[1], whole[1]], 1)
        self.composed += _product(made, made)
        self.target += _product(whole, whole)
        self.apart += _product(apart, apart)

    def cut(self, values: Tensor, limit: int) -> None:
        """Singular values of what was cut to its `limit` largest."""
        self.left += float(values[:limit].square().sum())
        self.whole += float(values.square().sum())

    @property
    def lengths(self) -> list[float]:
        """Of w_i D_i."""
        return [abs(w) * math.sqrt(max(0.0, self.grams[i][i])) for i, w in enumerate(self.weights)]

    def nothing(self, squared: float) -> bool:
        """A squared length that is only rounding beside those of the parents."""
        return squared <= (NOTHING * sum(self.lengths)) ** 2

    def facts(self) -> dict:
        norms = [math.sqrt(max(0.0, g[i])) for i, g in enumerate(self.grams)]
        overlap = [[g / (norms[i] * norms[j]) if norms[i] and norms[j] else 0.0 for j, g in enumerate(row)]
                   for i, row in enumerate(self.grams)]
        return {"error": None if self.nothing(self.target) else math.sqrt(max(0.0, self.apart) / self.target),
                "kept": self.left / self.whole if self.whole else None, "overlap": overlap, "lengths": self.lengths}


def _product(x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor]) -> float:
    return float(((x[1].T @ y[1]) * (x[0] @ y[0].T)).sum())


def _config(parents: Sequence[Parent], ranks: dict[str, int]) -> dict:
    """adapter_config.json of a plain LoRA whose scaling is 1 in every layer.

    alpha is the rank and use_rslora is off: the scalings are in the tensors. Layers are named in full unless the parents named
    them alike, so that PEFT adapts those and no others.
    """
    first, rank = parents[0].config, max(ranks.values())
    names = [p.config.get("target_modules") for p in parents]
    alike = isinstance(names[0], list) and all(isinstance(n, list) and set(n) == set(names[0]) for n in names) and not any(
        p.config.get("layers_to_transform") is not None or p.config.get("exclude_modules") or p.layers != parents[0].layers
        for p in parents)
    other = {layer: r for layer, r in ranks.items() if r != rank}
    return first | {"r": rank, "lora_alpha": rank, "use_rslora": False, "rank_pattern": other, "alpha_pattern": dict(other),
                    "target_modules": sorted(names[0]) if alike else sorted(ranks), "layers_to_transform": None,
                    "layers_pattern": None, "exclude_modules": None, "lora_dropout": 0.0, "init_lora_weights": True,
                    "modules_to_save": None, "inference_mode": True}
