"""`/v1/fine_tuning/alpha/graders`: try a grader on one sample, or only ask whether it is one."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from tunesmith.api.caller import Caller, may
from tunesmith.api.errors import BadParameter
from tunesmith.api.evals_schemas import GraderRun, GraderValidate
from tunesmith.api.service import Service, service_of
from tunesmith.evals.graders.grade import Graded, grade
from tunesmith.evals.graders.schema import AnyGrader, Python, judges, parts
from tunesmith.jobs.evaluation.samples import seen_as

router = APIRouter(prefix="/v1/fine_tuning/alpha/graders")


@router.post("/run")
def run(body: GraderRun, caller: Caller = Depends(may("train")), service: Service = Depends(service_of)) -> dict:
    check(body.grader, "grader", caller, service)
    namespace = {"item": body.item or {}, "sample": seen_as(body.model_sample)}
    graded, = grade(body.grader, [namespace], lambda name: service.engines.load(name, caller.project_id))
    return _shown(graded)


@router.post("/validate")
def validate(body: GraderValidate, caller: Caller = Depends(may("train")), service: Service = Depends(service_of)) -> dict:
    check(body.grader, "grader", caller, service)
    return {"grader": body.grader.model_dump(mode="json", exclude_unset=True)}


def check(grader: AnyGrader, param: str, caller: Caller, service: Service) -> None:
    """Raises BadParameter: it has a `python` grader; NotFoundError: it asks a model that this caller may not ask."""
    for part in parts(grader):
        if isinstance(part, Python):
            raise BadParameter(f"`{part.name}` is a python grader, which this server does not support: code that comes with a "
                               "request is never executed", f"{param}.type", "unsupported")
    for model in judges(grader):
        service.engines.describe(model, caller.project_id)


def _shown(graded: Graded) -> dict:
    """As OpenAI's API has it. What is ours stands under `metadata.tunesmith`."""
    tokens = {model: u.prompt + u.completion for model, u in graded.usage.items()}
    sub = {name: part.score for name, part in graded.parts.items()}
    return {
        "reward": graded.score, "sub_rewards": sub, "model_grader_token_usage_per_model": tokens,
        "metadata": {"name": graded.name, "type": graded.type, "errors": graded.flags, "execution_time": graded.seconds,
                     "scores": sub, "token_usage": sum(tokens.values()) if tokens else None,
                     "sampled_model_name": next(iter(tokens), None),
                     "tunesmith": {"passed": graded.passed, "error": graded.details, "sample": graded.sample,
                                   "notes": {p.name: p.note for p in (graded, *graded.parts.values()) if p.note}}}}
