"""Answers without an end.

pytest tests/runbooks/test_never_stops.py
"""

ENDLESS = "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"


def test_a_template_without_a_stop_token_is_refused_and_the_bases_own_is_not(make_recipe, tmp_path, command, page):
    (tmp_path / "endless.jinja").write_text(ENDLESS)
    done = command("train", make_recipe(**{"data.template": "endless.jinja"}), check=2)
    assert page("never-stops").missing("template", done.stderr) == [], done.stderr
    command("check", make_recipe(), check=0)


def test_answers_that_hit_the_limit_are_told_and_more_training_ends_them(make_recipe, lively_base, finished, command, page):
    """One step teaches no end; the finished project is the same with twelve epochs."""
    recipe = make_recipe(base=str(lively_base), **{"train.max_steps": 1, "eval.baselines": ["zero_shot"]})
    command("train", recipe, check=0)
    done = command("eval", recipe, check=0)
    assert page("never-stops").missing("limit", done.stdout) == [], done.stdout
    assert not [w for w in finished.report["worry"] if "hit the limit" in w]
