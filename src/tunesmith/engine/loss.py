"""Cross-entropy straight from hidden states, only where there is a label, a few hundred tokens at a time.

Shapes: N = labelled tokens, D = hidden size, V = vocabulary, C = tokens in a chunk.
The full logits of a pack (T x V floats) are never made: with 49,152 words and 2,048 tokens they would be 400 MB,
twice. The gradient of the hidden states is computed chunk by chunk in the forward pass, while the chunk's logits are at
hand, and with it that of the head, where the head is trained (full fine-tuning).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from tunesmith.engine.native.build import library_for
from tunesmith.engine.native.functions import cross_entropy

IGNORE = -100
CHUNK_TOKENS = 256
GRAIN = 64
"""Packs and chunks are filled up to a multiple of this many tokens: tensors of ever new sizes leave the heap in pieces, and
the resident set grows with every step (docs/measurements.md)."""


class ChunkedCrossEntropy(torch.autograd.Function):
    """Sum over labelled tokens of -log p(label), 0 where the label is IGNORE. Returns (sum, count of argmax hits)."""

    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, bias_V, labels_N):
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        hits = torch.zeros((), dtype=torch.int64, device=hidden_ND.device)
        needs_grad = any(ctx.needs_input_grad)
        grad_VD = torch.zeros_like(weight_VD) if ctx.needs_input_grad[1] else None
        grad_V = torch.zeros_like(bias_V) if ctx.needs_input_grad[2] else None
        grad_ND = torch.empty_like(hidden_ND) if needs_grad else None
        for begin in range(0, hidden_ND.shape[0], CHUNK_TOKENS):
            part = slice(begin, begin + CHUNK_TOKENS)
            labels_C = labels_N[part]
            logits_CV = hidden_ND[part] @ weight_VD.T
            if library := library_for(logits_CV):
                if bias_V is not None:
                    logits_CV += bias_V
                loss_C, hits_C = cross_entropy(library, logits_CV, labels_C, needs_grad)
                total += loss_C.sum()
                hits += hits_C.sum()
                if needs_grad:
                    torch.mm(logits_CV, weight_VD, out=grad_ND[part])
                    _add_head(grad_VD, grad_V, logits_CV, hidden_ND[part])
                continue
            logits_CV = logits_CV.float()
            if bias_V is not None:
                logits_CV += bias_V.float()
            hits += (logits_CV.argmax(-1) == labels_C).sum()
            logp_CV = logits_CV.log_softmax(-1)
            real_C = labels_C != IGNORE
            words_C = labels_C.clamp(min=0)
            total -= (logp_CV.gather(1, words_C[:, None]).squeeze(1) * real_C).sum()
            if needs_grad:
                p_CV = logp_CV.exp_()
                p_CV[torch.arange(labels_C.shape[0], device=p_CV.device), words_C] -= 1.0
                p_CV[~real_C] = 0.0
                p_CV = p_CV.to(weight_VD.dtype)
                grad_ND[part] = p_CV @ weight_VD
                _add_head(grad_VD, grad_V, p_CV, hidden_ND[part])
        ctx.grads = grad_ND, grad_VD, grad_V
        ctx.mark_non_differentiable(hits)
        return total, hits

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_total, _grad_hits):
        return (*(g if g is None else g * grad_total.to(g.dtype) for g in ctx.grads), None)


def _add_head(grad_VD: torch.Tensor | None, grad_V: torch.Tensor | None, p_CV: torch.Tensor, hidden_CD: torch.Tensor) -> None:
    """The part of the head's gradient that comes from one chunk."""
    if grad_VD is not None:
        grad_VD.addmm_(p_CV.T, hidden_CD)
    if grad_V is not None:
        grad_V.add_(p_CV.sum(0))


def labelled_positions(labels_T: torch.Tensor) -> torch.Tensor:
    """Indices of the tokens whose *next* token is a label. `labels_T` is already shifted by `data.pack`."""
    return (labels_T != IGNORE).nonzero().squeeze(1)


def chunked_loss(hidden_TD: torch.Tensor, head: nn.Linear, labels_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(summed loss, count of tokens whose most likely word was the label). `labels_T` is aligned with `hidden_TD`.

    Positions without a label fill the last chunk up, as far as there are any.
    """
    where = labelled_positions(labels_T)
    where = torch.cat([where, (labels_T == IGNORE).nonzero().squeeze(1)[: -len(where) % GRAIN]])
    return ChunkedCrossEntropy.apply(hidden_TD.index_select(0, where), head.weight, head.bias, labels_T[where])


def token_losses(hidden_ND: torch.Tensor, head: nn.Linear, labels_N: torch.Tensor) -> torch.Tensor:
    """-log p of each label in nats, [N], without gradients."""
    found = [torch.zeros(0, device=hidden_ND.device)]
    for begin in range(0, hidden_ND.shape[0], CHUNK_TOKENS):
        part = slice(begin, begin + CHUNK_TOKENS)
        found.append(nn.functional.cross_entropy(head(hidden_ND[part]).float(), labels_N[part], reduction="none"))
    return torch.cat(found)
