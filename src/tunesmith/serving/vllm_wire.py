"""A request as vLLM's /v1/completions takes it, and its answer as our tokens. Pure: nothing is sent here.

What is not the same as in `serving.sampling`, and cannot be told vLLM:

    a ban                       a bias of -100, where ours is -10 000: a logit that is 100 above all others would pass
    bias beside a penalty       vLLM adds biases before it penalises, we do it after
    a draw                      other random numbers: a seed gives the same answer of the same engine
"""

from __future__ import annotations

from typing import Any

from tunesmith.errors import UsageError
from tunesmith.serving.answer import Token
from tunesmith.serving.grammar import GrammarError
from tunesmith.serving.logprobs import Scored
from tunesmith.serving.sampling import Request
from tunesmith.serving.vllm_process import VllmError

TOP = 20
"""Likely tokens that are named in a token's place, at most: vLLM's --max-logprobs, and OpenAI's limit."""
TOKEN_ID = "token_id:"
"""How vLLM writes a token in log-probabilities with `return_tokens_as_token_ids`."""


def body(request: Request, stop_ids: frozenset[int], model: str, vocabulary: int) -> dict[str, Any]:
    """The JSON of a request. A prompt that is to be scored is asked for at once: vLLM streams no scores of prompts.

    Raises:
        UsageError: vLLM cannot be asked for this.
    """
    r = request
    if (r.logprobs or 0) > TOP:
        raise UsageError(f"vLLM names at most {TOP} likely tokens", why=f"{r.logprobs} are asked for")
    scored_prompt = r.echo and r.logprobs is not None and len(r.prompt) > 1  # nothing predicts a first token
    made: dict[str, Any] = {
        "model": model, "prompt": r.prompt, "max_tokens": max(r.max_new_tokens, 1), "stream": not scored_prompt,
        "return_token_ids": True, "return_tokens_as_token_ids": True, "skip_special_tokens": False,
        "temperature": r.temperature, "top_p": r.top_p, "top_k": r.top_k, "min_p": r.min_p,
        "frequency_penalty": r.frequency_penalty, "presence_penalty": r.presence_penalty,
        "repetition_penalty": r.repetition_penalty, "min_tokens": r.min_tokens if r.max_new_tokens else 0,
        "stop_token_ids": [] if r.ignore_stop else sorted(stop_ids),
        "ignore_eos": r.grammar is None,  # its own idea of an end may be another than the template's
    }
    if r.seed is not None:
        made["seed"] = r.seed % 2**63
    if bias := {str(token): max(-100.0, min(100.0, b)) for token, b in r.logit_bias.items() if token < vocabulary}:
        made["logit_bias"] = bias
    if r.logprobs is not None:
        made["logprobs"] = r.logprobs
    if scored_prompt:
        made["prompt_logprobs"] = r.logprobs
    if r.grammar is not None:
        if r.grammar.lark is None:
            raise UsageError("vLLM cannot be told this form", why="its grammar has no source",
                             fix="serve with --engine tunesmith")
        if r.ignore_stop:
            raise UsageError("`ignore_stop` does not go with an answer that is held to a form")
        made["structured_outputs"] = {"grammar": r.grammar.lark}
    return made


class Reader:
    """Tokens of one answer, from the choices of vLLM's chunks."""

    def __init__(self, request: Request, stop_ids: frozenset[int]):
        self._request, self._stop_ids = request, stop_ids
        self._form = request.grammar.begin() if request.grammar else None
        self._echoed = not (request.echo and request.logprobs is not None)
        self.finished = False

    def read(self, choice: dict) -> list[Token]:
        """Raises VllmError for what is no answer."""
        request, finish = self._request, choice.get("finish_reason")
        if finish not in (None, "stop", "length"):
            raise VllmError("vLLM broke the answer off", why=f"finish_reason {finish}")
        before = () if self._echoed else _of_prompt(choice, request)
        self._echoed = True
        if not request.max_new_tokens:
            self.finished = True
            return [Token(0, None, "length", before)]
        ids = choice.get("token_ids") or []
        scores = _scores(choice.get("logprobs"), request.logprobs, len(ids))
        said = []
        for at, token in enumerate(ids):
            end = finish if at == len(ids) - 1 else None
            own = before + scores[at]
            before = ()
            stops = end == "stop" and (token in self._stop_ids or choice.get("stop_reason") is None)
            said.append(Token(0, None, "stop", own) if stops else self._go_on(token, end, own))
            if said[-1].finish or said[-1].error:
                self.finished = True
                return said
        if finish:
            self.finished = True
            said.append(Token(0, None, finish, before))
        return said

    def cancelled(self) -> Token:
        """The end of an answer that nobody wants any more."""
        self.finished = True
        return Token(0, None, "stop")

    def _go_on(self, token: int, end, scores: tuple[Scored, ...]) -> Token:
        """The form is followed here, too: vLLM's reading of it is not taken on trust, and an answer that is complete ends."""
        if self._form is not None:
            try:
                self._form.take(token)
            except GrammarError as error:
                return Token(0, None, error=GrammarError("vLLM left the form that the answer must have", why=error.why))
            if self._form.complete:
                return Token(0, token, "stop", scores)
        return Token(0, token, end, scores)


def _scores(found: dict | None, top: int | None, count: int) -> list[tuple[Scored, ...]]:
    """Of each token of a chunk."""
    if top is None:
        return [()] * count
    if found is None or len(found["tokens"]) != count:
        raise VllmError("vLLM sent an answer without the scores that were asked for")
    return [(Scored(_id(token), logprob, _best({_id(t): p for t, p in (others or {}).items()}, top)),)
            for token, logprob, others in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True)]


def _of_prompt(choice: dict, request: Request) -> tuple[Scored, ...]:
    if len(request.prompt) == 1:
        return (Scored(request.prompt[0], None),)
    rows = choice.get("prompt_logprobs")
    if rows is None or len(rows) != len(request.prompt):
        raise VllmError("vLLM sent no scores of the prompt")
    said = [Scored(request.prompt[0], None)]
    for token, row in zip(request.prompt[1:], rows[1:], strict=True):
        likely = {int(t): entry["logprob"] for t, entry in row.items()}
        said.append(Scored(token, likely[token], _best(likely, request.logprobs)))
    return tuple(said)


def _best(likely: dict[int, float], top: int) -> tuple[tuple[int, float], ...]:
    """vLLM names the token itself beside the likeliest, also where it is none of them."""
    return tuple(sorted(likely.items(), key=lambda item: -item[1])[:top])


def _id(token: str) -> int:
    return int(token.removeprefix(TOKEN_ID))
