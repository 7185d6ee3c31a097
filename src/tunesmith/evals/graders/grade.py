"""Scores of samples by a grader: one number each, and where there is none, which of the API's flags says why.

    grade(grader, namespaces, find)   ->  [Graded], one for each {"item": ..., "sample": ...}

A whole batch at once, so that a judge reads its prompts together.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.errors import BaseModelError, NotFoundError, UsageError
from tunesmith.evals.graders import formula, judges
from tunesmith.evals.graders.judges import Find, Said, Usage
from tunesmith.evals.graders.schema import (
    AnyGrader,
    JudgeSampling,
    LabelModel,
    Message,
    Multi,
    ScoreModel,
    StringCheck,
    TextSimilarity,
    threshold,
)
from tunesmith.evals.graders.similarity import similarity
from tunesmith.evals.graders.template import MissingVariable, render

FLAGS = ("formula_parse_error", "sample_parse_error", "truncated_observation_error", "unresponsive_reward_error",
         "invalid_variable_error", "other_error", "python_grader_server_error", "python_grader_runtime_error",
         "model_grader_server_error", "model_grader_refusal_error", "model_grader_parse_error")
DETAILS = ("python_grader_server_error_type", "python_grader_runtime_error_details", "model_grader_server_error_details")
NOTES = {"meteor": "exact and stem matches; synonyms of WordNet are not counted",
         "cosine": "of a local sentence embedder"}
"""What a measure is here, where OpenAI's differs."""
SCORE_ONLY = "Answer with one number from {} to {} and nothing else."


@dataclass(slots=True)
class Graded:
    name: str
    type: str
    score: float = 0.0
    """0 where there is an error."""
    passed: bool = False
    error: str | None = None
    """One of FLAGS."""
    details: str | None = None
    """Why, in words."""
    seconds: float = 0.0
    parts: dict[str, Graded] = field(default_factory=dict)
    """Of a multi grader, by the names that its formula uses."""
    usage: dict[str, Usage] = field(default_factory=dict)
    """By judge."""
    sample: dict[str, Any] | None = None
    """What was compared, or what a judge was asked and said."""
    note: str | None = None

    @property
    def flags(self) -> dict[str, bool | str | None]:
        """All of the API's flags."""
        said = {name: name == self.error for name in FLAGS} | dict.fromkeys(DETAILS)
        if self.error == "model_grader_server_error":
            said["model_grader_server_error_details"] = self.details
        return said


def grade(grader: AnyGrader, namespaces: Sequence[Mapping[str, Any]], find: Find) -> list[Graded]:
    """Scores of samples. What one sample lacks, or a judge that fails, is an error of that grade and of no other.

    Raises:
        TypeError: a grader that is never carried out here (`python`).
        TunesmithError: the engine that judges stops.
    """
    begun = time.perf_counter()
    if isinstance(grader, Multi):
        found = _multi(grader, namespaces, find)
    elif isinstance(grader, ScoreModel | LabelModel):
        found = _judged(grader, namespaces, find)
    elif isinstance(grader, StringCheck | TextSimilarity):
        found = [_compared(grader, namespace) for namespace in namespaces]
    else:
        raise TypeError(f"graders of type {grader.type} are not carried out")
    seconds = (time.perf_counter() - begun) / max(1, len(found))
    for graded in found:
        graded.seconds = seconds
        graded.passed = graded.error is None and graded.score >= threshold(grader)
    return found


def check(operation: str, given: str, reference: str) -> float:
    """string_check: 1 or 0. `like` is whether the reference stands in the text, `ilike` whatever its case."""
    match operation:
        case "eq":
            return float(given == reference)
        case "ne":
            return float(given != reference)
        case "like":
            return float(reference in given)
    return float(reference.casefold() in given.casefold())


def _compared(grader: StringCheck | TextSimilarity, namespace: Mapping[str, Any]) -> Graded:
    graded = Graded(grader.name, grader.type)
    try:
        given, reference = render(grader.input, namespace), render(grader.reference, namespace)
        graded.sample = {"input": given, "reference": reference}
        if isinstance(grader, StringCheck):
            graded.score = check(grader.operation, given, reference)
        else:
            graded.note = NOTES.get(grader.evaluation_metric)
            graded.score = similarity(grader.evaluation_metric, given, reference)
    except MissingVariable as error:
        _missing(graded, error, namespace)
    except (ValueError, BaseModelError) as error:
        graded.error, graded.details = "other_error", str(getattr(error, "what", error))
    return graded


