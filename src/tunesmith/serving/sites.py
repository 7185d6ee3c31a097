"""Where adapters meet the base: its linear layers and the places of bottlenecks, told which tokens are whose.

    bounds   0          3       4                9       tokens of a step, one behind the other
             |  mix 0   | mix 1 |     mix 2      |       segments: each has a mix of adapters, () is the base

Inside of `segments` token t of every call belongs to its segment, and a layer computes, for all of them at once, W x + b, and
for each segment what its adapters make of it (serving.adapters has the formulas). Outside of it the base is alone.

With a library of kernels the weight of a layer is laid out for them *instead of* the layer's own, and the layers' low-rank
parts are computed in the same call. Without one, on a GPU say, torch's operations do the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tunesmith.methods.targets import decoder_layers
from tunesmith.serving.adapters import PACKED, Adapter, Mix, check_mix, linear_sites

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from tunesmith.engine.native.build import Library
    from tunesmith.engine.native.decode import Parts
    from tunesmith.methods.bottleneck import Block

SEQUENCES = 64
"""Sequences of mixes that are remembered: between two steps most often none changes."""


@dataclass(slots=True)
class _Plan:
    """What the segments of a sequence of mixes do at one site, by the segment's number."""

    low_rank: list[tuple[int, Tensor, Tensor, float]] = field(default_factory=list)
    """A, B and how much of B A x (torch)."""
    parts: Parts | None = None
    """The same (kernels)."""
    inputs: list[tuple[int, Tensor]] = field(default_factory=list)
    magnitudes: list[tuple[int, Tensor]] = field(default_factory=list)
    outputs: list[tuple[int, Tensor]] = field(default_factory=list)


@dataclass(slots=True)
class _Sequence:
    """Segments' mixes, and what has been worked out for them."""

    mixes: tuple[Mix, ...]
    plans: dict[str, _Plan] = field(default_factory=dict)
    blocks: dict[str, list[tuple[int, Block]]] = field(default_factory=dict)


@dataclass(slots=True)
class _Now:
    """The step that is computed."""

    bounds: list[int]
    bounds_S1: Tensor
    sequence: _Sequence


