"""The model card of an export: what it is, what was measured, and how to load it. README.md with Hugging Face's front matter.

Everything in it is from the release's manifest, its report and the probe. What nobody has said, such as what the model is meant
for, is left for who publishes it, and says so.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.exports.job import Job

if TYPE_CHECKING:
    from tunesmith.releases.export import Source

SAMPLE = [{"role": "user", "content": "What is 2+2?"}]
REPO = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")


def card(source: Source, job: Job, how: str, probe: dict, library: str) -> str:
    """Markdown. `how`: the format's own words on loading it. `library`: whose files these are, in Hugging Face's words."""
    manifest, report = source.manifest, source.report
    parts = [front_matter(job, library), f"# {manifest['name']}", _summary(source, job), "## Asked again", _probed(probe),
             "## How to load it", how.strip(), "## Prompt and stops", _prompt(job, manifest), "## Data", _data(source),
             "## Training", _training(source), "## Results", _results(report), "## Gates", _gates(manifest),
             "## Intended use and limits", UNSAID, "## Ids", _ids(source, job)]
    return "\n\n".join(parts) + "\n"


UNSAID = ("Not stated. Nobody has written down what this model is meant for, who must not use it, or what it gets wrong: "
          "whoever publishes it should, here.")


def front_matter(job: Job, library: str) -> str:
    """YAML between rulers. `base_model` only where it is a name on the hub: anything else is refused there."""
    import yaml

    name = job.base_path or job.base.ref.partition("@")[0]
    fields: dict = {"library_name": library, "pipeline_tag": "text-generation", "tags": ["tunesmith", job.method]}
    if REPO.match(name) and not Path(name).exists():
        fields |= {"base_model": name, "base_model_relation": "adapter" if library == "peft" else "finetune"}
    if licence := licence_of(job):
        fields["license"] = licence
    return "---\n" + yaml.safe_dump(fields, sort_keys=False) + "---"


def licence_of(job: Job) -> str | None:
    """What the base says of its licence, in its model card or its GGUF file; None: it says nothing."""
    import yaml

    readme = job.base.path / "README.md"
    if readme.is_file() and (found := re.match(r"^---\n(.*?)\n---", readme.read_text(encoding="utf-8"), re.DOTALL)):
        try:
            said = yaml.safe_load(found[1])
        except yaml.YAMLError:
            said = None
        if isinstance(said, dict) and isinstance(said.get("license"), str):
            return said["license"]
    return _licence_of_gguf(job)


def _licence_of_gguf(job: Job) -> str | None:
    from gguf import GGUFReader

    from tunesmith.store.home import cache

    ref = job.base.ref
    place = cache() / "packages" / ref.removeprefix("pypi:") if ref.startswith("pypi:") else Path(ref).expanduser()
    files = sorted(place.glob("*.gguf")) if place.is_dir() else [place] * (place.suffix == ".gguf" and place.is_file())
    if len(files) != 1:
        return None
    field = GGUFReader(files[0]).fields.get("general.license")
    return str(field.contents()) if field else None


def _summary(source: Source, job: Job) -> str:
    manifest = source.manifest
    adapter = manifest.get("adapter") or {"method": job.method}
    rank = f" of rank {adapter['rank']}" if adapter.get("rank") else ""
    released = (f"Release `{manifest['release_id']}`." if manifest.get("release_id") else
                "**Not released**: this run has not passed its gates, and nobody has answered for it.")
    return f"`{job.base.ref}`, fine-tuned with {adapter['method']}{rank} by Tunesmith. {released}"


def _probed(probe: dict) -> str:
    lines = [f"**{probe['verdict']}** · {probe['message']}."]
    if probe.get("warning"):
        lines.append(f"**Note:** {probe['warning']}.")
    if probe["verdict"] != "not_measured":
        lines.append(f"{probe.get('questions', 0)} held-out questions were put to these files in the program that runs them, "
                     "and compared with the adapter on its base as it was evaluated.")
    return "\n\n".join(lines)


def _prompt(job: Job, manifest: dict) -> str:
    from tunesmith.template.render import generation_prompt

    shown = job.tokenizer.decode(generation_prompt(job.tokenizer, SAMPLE))
    stops = ", ".join(f"`{job.tokenizer.decode([t])}` ({t})" for t in job.stops)
    return (f"A question as the model is to see it, to the last character:\n\n```\n{shown}\n```\n\nAnswers end at {stops}. "
            f"Fingerprint of the template: `{manifest['template_fingerprint']}`.")


def _data(source: Source) -> str:
    dataset, report = source.dataset, source.report
    files = {part: ", ".join(sorted({Path(str(p)).name for p in paths})) for part, paths in dataset.get("sources", {}).items()}
    rows = [(part, str(count), files.get(part, "")) for part, count in dataset["counts"].items()
            if part == "train" or part.startswith("test:")]
    trained = f" {dataset['counts']['trained_tokens']} tokens are trained, of {dataset['counts']['tokens']}."
    used = f" {report['dataset']['used_rows']} rows were seen in training." if report else ""
    return f"Dataset `{source.manifest['dataset_id']}`.{trained}{used}\n\n" + _table(("part", "rows", "files"), rows)


def _training(source: Source) -> str:
    train, method = source.recipe["train"], source.recipe["method"]
    steps = (source.report or {}).get("training", {}).get("steps") or []
    shown = {"method": method["type"], **{k: method[k] for k in ("rank", "alpha", "targets") if k in method},
             "steps": steps[-1]["step"] if steps else None, "epochs": train["epochs"], "learning rate": train["learning_rate"],
             "tokens a step": train["tokens_per_step"], "seed": train["seed"], "dtype": source.dtype}
    return _table(("setting", "value"), [(k, str(v)) for k, v in shown.items() if v is not None])


def _results(report: dict | None) -> str:
    if report is None:
        return "Not evaluated."
    parts = []
    for name in sorted(report["sets"], key=lambda n: n != report["primary"]):
        part = report["sets"][name]
        rows = [(metric, *(f"{m[k]:.3f}" for k in ("base", "tuned")), f"{m['delta']:+.3f}",
                 " to ".join(f"{end:+.3f}" for end in m["ci95"])) for metric, m in part["metrics"].items()]
        parts.append(f"{name}, {part['n']} items:\n\n" + _table(("metric", "base", "tuned", "change", "95% interval"), rows))
    return "\n\n".join(parts)


def _gates(manifest: dict) -> str:
    if not manifest["gates"]:
        return "Not judged."
    by_hand = {o["gate"]: f"{o['by']}: {o['reason']}" for o in manifest.get("overrides", [])}
    return _table(("gate", "verdict", "why", "overridden by"), [
        (g["name"], g["verdict"], g["evidence"]["message"], by_hand.get(g["name"], "")) for g in manifest["gates"]])


def _ids(source: Source, job: Job) -> str:
    manifest = source.manifest
    rows = [("release", manifest.get("release_id") or "none"), ("run", manifest["run_id"]),
            ("dataset", manifest["dataset_id"]), ("base", f"{job.base.ref} {job.base.digest}"),
            ("licence of the base", licence_of(job) or "not stated in its files"),
            ("adapter", (manifest.get("adapter") or {}).get("digest", "not evaluated")),
            ("template", manifest["template_fingerprint"])]
    return _table(("what", "id"), rows)


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    def line(cells) -> str:
        return "| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in cells) + " |"

    return "\n".join([line(header), line(["---"] * len(header)), *map(line, rows)])
