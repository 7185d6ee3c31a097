"""What a token costs a student against its teacher's most likely words and against its label, chunk by chunk.

Shapes: N = labelled tokens, D = hidden size, V = vocabulary, K = words kept of the teacher, C = tokens in a chunk.
The V words of a token fall into K + 1 buckets: the teacher's K most likely ones, and all others as one. With P and Q the
teacher's and the student's probabilities of the buckets at temperature T, and q_j the student's of word j,

    forward   KL = sum P log(P / Q)        dKL/dz_j = q_j - P_j; in the tail q_j (1 - P_tail / Q_tail)
    reverse   KL = sum Q log(Q / P)        dKL/dz_j = q_j (log(Q_b / P_b) - KL), b the bucket of j
    loss      alpha T^2 KL + (1 - alpha) (-log p(label) at temperature 1),     z = logits / T   (arXiv 1503.02531)

With K = V there is no tail, and the KL is that of the whole distributions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from tunesmith.engine import fast, plain
from tunesmith.engine.loss import IGNORE
from tunesmith.engine.native import build
from tunesmith.engine.token_losses import filled_up

CHUNK_TOKENS = 128
RAREST = -80.0
"""Log of the least that all other words of a teacher are taken to have together: a reverse KL divides by it."""
Row = tuple[list[int], list[int]]


@dataclass(frozen=True, slots=True)
class Settings:
    temperature: float
    alpha: float
    """Share of the teacher in the loss; the rest is the label's."""
    kl: Literal["forward", "reverse"]