class Sites:
    """The linear layers inside of a base's decoder layers, changed in place. For one thread at a time."""

    def __init__(self, model: PreTrainedModel, library: Library | None = None):
        """`library`: the kernels of the model's dtype. The model's weights move to their layout, and its layers hold none.

        Raises:
            RecipeError: the decoder layers of this architecture cannot be told.
        """
        from tunesmith.methods.bottleneck import PLACES

        self._library = library
        self._now: _Now | None = None
        self._sequences: OrderedDict[tuple[Mix, ...], _Sequence] = OrderedDict()
        for name, module in linear_sites(model).items():
            module.forward = self._by_torch(name, module) if library is None else self._by_kernel(name, module)
        name, layers = decoder_layers(model)
        of_blocks = {child for children in PLACES.values() for child in children}
        for number, layer in enumerate(layers):
            for child, module in layer.named_children():
                if child in of_blocks:
                    module.register_forward_hook(self._behind(f"{name}.{number}.{child}"))

    @contextmanager
    def segments(self, bounds: Sequence[int], mixes: Sequence[Mix]) -> Iterator[None]:
        """Inside, tokens bounds[i] to bounds[i + 1] of every call, its leading dimensions flattened, are of mixes[i].

        Raises:
            ValueError: the bounds are not those of so many segments; and inside, a call has other tokens.
            UsageError: a mix cannot be used (`adapters.check_mix`).
        """
        import torch

        bounds = list(bounds)
        if len(bounds) != len(mixes) + 1 or bounds[0] != 0 or any(b > e for b, e in zip(bounds, bounds[1:], strict=False)):
            raise ValueError(f"bounds {bounds} for {len(mixes)} segments")
        before, self._now = self._now, _Now(bounds, torch.tensor(bounds), self._sequence(tuple(mixes)))
        try:
            yield
        finally:
            self._now = before

    def forget(self, adapter: Adapter) -> None:
        """Let go of an adapter that leaves memory."""
        for mixes in [m for m in self._sequences if any(a is adapter for mix in m for a, _ in mix)]:
            del self._sequences[mixes]

    def _sequence(self, mixes: tuple[Mix, ...]) -> _Sequence:
        found = self._sequences.get(mixes)
        if found is None:
            for mix in mixes:
                check_mix(mix)
            found = self._sequences[mixes] = _Sequence(mixes)
            while len(self._sequences) > SEQUENCES:
                self._sequences.popitem(last=False)
        self._sequences.move_to_end(mixes)
        return found

    # ---- linear layers ----------------------------------------------------------------------------------------------

    def _by_torch(self, name: str, module: nn.Linear):
        from torch.nn import functional as F

        original = module.forward

        def forward(x: Tensor) -> Tensor:
            now = self._now
            if now is None:
                return original(x)
            x_TC, plan = self._rows(x, now), self._plan(name, now.sequence)
            x_TC = _scaled(x_TC, plan.inputs, now.bounds)
            y_TN = F.linear(x_TC, module.weight, module.bias)
            for at, a_RC, b_NR, scale in plan.low_rank:
                tokens = slice(now.bounds[at], now.bounds[at + 1])
                y_TN[tokens].addmm_(F.linear(x_TC[tokens], a_RC), b_NR.t(), alpha=scale)
            _finished(y_TN, plan, now.bounds, module.bias)
            return y_TN.view(*x.shape[:-1], module.out_features)

        return forward

    def _by_kernel(self, name: str, module: nn.Linear):
        import torch

        from tunesmith.engine.native.decode import Packed, linear

        library, packed, nobody = self._library, Packed(self._library, module.weight), torch.zeros(1, dtype=torch.int64)
        module.weight = torch.nn.Parameter(module.weight.new_empty(0, module.in_features), requires_grad=False)
        setattr(module, PACKED, packed)

        def forward(x: Tensor) -> Tensor:
            now = self._now
            if now is None:
                y_TN = linear(library, x.reshape(-1, x.shape[-1]), packed, module.bias, nobody, None)
                return y_TN.view(*x.shape[:-1], module.out_features)
            x_TC, plan = self._rows(x, now), self._plan(name, now.sequence)
            x_TC = _scaled(x_TC, plan.inputs, now.bounds)
            y_TN = linear(library, x_TC, packed, module.bias, now.bounds_S1, plan.parts)
            _finished(y_TN, plan, now.bounds, module.bias)
            return y_TN.view(*x.shape[:-1], module.out_features)

        return forward

    def _rows(self, x: Tensor, now: _Now) -> Tensor:
        x_TC = x.reshape(-1, x.shape[-1])
        if len(x_TC) != now.bounds[-1]:
            raise ValueError(f"{len(x_TC)} tokens, and segments of {now.bounds[-1]}")
        return x_TC

    def _plan(self, name: str, sequence: _Sequence) -> _Plan:
        plan = sequence.plans.get(name)
        if plan is not None:
            return plan
        plan = sequence.plans[name] = _Plan()
        packed = []
        for at, mix in enumerate(sequence.mixes):
            for adapter, weight in mix:
                if (of := adapter.factors.get(name)) is not None and of.packed is not None:
                    packed.append((at, of.packed, of.scale * weight))
                elif of is not None:
                    plan.low_rank.append((at, of.a_RC, of.b_NR, of.scale * weight))
                for here, vectors in ((plan.inputs, adapter.inputs), (plan.magnitudes, adapter.magnitudes),
                                      (plan.outputs, adapter.outputs)):
                    if name in vectors:
                        here.append((at, vectors[name]))
        if packed:
            from tunesmith.engine.native.decode import parts

            plan.parts = parts(packed)
        return plan

    # ---- bottlenecks ------------------------------------------------------------------------------------------------

    def _behind(self, name: str):
        from tunesmith.methods.bottleneck import changed

        def hook(_module, _args, output):
            now = self._now
            if now is None:
                return None
            blocks = now.sequence.blocks.get(name)
            if blocks is None:
                blocks = now.sequence.blocks[name] = [(at, adapter.blocks[name]) for at, mix in enumerate(now.sequence.mixes)
                                                      for adapter, _ in mix if name in adapter.blocks]
            if not blocks:
                return None

            def through(h: Tensor) -> Tensor:
                h_Td = self._rows(h, now).clone()
                for at, block in blocks:
                    tokens = slice(now.bounds[at], now.bounds[at + 1])
                    h_Td[tokens] = block(h_Td[tokens])
                return h_Td.view(h.shape)

            return changed(output, through)

        return hook


def _scaled(x_TC: Tensor, factors: list[tuple[int, Tensor]], bounds: list[int]) -> Tensor:
    """Segments' tokens times their factors, in float32, in a copy."""
    if not factors:
        return x_TC
    x_TC = x_TC.clone()
    for at, factor in factors:
        tokens = slice(bounds[at], bounds[at + 1])
        x_TC[tokens] = x_TC[tokens] * factor
    return x_TC


def _finished(y_TN: Tensor, plan: _Plan, bounds: list[int], bias_N: Tensor | None) -> None:
    """What follows W x + b + s B A x, in float32, in place: DoRA's lengths, which leave the bias alone, and IA3's factors."""
    for at, ratio_N in plan.magnitudes:
        tokens = slice(bounds[at], bounds[at + 1])
        y_TN[tokens] = y_TN[tokens] * ratio_N if bias_N is None else (y_TN[tokens] - bias_N.float()) * ratio_N + bias_N.float()
    for at, factor_N in plan.outputs:
        tokens = slice(bounds[at], bounds[at + 1])
        y_TN[tokens] = y_TN[tokens] * factor_N
