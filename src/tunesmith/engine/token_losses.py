"""The loss of each labelled token as a number of its own, with gradients: for losses of whole answers.

Shapes: N = labelled tokens, D = hidden size, V = vocabulary, C = tokens in a chunk.
As in `loss`, the full logits are never made. What a token costs depends on its own hidden state alone, so the gradients of all
hidden states are kept from the forward pass, and each is multiplied with what comes from above, whatever a loss makes of the
tokens. The gradient of a trained head is a sum over tokens, so it has to wait for that: its chunks are computed again.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from tunesmith.engine.loss import CHUNK_TOKENS, GRAIN, IGNORE, labelled_positions
from tunesmith.engine.native.build import library_for
from tunesmith.engine.native.functions import cross_entropy


class TokenLosses(torch.autograd.Function):
    """-log p(label) of each token, [N] in nats, 0 where the label is IGNORE."""

    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, bias_V, labels_N):
        losses_N = torch.zeros(hidden_ND.shape[0], dtype=torch.float32, device=hidden_ND.device)
        grad_ND = torch.empty_like(hidden_ND) if any(ctx.needs_input_grad) else None
        for part in _chunks(hidden_ND):
            losses_N[part], slope_CV = _chunk(hidden_ND[part], weight_VD, bias_V, labels_N[part], grad_ND is not None)
            if grad_ND is not None:
                torch.mm(slope_CV, weight_VD, out=grad_ND[part])
        ctx.save_for_backward(grad_ND, *((hidden_ND, weight_VD, bias_V, labels_N) if any(ctx.needs_input_grad[1:3]) else ()))
        return losses_N

    @staticmethod
    @once_differentiable
    def backward(ctx, above_N):
        grad_ND, *again = ctx.saved_tensors
        grad_VD = grad_V = None
        if again:
            hidden_ND, weight_VD, bias_V, labels_N = again
            grad_VD = torch.zeros_like(weight_VD) if ctx.needs_input_grad[1] else None
            grad_V = torch.zeros_like(bias_V) if ctx.needs_input_grad[2] else None
            for part in _chunks(hidden_ND):
                _, slope_CV = _chunk(hidden_ND[part], weight_VD, bias_V, labels_N[part], True)
                slope_CV = (slope_CV * above_N[part, None]).to(slope_CV.dtype)
                if grad_VD is not None:
                    grad_VD.addmm_(slope_CV.T, hidden_ND[part])
                if grad_V is not None:
                    grad_V.add_(slope_CV.sum(0))
        return (grad_ND * above_N[:, None]).to(grad_ND.dtype), grad_VD, grad_V, None


def _chunks(hidden_ND: torch.Tensor) -> list[slice]:
    return [slice(begin, begin + CHUNK_TOKENS) for begin in range(0, hidden_ND.shape[0], CHUNK_TOKENS)]


def _chunk(hidden_CD, weight_VD, bias_V, labels_C, slope: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(losses [C], their slopes by the logits [C, V] in the weight's dtype)."""
    logits_CV = hidden_CD @ weight_VD.T
    if library := library_for(logits_CV):
        if bias_V is not None:
            logits_CV += bias_V
        return cross_entropy(library, logits_CV, labels_C, slope)[0], logits_CV
    logits_CV = logits_CV.float()
    if bias_V is not None:
        logits_CV += bias_V.float()
    logp_CV, real_C, words_C1 = logits_CV.log_softmax(-1), labels_C != IGNORE, labels_C.clamp(min=0)[:, None]
    losses_C = -logp_CV.gather(1, words_C1).squeeze(1) * real_C
    if not slope:
        return losses_C, None
    slope_CV = logp_CV.exp_().scatter_add_(1, words_C1, -torch.ones_like(words_C1, dtype=logp_CV.dtype))
    slope_CV[~real_C] = 0.0
    return losses_C, slope_CV.to(weight_VD.dtype)


def labelled_losses(hidden_TD: torch.Tensor, head: nn.Linear, labels_T: torch.Tensor) -> torch.Tensor:
    """-log p of each label in order, then zeros of the tokens that fill the last chunk up, as in `loss.chunked_loss`."""
    where = filled_up(labels_T)
    return TokenLosses.apply(hidden_TD.index_select(0, where), head.weight, head.bias, labels_T[where])


def filled_up(labels_T: torch.Tensor) -> torch.Tensor:
    """Where the labels are, and then as many places without one as make a round number, if there are so many."""
    where = labelled_positions(labels_T)
    return torch.cat([where, (labels_T == IGNORE).nonzero().squeeze(1)[: -len(where) % GRAIN]])