def most_likely(logits_NV: torch.Tensor, count: int, temperature: float, words: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(words [N, K], their log p and at last that of all others together [N, K + 1]) at a temperature.

    `words`: how many a student has; more of the teacher's do not count. With K of them all the last column is -inf.
    """
    logp_NV = (logits_NV.float()[:, :words] / temperature).log_softmax(-1)
    top_NK, words_NK = logp_NV.topk(min(count, logp_NV.shape[1]), dim=-1)
    tail_N1 = _tail(logp_NV, words_NK)
    return words_NK, torch.cat([top_NK, tail_N1 if words_NK.shape[1] == words else tail_N1.clamp(min=RAREST)], -1)


def _tail(logp_NV: torch.Tensor, words_NK: torch.Tensor) -> torch.Tensor:
    """Log p of all words but these; -inf where there is none."""
    return logp_NV.scatter(1, words_NK, -torch.inf).logsumexp(-1, keepdim=True)


class Distances(torch.autograd.Function):
    """(loss [N], KL [N], -log p(label) [N], hits); only the loss has a gradient, kept as in `token_losses`."""

    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, bias_V, labels_N, words_NK, logps_NK1, settings: Settings):
        loss_N, kl_N, ce_N = (torch.zeros(len(labels_N), device=hidden_ND.device) for _ in range(3))
        hits = torch.zeros((), dtype=torch.int64, device=hidden_ND.device)
        grad_ND = torch.empty_like(hidden_ND) if any(ctx.needs_input_grad) else None
        given = hidden_ND, weight_VD, bias_V, labels_N, words_NK, logps_NK1
        for part in _chunks(labels_N):
            loss_N[part], kl_N[part], ce_N[part], right, slope_CV = _chunk(part, *given, settings, grad_ND is not None)
            hits += right
            if grad_ND is not None:
                torch.mm(slope_CV, weight_VD, out=grad_ND[part])
        ctx.save_for_backward(grad_ND, *(given if any(ctx.needs_input_grad[1:3]) else ()))
        ctx.settings = settings
        ctx.mark_non_differentiable(kl_N, ce_N, hits)
        return loss_N, kl_N, ce_N, hits

    @staticmethod
    @once_differentiable
    def backward(ctx, above_N, *_others):
        grad_ND, *given = ctx.saved_tensors
        grad_VD = grad_V = None
        if given:  # a trained head: its chunks are computed again
            grad_VD = torch.zeros_like(given[1]) if ctx.needs_input_grad[1] else None
            grad_V = torch.zeros_like(given[2]) if ctx.needs_input_grad[2] else None
            for part in _chunks(given[3]):
                slope_CV = _chunk(part, *given, ctx.settings, True)[-1]
                slope_CV = (slope_CV * above_N[part, None]).to(slope_CV.dtype)
                if grad_VD is not None:
                    grad_VD.addmm_(slope_CV.T, given[0][part])
                if grad_V is not None:
                    grad_V.add_(slope_CV.sum(0))
        return (grad_ND * above_N[:, None]).to(grad_ND.dtype), grad_VD, grad_V, *[None] * 4


def _chunks(labels_N: torch.Tensor) -> list[slice]:
    return [slice(begin, begin + CHUNK_TOKENS) for begin in range(0, len(labels_N), CHUNK_TOKENS)]


def _chunk(part: slice, hidden_ND, weight_VD, bias_V, labels_N, words_NK, logps_NK1, settings: Settings, slope: bool) -> tuple:
    """(loss [C], KL [C], -log p(label) [C], hits, slope of the loss by the logits [C, V] in the weight's dtype)."""
    logits_CV = (hidden_ND[part] @ weight_VD.T).float()
    if bias_V is not None:
        logits_CV += bias_V.float()
    labels_C, alpha, t = labels_N[part], settings.alpha, settings.temperature
    real_C, label_C1 = labels_C != IGNORE, labels_C.clamp(min=0)[:, None]
    hits = (logits_CV.argmax(-1) == labels_C).sum()
    kl_C, slope_CV = _divergence(logits_CV / t, words_NK[part], logps_NK1[part], settings.kl == "reverse")
    logp_CV = logits_CV.log_softmax(-1)
    ce_C, kl_C = -logp_CV.gather(1, label_C1).squeeze(1) * real_C, kl_C * real_C
    loss_C = alpha * t**2 * kl_C + (1 - alpha) * ce_C
    if not slope:
        return loss_C, kl_C, ce_C, hits, None
    p_CV = logp_CV.exp_().scatter_add_(1, label_C1, -torch.ones_like(label_C1, dtype=torch.float32))
    slope_CV.mul_(alpha * t).add_(p_CV, alpha=1 - alpha)  # t^2 of the loss, 1 / t of z
    slope_CV[~real_C] = 0.0
    return loss_C, kl_C, ce_C, hits, slope_CV.to(weight_VD.dtype)


def _divergence(z_CV: torch.Tensor, words_CK: torch.Tensor, logps_CK1: torch.Tensor,
                reverse: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(KL [C], its slope by z [C, V])."""
    logq_CV = z_CV.log_softmax(-1)
    logq_CK1 = torch.cat([logq_CV.gather(1, words_CK), _tail(logq_CV, words_CK)], -1)
    gap_CK1 = torch.where(logps_CK1.isfinite() & logq_CK1.isfinite(), logq_CK1 - logps_CK1, 0.0)
    q_CV = logq_CV.exp_()
    if reverse:
        kl_C = (logq_CK1.exp() * gap_CK1).sum(-1)
        slope_CV = q_CV * (gap_CK1[:, -1:] - kl_C[:, None])
        return kl_C, slope_CV.scatter_(1, words_CK, q_CV.gather(1, words_CK) * (gap_CK1[:, :-1] - kl_C[:, None]))
    p_CK1 = logps_CK1.exp()
    kl_C = -(p_CK1 * gap_CK1).sum(-1)
    slope_CV = q_CV * (1 - torch.exp(-gap_CK1[:, -1:]))
    return kl_C, slope_CV.scatter_(1, words_CK, q_CV.gather(1, words_CK) - p_CK1[:, :-1])


def fast_distances(model, rows: list[Row], words_NK: torch.Tensor, logps_NK1: torch.Tensor, settings: Settings):
    """(loss [N], KL [N], -log p(label) [N], hits) of a pack of `(tokens, shifted labels)` rows on the fast path."""
    hidden_TD, labels_T = fast._hidden(model, rows)
    where, head = filled_up(labels_T), model.get_base_model().get_output_embeddings()
    words_NK, logps_NK1 = words_NK.to(labels_T.device), logps_NK1.to(labels_T.device)
    short = len(where) - len(words_NK)
    words_NK = torch.cat([words_NK, words_NK[:1].expand(short, -1)])
    logps_NK1 = torch.cat([logps_NK1, logps_NK1[:1].expand(short, -1)])
    with build.used():
        return Distances.apply(hidden_TD.index_select(0, where), head.weight, head.bias, labels_T[where], words_NK, logps_NK1,
                               settings)


def plain_distances(model, rows: list[Row], words_NK: torch.Tensor, logps_NK1: torch.Tensor, settings: Settings):
    """The same from the whole logits, with torch's own gradients."""
    logits_NV, labels_N = _labelled_logits(model, rows)
    words_NK, logps_NK1 = words_NK.to(labels_N.device), logps_NK1.to(labels_N.device)
    ce_N = nn.functional.cross_entropy(logits_NV, labels_N, reduction="none")
    logq_NV = (logits_NV / settings.temperature).log_softmax(-1)
    logq_NK1, logp_NK1 = logq_NV.gather(1, words_NK), logps_NK1[:, :-1]
    if words_NK.shape[1] < logq_NV.shape[1]:
        logq_NK1, logp_NK1 = torch.cat([logq_NK1, _tail(logq_NV, words_NK)], -1), logps_NK1
    before, after = (logq_NK1, logp_NK1) if settings.kl == "reverse" else (logp_NK1, logq_NK1)
    kl_N = (before.exp() * (before - after)).sum(-1)
    loss_N = settings.alpha * settings.temperature**2 * kl_N + (1 - settings.alpha) * ce_N
    return loss_N, kl_N.detach(), ce_N.detach(), (logits_NV.argmax(-1) == labels_N).sum()


def _labelled_logits(model, rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    logits_BLV, labels_BL = plain._logits(model, rows)
    real_BL = labels_BL != IGNORE
    return logits_BLV[real_BL].float(), labels_BL[real_BL]


def teach(model, rows: list[Row], count: int, temperature: float, words: int, engine: str) -> list[tuple]:
    """`most_likely` of a teacher at each label of each row, without gradients: one (words, logps) a row."""
    with torch.inference_mode():
        if engine == "plain":
            found = [most_likely(_labelled_logits(model, rows)[0], count, temperature, words)]
        else:
            hidden_TD, labels_T = fast._hidden(model, rows)
            where, head = (labels_T != IGNORE).nonzero().squeeze(1), model.get_base_model().get_output_embeddings()
            found = [most_likely(head(hidden_TD[part]), count, temperature, words) for part in where.split(CHUNK_TOKENS)]
        counts = [sum(label != IGNORE for label in labels) for _, labels in rows]
        return list(zip(*(torch.cat(column).split(counts) for column in zip(*found, strict=True)), strict=True))
