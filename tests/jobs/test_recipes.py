"""What requests may say of a recipe, and what `auto` becomes.

pytest tests/jobs/test_recipes.py
"""

import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.pack import plan_steps
from tunesmith.errors import RecipeError
from tunesmith.jobs import recipes
from tunesmith.jobs.settings import Settings
from tunesmith.recipe.load import fields_at
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.section import Section

NAMES_NOTHING = {
    "name", "base", "track.mlflow", "track.experiment", "track.aliases", "track.tags",  # no section of requests has them
    "data.split.by", "data.split.stratify", "data.mix.by", "data.mix.weights", "data.mix.caps", "data.filter.languages",
    "method.targets", "method.modules_to_save", "method.init_text", "method.feedforward",  # names within a row or a model
    "gates.target.metric", "gates.audit.refuse"}
"""Keys that take free text, none of which is a file, a model, an address or a pattern."""


def free_text(model: type[Section] = Recipe, path: tuple = ()) -> set[str]:
    """Every key of a recipe whose value may be any text, or hold any."""
    found = set()
    for name, field in model.model_fields.items():
        here, sections, free = (*path, name), [], False

        def walk(annotation, sections=sections):
            nonlocal free
            if isinstance(annotation, type) and issubclass(annotation, Section):
                sections.append(annotation)
            elif annotation in (str, typing.Any):
                free = True
            elif typing.get_origin(annotation) is not typing.Literal:
                for inner in typing.get_args(annotation):
                    walk(inner)

        walk(field.annotation)
        if free:
            found.add(".".join(here))
        for section in sections:
            found |= free_text(section, here)
    return found


def test_every_key_that_takes_free_text_is_closed_or_names_nothing():
    """A new key of the recipe fails here until somebody has thought about it."""
    found = free_text()
    closed = {k for k in found if any(k == c or k.startswith(f"{c}.") for c in recipes.CLOSED)}
    assert found - closed == NAMES_NOTHING
    assert {"data.train", "eval.suites", "objective.teacher", "eval.judge.base_url", "data.replay.rows"} <= closed


def test_every_closed_key_is_one_that_recipes_have():
    for key in recipes.CLOSED:
        *path, last = key.split(".")
        names = fields_at(tuple(path)) if path != ["method"] else ["rank_pattern", "alpha_pattern"]
        assert last in names, key


def job(method: str = "supervised", extensions: dict | None = None, **hyperparameters) -> dict:
    return {"id": "ftjob-ABCDEF123456", "suffix": None, "base": "b", "seed": 7, "integrations": [],
            "extensions": extensions or {}, "method": {"type": method, method: {"hyperparameters": hyperparameters}}}


def made(the_job: dict, examples: int = 100, held_out: bool = True, settings: Settings = Settings()) -> tuple[Recipe, dict]:
    value, numbers = recipes.finished(recipes.recipe_of(settings, the_job), the_job, examples, held_out=held_out, context=2048)
    return Recipe.model_validate(value), numbers


@pytest.mark.parametrize("given, where", [
    ({"data": {"train": "/etc/passwd"}}, "data.train"), ({"data": {"replay": {"rows": "hf:x/y"}}}, "data.replay"),
    ({"eval": {"suites": ["../*"]}}, "eval.suites"), ({"eval": {"judge": {"base_url": "http://1.2.3.4"}}}, "eval.judge"),
    ({"objective": {"type": "distill", "teacher": "/x"}}, "objective.teacher"), ({"track": {"mlflow": "http://x"}}, "track"),
    ({"base": "x"}, "base"), ({"train": {"start_from": "/x"}}, "train.start_from"),
    ({"data": {"template": "/x"}}, "data.template"), ({"eval": {"safety": {"canaries": "/x"}}}, "eval.safety.canaries"),
    ({"method": {"rank_pattern": {"(a+)+": 4}}}, "method.rank_pattern"),
    ({"eval": {"check": {"regex": "(a+)+$"}}}, "eval.check")])
def test_files_models_addresses_and_patterns_are_refused(given, where):
    with pytest.raises(RecipeError, match=where.replace(".", r"\.")):
        recipes.extensions(given, None)


def test_all_mistakes_are_told_at_once_with_the_nearest_name():
    given = {"method": {"rnak": 4, "alpha": -1}, "gates": {"targte": {}}, "eval": {"samples": 0}}
    with pytest.raises(RecipeError) as raised:
        recipes.refuse(recipes.recipe_of(Settings(), job(extensions=recipes.extensions(given, None))))
    for said in ("method.rnak", "'rank'", "method.alpha", "gates.targte", "'target'", "eval.samples"):
        assert said in raised.value.what
    assert len(raised.value.problems) == 4