def _missing(graded: Graded, error: MissingVariable, namespace: Mapping[str, Any]) -> None:
    """Of JSON that is none, the sample is to blame and not the variable's name."""
    unread = error.path[:2] == ("sample", "output_json") and "output_json" not in (namespace.get("sample") or {})
    graded.error, graded.details = "sample_parse_error" if unread else "invalid_variable_error", str(error)


def _judged(grader: ScoreModel | LabelModel, namespaces: Sequence[Mapping[str, Any]], find: Find) -> list[Graded]:
    found = [Graded(grader.name, grader.type) for _ in namespaces]
    asked: list[tuple[Graded, list[dict]]] = []
    for graded, namespace in zip(found, namespaces, strict=True):
        try:
            asked.append((graded, _prompt(grader, namespace)))
        except MissingVariable as error:
            _missing(graded, error, namespace)
        except ValueError as error:
            graded.error, graded.details = "other_error", str(error)
    if not asked:
        return found
    try:
        said = _ask(grader, [messages for _, messages in asked], find)
    except (NotFoundError, UsageError) as error:
        said = [Said(None, error.what)] * len(asked)
    for (graded, messages), answer in zip(asked, said, strict=True):
        graded.usage = {grader.model: answer.usage}
        graded.sample = {"model": grader.model, "input": messages, "output_text": answer.text, "finish_reason": answer.finish}
        if answer.text is None:
            graded.error, graded.details = "model_grader_server_error", answer.problem
        elif isinstance(grader, LabelModel):
            graded.score = float(answer.text in grader.passing_labels)
            graded.sample |= {"label": answer.text, "label_shares": answer.weights}
        else:
            score = judges.number(answer, *grader.bounds)
            if score is None:
                graded.error, graded.details = "model_grader_parse_error", f"the judge's answer is no score: {answer.text!r}"
            else:
                graded.score = score
    return found


def _ask(grader: ScoreModel | LabelModel, conversations: list[list[dict]], find: Find) -> list[Said]:
    if isinstance(grader, LabelModel):
        return judges.labels(find, grader.model, conversations, grader.labels)
    sampling, (low, high) = grader.sampling_params or JudgeSampling(), grader.bounds
    return judges.answers(find, grader.model, conversations, temperature=sampling.temperature or 0.0,
                          max_tokens=sampling.max_completions_tokens or sampling.max_completion_tokens,
                          top_p=sampling.top_p or 1.0, seeds=[sampling.seed or 0] * len(conversations),
                          default=judges.LONGEST_SCORE, schema={"type": "number", "minimum": low, "maximum": high})


def _prompt(grader: ScoreModel | LabelModel, namespace: Mapping[str, Any]) -> list[dict]:
    """A score is asked for in words, at the end of what the user or system says last. Raises as `render`."""
    messages = rendered(grader.input, namespace)
    if isinstance(grader, ScoreModel):
        low, high = (f"{b:g}" for b in grader.bounds)
        last = max((i for i, m in enumerate(messages) if m["role"] != "assistant"), default=0)
        messages[last]["content"] += f"\n\n{SCORE_ONLY.format(low, high)}"
    return messages


def rendered(messages: Sequence[Message], namespace: Mapping[str, Any]) -> list[dict]:
    """Messages with their variables put in. Raises as `render`."""
    return [{"role": m.speaker, "content": render(m.text, namespace)} for m in messages]


def _multi(grader: Multi, namespaces: Sequence[Mapping[str, Any]], find: Find) -> list[Graded]:
    parts = {name: grade(part, namespaces, find) for name, part in grader.graders.items()}
    found = []
    for at in range(len(namespaces)):
        own = {name: graded[at] for name, graded in parts.items()}
        whole = Graded(grader.name, grader.type, parts=own)
        for part in own.values():
            for model, usage in part.usage.items():
                whole.usage.setdefault(model, Usage()).add(usage)
        failed = next((p for p in own.values() if p.error), None)
        if failed:
            whole.error, whole.details = failed.error, f"{failed.name}: {failed.details}"
        else:
            try:
                whole.score = formula.value(grader.calculate_output, {name: p.score for name, p in own.items()})
            except ValueError as error:
                whole.error, whole.details = "formula_parse_error", str(error)
        found.append(whole)
    return found
