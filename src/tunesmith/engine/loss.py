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


class TokenLosses(torch.autograd.Function):
    """-log p(label) of each token, 0 where the label is IGNORE; and how many labels are the most likely word. ([N], count)

    What a token costs depends on its own hidden state alone, so the gradients of all tokens can be kept from the forward pass
    and each multiplied with what comes from above, whatever a loss makes of the tokens. A head that is trained is a sum over
    tokens: its gradient, and that of the hidden states with it, waits for what comes from above.
    """

    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, bias_V, labels_N):
        losses_N = torch.zeros(hidden_ND.shape[0], dtype=torch.float32, device=hidden_ND.device)
        hits = torch.zeros((), dtype=torch.int64, device=hidden_ND.device)
        ctx.head_is_trained = any(ctx.needs_input_grad[1:3])
        keeps = ctx.needs_input_grad[0] and not ctx.head_is_trained
        grad_ND = torch.empty_like(hidden_ND) if keeps else None
        for part in _chunks(hidden_ND):
            losses_N[part], hits_C, errors_CV = _scored(hidden_ND[part], weight_VD, bias_V, labels_N[part], keeps)
            hits += hits_C.sum()
            if keeps:
                torch.mm(errors_CV, weight_VD, out=grad_ND[part])
        ctx.save_for_backward(*(hidden_ND, weight_VD, bias_V, labels_N) if ctx.head_is_trained else (grad_ND,))
        ctx.mark_non_differentiable(hits)
        return losses_N, hits

    @staticmethod
    @once_differentiable
    def backward(ctx, above_N, _hits):
        if not ctx.head_is_trained:
            (grad_ND,) = ctx.saved_tensors
            return (grad_ND * above_N[:, None]).to(grad_ND.dtype), None, None, None
        hidden_ND, weight_VD, bias_V, labels_N = ctx.saved_tensors
        grad_ND, grad_VD = torch.empty_like(hidden_ND), torch.zeros_like(weight_VD)
        grad_V = None if bias_V is None else torch.zeros_like(bias_V)
        for part in _chunks(hidden_ND):
            _, _, errors_CV = _scored(hidden_ND[part], weight_VD, bias_V, labels_N[part], True)
            errors_CV *= above_N[part, None].to(errors_CV.dtype)
            torch.mm(errors_CV, weight_VD, out=grad_ND[part])
            grad_VD.addmm_(errors_CV.T, hidden_ND[part])
            if grad_V is not None:
                grad_V += errors_CV.sum(0)
        return grad_ND, grad_VD, grad_V, None


def _chunks(hidden_ND: torch.Tensor) -> list[slice]:
    return [slice(begin, begin + CHUNK_TOKENS) for begin in range(0, hidden_ND.shape[0], CHUNK_TOKENS)]


def _scored(hidden_CD, weight_VD, bias_V, labels_C, gradient: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(loss [C], hits [C], and with `gradient` softmax - onehot [C, V], 0 where there is no label) of a chunk."""
    logits_CV = hidden_CD @ weight_VD.T
    if library := library_for(logits_CV):
        if bias_V is not None:
            logits_CV += bias_V
        return *cross_entropy(library, logits_CV, labels_C, gradient), logits_CV
    logits_CV = logits_CV.float()
    if bias_V is not None:
        logits_CV += bias_V.float()
    hits_C = logits_CV.argmax(-1) == labels_C
    logp_CV = logits_CV.log_softmax(-1)
    real_C, words_C = labels_C != IGNORE, labels_C.clamp(min=0)
    losses_C = -logp_CV.gather(1, words_C[:, None]).squeeze(1) * real_C
    if not gradient:
        return losses_C, hits_C, None
    p_CV = logp_CV.exp_()
    p_CV[torch.arange(labels_C.shape[0], device=p_CV.device), words_C] -= 1.0
    p_CV[~real_C] = 0.0
    return losses_C, hits_C, p_CV.to(weight_VD.dtype)


def labelled_positions(labels_T: torch.Tensor) -> torch.Tensor:
    """Indices of the tokens whose *next* token is a label. `labels_T` is already shifted by `data.pack`."""
    return (labels_T != IGNORE).nonzero().squeeze(1)


def chunked_loss(hidden_TD: torch.Tensor, head: nn.Linear, labels_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(summed loss, count of tokens whose most likely word was the label). `labels_T` is aligned with `hidden_TD`.

    Positions without a label fill the last chunk up, as far as there are any.
    """
    losses_N, hits = labelled_losses(hidden_TD, head, labels_T)
    return losses_N.sum(), hits


def labelled_losses(hidden_TD: torch.Tensor, head: nn.Linear, labels_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(-log p of each label in order, then zeros; count of hits), with gradients, as `chunked_loss`."""
    where = labelled_positions(labels_T)
    where = torch.cat([where, (labels_T == IGNORE).nonzero().squeeze(1)[: -len(where) % GRAIN]])
    return TokenLosses.apply(hidden_TD.index_select(0, where), head.weight, head.bias, labels_T[where])


def token_losses(hidden_ND: torch.Tensor, head: nn.Linear, labels_N: torch.Tensor) -> torch.Tensor:
    """-log p of each label in nats, [N], without gradients."""
    found = [torch.zeros(0, device=hidden_ND.device)]
    for begin in range(0, hidden_ND.shape[0], CHUNK_TOKENS):
        part = slice(begin, begin + CHUNK_TOKENS)
        found.append(nn.functional.cross_entropy(head(hidden_ND[part]).float(), labels_N[part], reduction="none"))
    return torch.cat(found)