def test_metadata_says_the_same_as_the_extension():
    told = {"tunesmith.rank": "8", "tunesmith.gates": '{"target": {"metric": "exact_match", "min_gain": 0.1}}', "mine": "x"}
    given = {"method": {"rank": 8}, "gates": {"target": {"metric": "exact_match", "min_gain": 0.1}}}
    assert recipes.extensions(None, told) == given
    recipe, _ = made(job(extensions=given))
    assert recipe.method.rank == 8 and recipe.eval.metrics == ["loss", "exact_match"]
    assert recipes.extensions(None, {"tunesmith.method": "ia3"}) == {"method": {"type": "ia3"}}
    with pytest.raises(RecipeError, match=r"tunesmith\.rnk.*no such key.*tunesmith\.rank: "):
        recipes.extensions(None, {"tunesmith.rnk": "1", "tunesmith.rank": "{"})


def test_another_method_does_not_inherit_the_rank_of_the_operators():
    settings = Settings(recipe={"method": {"type": "lora", "rank": 64}})
    assert made(job(extensions={"method": {"type": "ia3"}}), settings=settings)[0].method.type == "ia3"
    assert made(job(extensions={"method": {"alpha": 8.0}}), settings=settings)[0].method.rank == 64


@given(st.dictionaries(st.sampled_from(recipes.SECTIONS), st.dictionaries(
    st.sampled_from(["type", "rank", "metric", "metrics", "target", "learning_rate", "split", "regression", "beta"]),
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=2)
                 | st.dictionaries(st.sampled_from(["metric", "min_gain", "items", "type"]), inner, max_size=2), max_leaves=4),
    max_size=3), max_size=3), st.sampled_from(["supervised", "dpo"]))
def test_no_extension_does_more_than_be_refused(given, method):
    try:
        the_job = job(method, extensions=recipes.extensions(given, None))
        recipes.refuse(recipes.recipe_of(Settings(), the_job))
    except RecipeError:
        return
    made(the_job)


# ---- auto ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("examples, epochs", [(10, 10), (4, 25), (33, 3), (34, 3), (8333, 3), (10_000, 2), (50_000, 1)])
def test_auto_epochs_is_the_published_rule(examples, epochs):
    assert recipes.auto_epochs(examples) == epochs


@given(st.integers(10, 5000), st.integers(1, 50), st.integers(1, 256))
def test_the_steps_are_those_that_openai_would_make(examples, epochs, batch):
    """n_examples * n_epochs / batch_size, the last batch of an epoch being what is left."""
    recipe, numbers = made(job(n_epochs=epochs, batch_size=batch), examples)
    assert (numbers["n_epochs"], numbers["batch_size"]) == (epochs, batch)
    if examples * epochs > 20_000:
        return
    steps = plan_steps([9] * examples, tokens_per_step=recipe.train.tokens_per_step, epochs=recipe.train.epochs,
                       rows_per_step=recipe.train.rows_per_step)
    assert len(steps) == epochs * -(-examples // batch)


def test_auto_takes_the_operators_tokens_per_step_and_an_explicit_batch_does_not():
    settings = Settings(recipe={"train": {"tokens_per_step": 999}})
    recipe, numbers = made(job(), settings=settings)
    assert recipe.train.rows_per_step is None and recipe.train.tokens_per_step == 999 and numbers["batch_size"] == "auto"
    assert made(job(batch_size=4), settings=settings)[0].train.rows_per_step == 4


def test_the_rate_is_the_multiplier_times_what_is_usual_for_the_method():
    assert made(job())[0].train.learning_rate == pytest.approx(2e-4)
    assert made(job(learning_rate_multiplier=3))[0].train.learning_rate == pytest.approx(6e-4)
    assert made(job(extensions={"train": {"learning_rate": 1e-3}}, learning_rate_multiplier=2))[0].train.learning_rate == 2e-3
    low, high = 2e-3, 2e-2
    assert low < made(job(extensions={"method": {"type": "ia3"}}))[0].train.learning_rate < high
    recipe, numbers = made(job("dpo", beta=0.3))
    assert recipe.objective.beta == 0.3 and recipe.train.learning_rate == pytest.approx(5e-5)
    assert made(job("dpo"))[1]["beta"] == 0.1


def test_without_a_validation_file_few_rows_are_held_out():
    assert made(job(), 20, held_out=False)[0].data.split.test == 0.1
    assert made(job(), 10_000, held_out=False)[0].data.split.test == 0.005


def test_wandb_becomes_an_experiment_and_tags():
    the_job = job() | {"integrations": [{"type": "wandb", "wandb": {"project": "p", "name": "n", "tags": ["a", "b"]}}]}
    track = made(the_job)[0].track
    assert track.experiment == "p" and track.tags == {"wandb.name": "n", "wandb.tag.a": "true", "wandb.tag.b": "true"}
