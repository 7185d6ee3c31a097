"""What axolotl and LLaMA-Factory both take from transformers' trainer: steps, schedule, checkpoints, precision, tracking.

A step there sees a number of rows on each device; here it sees a number of tokens:

    packed       rows x accumulation x length of a packed row
    not packed   rows x accumulation x mean tokens of a row      (four characters a token, when the data can be read)
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from tunesmith.recipe.foreign.ledger import Ledger, shown
from tunesmith.recipe.foreign.rules import NoEqual, Skip, count, flag, names, number, text, whole

SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant_with_warmup": "constant", "constant": "constant"}
NEAREST = {"polynomial": "linear", "inverse_sqrt": "constant"}
ABOVE = 3
"""Directories above the file in which its data is looked for."""
SHORT = 6
"""Letters below which a name gets the directory above it too."""
NO_TRAINING_TEXT = "a recipe trains the answers of rows (objective.type: sft)"


@dataclass(frozen=True, slots=True)
class Batch:
    """Names of the keys that make up a step, what they are when missing, and when rows are packed."""

    rows: str
    accumulation: str
    rows_default: int
    length: str
    length_default: int
    packing: tuple[str, ...]


def steps(ledger: Ledger, batch: Batch) -> None:
    rows = ledger.get(batch.rows, count, batch.rows_default)
    accumulation = ledger.get(batch.accumulation, count, 1)
    packed = [ledger.get(k, flag, False) for k in batch.packing]
    length = ledger.get(batch.length, count, batch.length_default)
    for key in batch.packing:
        ledger.ignores(key, "rows are always packed here, and cannot see each other; it says how tokens_per_step is counted")
    ledger.maps(batch.length, "data.max_tokens", length, "the longest row; nothing is ever cut here (data.on_overflow)")
    ledger.adds("data.max_tokens", length, f"{batch.length} is not set: {ledger.tool.title}'s default")
    said = f"{rows} rows x {accumulation} accumulated"
    mean = ledger.facts.get("mean_tokens")
    if any(packed):
        tokens, how = rows * accumulation * length, f"{said} x {length} tokens of a packed row, on one device"
    elif mean:
        tokens, how = max(1, round(rows * accumulation * mean)), (
            f"{said} x about {mean:.0f} tokens a row (characters of the data / 4), on one device; rows are not packed there")
    else:
        for key in (batch.rows, batch.accumulation):
            ledger.refuses(
                key, f"a step there is {said} = {rows * accumulation} rows, and here a number of tokens",
                "the recipe's tokens_per_step is the default, which may be many more or fewer rows",
                f"set train.tokens_per_step to {rows * accumulation} x the mean tokens of a row: `tunesmith data prepare` "
                "prints rows and tokens")
        ledger.adds("train.tokens_per_step", 4096, f"SET THIS to {rows * accumulation} x the mean tokens of a row: the data "
                    "could not be read")
        return
    ledger.maps(batch.rows, "train.tokens_per_step", tokens, how)
    ledger.maps(batch.accumulation, "train.tokens_per_step", tokens, how)
    ledger.adds("train.tokens_per_step", tokens, f"{how}: {ledger.tool.title}'s defaults")
    if any(packed) and accumulation > 1:
        ledger.adds("train.tokens_per_pack", rows * length, f"{batch.rows}: {rows} x {length} tokens in one forward pass")


def epochs(ledger: Ledger, key: str, default: float) -> None:
    """The total. With max_steps there, data repeats until the steps are done; one epoch has a step at least."""
    total = ledger.get(key, number, default)
    most = ledger.get("max_steps", whole, -1)
    if most > 0:
        ledger.maps("max_steps", "train.max_steps", most, "the schedule ends there, as it did")
        ledger.ignores(key, "max_steps decides there; data repeats until the steps are done")
        ledger.adds("train.epochs", max(1, most), "enough that max_steps ends the training")
        return
    ledger.ignores("max_steps", "below 1: the epochs decide")
    if total <= 0:
        ledger.bad(key, f"{key}: a number above 0 belongs here (got {shown(total)})")
    elif total == int(total):
        ledger.maps(key, "train.epochs", int(total), "the total, also after a resume")
        ledger.adds("train.epochs", int(total), f"{key} is not set: {ledger.tool.title}'s default")
    else:
        ledger.refuses(key, f"{total} passes over the data", f"the recipe makes {math.ceil(total)}, and whole ones",
                       "set train.max_steps to the steps that its log shows", "train.epochs", math.ceil(total))


def learning_rate(ledger: Ledger, key: str, warmup_default: float, schedule_default: str) -> None:
    """The schedule and its warm-up: a share here, steps or a share there."""
    given = ledger.get(key, text, schedule_default)
    ours = SCHEDULES.get(given)
    if ours is None:
        ledger.refuses(key, f"the learning rate follows {given!r}", "the recipe's follows another curve",
                       f"one of {', '.join(sorted(set(SCHEDULES.values())))}", "train.schedule", NEAREST.get(given, "cosine"))
    else:
        ledger.maps(key, "train.schedule", ours)
        ledger.adds("train.schedule", ours, f"{key} is not set: {ledger.tool.title}'s default")
    if given == "constant":
        for name in ("warmup_steps", "warmup_ratio"):
            ledger.ignores(name, "the schedule 'constant' has no warm-up there")
        ledger.adds("train.warmup", 0.0, "the schedule 'constant' has no warm-up there")
        return
    share, warm = ledger.get("warmup_ratio", number), ledger.get("warmup_steps", number)
    most = ledger.get("max_steps", whole, -1)
    if share is not None:
        ledger.maps("warmup_ratio", "train.warmup", _share(ledger, "warmup_ratio", share))
        if warm == 0:
            ledger.ignores("warmup_steps", "0: warmup_ratio decides")
        else:
            ledger.refuses("warmup_steps", "both are set, and versions of transformers disagree which counts",
                           "the recipe follows warmup_ratio", "keep one of them")
    elif warm is not None and (warm < 1 or most > 0):
        ledger.maps("warmup_steps", "train.warmup", _share(ledger, "warmup_steps", warm if warm < 1 else warm / most),
                    f"{warm:g} of {most} steps" if warm >= 1 else "below 1 it is a share there too")
    elif warm is not None:
        ledger.refuses("warmup_steps", f"the learning rate rises for {warm:g} steps", "here it is a share of all steps, which "
                       "are not known yet; the recipe has the default", "set train.warmup to "
                       f"{warm:g} / the steps that `tunesmith check` estimates", "train.warmup", 0.03)
    ledger.adds("train.warmup", warmup_default, f"no warm-up is set: {ledger.tool.title}'s default")


def _share(ledger: Ledger, key: str, share: float) -> float:
    if not 0 <= share <= 1:
        ledger.bad(key, f"{key}: {share:g} of the steps; a warm-up is between none and all of them")
    return round(share, 6)


def every(ledger: Ledger, what: str, strategy: str, to: str, epoch_hint: str, unset: str | None = None) -> None:
    """`save_steps` and `eval_steps`: a number of steps, or a share of them. `unset`: the strategy when none is given."""
    when = ledger.get(strategy, str, unset)
    when = {"False": "no", "True": "yes"}.get(when, when)
    every_steps = ledger.get(what, number)
    if when in ("no", "epoch", "best"):
        ledger.ignores(what, f"{strategy} is {when}")
        if when == "no":
            ledger.ignores(strategy, "checkpoints are always written here; losing a run is never wanted" if "save" in what else
                           "off: the held-out loss is measured at the beginning and the end")
        else:
            ledger.refuses(strategy, f"it happens at every {'epoch' if when == 'epoch' else 'better result'}",
                           "the recipe counts in steps", epoch_hint)
        return
    ledger.ignores(strategy, "steps decide")
    most = ledger.get("max_steps", whole, -1)
    if every_steps is None:
        return
    if every_steps >= 1:
        ledger.maps(what, to, int(every_steps))
    elif every_steps > 0 and most > 0:
        ledger.maps(what, to, max(1, round(every_steps * most)), f"{every_steps:g} of {most} steps")
    elif every_steps > 0:
        ledger.refuses(what, f"every {every_steps:g} of all steps", "the recipe counts in steps, and their number is not known "
                       "yet",
                       f"set {to} to {every_steps:g} x the steps that `tunesmith check` estimates")
    else:
        ledger.ignores(what, "0: never there; checkpoints are always written here" if "save" in what else "0: never")


def clip_norm(ledger: Ledger) -> None:
    most = ledger.get("max_grad_norm", number)
    if most is not None and most <= 0:
        ledger.maps("max_grad_norm", "train.clip_norm", 1e9, "0 is no clipping there; so large a norm is none here")
    elif most is not None:
        ledger.maps("max_grad_norm", "train.clip_norm", most)


def tracking(ledger: Ledger, uri: str | None, experiment: tuple[str, ...]) -> None:
    """MLflow as it was; another tracker's project becomes the experiment."""
    where = ledger.get("report_to", names)
    if where and set(where) <= {"none"}:
        ledger.maps("report_to", "track.mlflow", None, "no tracking")
    elif where and set(where) <= {"mlflow"}:
        ledger.maps("report_to", "track.mlflow", ledger.get(uri, text, "sqlite") if uri else "sqlite")
    elif where:
        ledger.refuses("report_to", f"metrics go to {', '.join(where)}", "the recipe writes them to MLflow",
                       "set track.mlflow to sqlite or a tracking URI", "track.mlflow", "sqlite")
    if uri:
        ledger.maps(uri, "track.mlflow", ledger.get(uri, text))
    for key in experiment:
        if ledger.has(key):
            name = ledger.get(key, text)
            ledger.maps(key, "track.experiment", name, "" if "mlflow" in key else "of MLflow: there is no other tracker here")


def optimizer(ledger: Ledger, key: str) -> None:
    """AdamW is AdamW, whoever computes it. torch's own betas and epsilon are not in a recipe."""
    name = ledger.get(key, text, "adamw_torch").lower()
    if "adamw" in name and "schedule_free" not in name and "anyprecision" not in name:
        ledger.ignores(key, "AdamW, as here" + ("; smaller states are for memory" if re.search("8bit|4bit|paged",
                                                                                               name) else ""))
    else:
        ledger.refuses(key, f"the optimizer is {name}", "the recipe trains with AdamW",
                       "learning rates of other optimizers do not carry over: begin with 2.0e-4 for a LoRA adapter")
    for name, ours in (("adam_beta1", 0.9), ("adam_beta2", 0.999), ("adam_epsilon", 1e-8)):
        value = ledger.get(name, number)
        if value == ours:
            ledger.ignores(name, "as here")
        elif value is not None:
            ledger.refuses(name, f"AdamW with {name.removeprefix('adam_')} {value:g}", f"here it is {ours:g}",
                           "there is no key "
                           "for it; the difference is small for adapters")


def model_path(ledger: Ledger, given: str) -> str:
    """A base as the recipe writes it: a directory that is there by its path, a hub id as it is."""
    found = find(ledger, given)
    if given.startswith((".", "/", "~")) or given.count("/") > 1:
        return relative(ledger, found or Path.cwd() / Path(given).expanduser())
    return relative(ledger, found) if found and (found.suffix == ".gguf" or (found / "config.json").is_file()) else given


def find(ledger: Ledger, given: str) -> Path | None:
    """Where a path of the source is. Both tools take it from where they were started, which is not written down: look there
    first, then beside the file, then above it."""
    path = Path(given).expanduser()
    here = ledger.path.absolute().parent
    for folder in (Path.cwd(), here, *list(here.parents)[:ABOVE]):
        try:
            if (folder / path).exists():
                return folder / path
        except (OSError, ValueError):
            return None
    return None


def relative(ledger: Ledger, path: Path) -> str:
    """`path` as seen from the new recipe."""
    import os

    return Path(os.path.relpath(Path(path).absolute(), ledger.folder)).as_posix()


def run_name(ledger: Ledger, key: str) -> None:
    """A recipe's name from the output directory, else from the file's own name."""
    given = ledger.get(key, text)
    parts = [p for p in Path(given).parts if re.search(r"\w", p)] if given else []
    name = ""
    while len(name) < SHORT and parts:  # "sft" alone says little: "lora-sft"
        name = f"{_slug(parts.pop())}-{name}".strip("-")
    name = (name or _slug(ledger.path.stem))[:40].strip("-") or "imported"
    ledger.maps(key, "name", name, "from its last parts; runs, adapters and checkpoints go to TUNESMITH_HOME")
    ledger.adds("name", name, f"the name of {ledger.path.name}")


def _slug(given: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", given.lower()).strip("-")


def judging(ledger: Ledger) -> None:
    """Neither tool judges what it trained. The held-out loss needs no labels and fits any data."""
    ledger.adds("eval.metrics", ["loss"], "neither tool judges a run; the held-out loss fits any data")
    ledger.adds("gates.target", {"metric": "loss"}, "a release needs a held-out loss that is not worse than the base's")


def held_out(ledger: Ledger, key: str, tests_key: str) -> None:
    """A share of the rows, a number of them, or files. Something is always held out here."""
    size = ledger.get(key, number, 0.0)
    rows = ledger.facts.get("rows")
    if ledger.has(tests_key):
        ledger.ignores(key, f"{tests_key} is the held-out data")
    elif size < 0:
        ledger.bad(key, f"{key}: a share or a number of rows belongs here (got {shown(size)})")
    elif 0 < size < 1:
        ledger.maps(key, "data.split.test", size, "drawn by the recipe's seed: not the same rows")
    elif size > 0 and rows and size < rows:
        ledger.maps(key, "data.split.test", round(size / rows, 6), f"{size:g} of {rows} rows")
    elif size > 0:
        ledger.refuses(key, f"{size:g} rows are held out", "the recipe holds out a share, and how many rows there are is not "
                       "known",
                       f"set data.split.test to {size:g} / the number of rows", "data.split.test", 0.1)
    else:
        ledger.refuses(key, "nothing is held out", "the recipe holds out 5%: what was trained on cannot be judged",
                       "name a test file in data.test to train on every row", "data.split.test", 0.05)
        ledger.adds("data.split.test", 0.05, f"{ledger.tool.title} holds out nothing; what was trained on cannot be judged")


MODULES_WHY = "these modules are trained whole and saved beside the adapter"
MODULES_THEN = ("the recipe trains the adapter alone. embed_tokens and lm_head hold vocabulary x hidden size each: 1.05 "
                "billion "
                "parameters on Llama-3.1-8B, many times the adapter")
MODULES_FIX = "leave them out: vLLM refuses adapters with whole modules; if you need them, method.modules_to_save trains them"
QUANTISED = NoEqual("", "the base is held in 8 bits, or in 4 that are not NF4 of bitsandbytes", "set method.type: qlora (NF4) "
                    "if memory is short: `tunesmith check` estimates it before step 1", consequence="the recipe trains LoRA on "
                    "the whole base (method.type: lora), which needs two to four times the memory")
ONE_DEVICE = "one process on one device here; with N devices a step there was N times as large"
SPEED = "speed or memory of a GPU path; the fast path here is chosen by itself, and held equal to the plain one"
CHECKPOINTED = "memory against time; rows are packed into train.tokens_per_pack, and nothing is computed twice"
PRECISION = "the base's type is chosen at the start by measuring it (train.dtype: auto); adapters are always float32"
LOADING = "how data is loaded and cached; it streams from disk here, and datasets are kept by their content"
LOGGED = "every step is logged here"
SHUFFLING = "rows are shuffled by train.seed"
LOCAL_RUN = "runs, adapters and checkpoints go to TUNESMITH_HOME"

TRAINER_SKIPPED = (
    Skip("gradient_checkpointing gradient_checkpointing_kwargs torch_empty_cache_steps", CHECKPOINTED),
    Skip("bf16 fp16 tf32", PRECISION),
    Skip("deepspeed fsdp fsdp_config ddp_timeout ddp_bucket_cap_mb ddp_broadcast_buffers ddp_find_unused_parameters "
         "local_rank accelerator_config ray_num_workers", ONE_DEVICE),
    Skip("torch_compile torch_compile_backend torch_compile_mode low_cpu_mem_usage", SPEED),
    Skip("dataloader_pin_memory dataloader_num_workers dataloader_prefetch_factor remove_unused_columns", LOADING),
    Skip("logging_steps", LOGGED),
    Skip("group_by_length", "rows of similar length are put together here anyway, without padding"),
    Skip("auto_find_batch_size", "memory is estimated before step 1 (`tunesmith check`)"),
    Skip("hub_strategy hub_revision", "nothing is pushed to a hub; a release is published by whoever serves it"),
)
TRAINER_NO_EQUAL = (
    NoEqual("dataloader_drop_last", "the last incomplete batch of an epoch is left out", "nothing: every row is trained here"),
    NoEqual("neftune_noise_alpha", "noise is added to the embeddings (NEFTune)",
            "train.epochs lower, or method.dropout, against overfitting"),
    NoEqual("resume_from_checkpoint",
            "training goes on from a checkpoint of the other tool. Its number of epochs is the total then too, not what "
            "comes on top", "begin anew; a run of tunesmith goes on with `tunesmith train RECIPE --resume RUN`",
            consequence="the recipe begins from the base"),
    NoEqual("trust_remote_code", "code from the model's repository is executed",
            "take a base that transformers knows; nothing is executed here", consequence="a base that needs it does not load"),
    NoEqual("load_best_model_at_end metric_for_best_model greater_is_better", "the best checkpoint is kept, not the last",
            "set train.eval_every_steps to see where it turns, and train.max_steps to end there",
            consequence="the adapter is that of the last step"),
    NoEqual("save_only_model", "checkpoints without the optimizer",
            "nothing: checkpoints are whole here, so that a resume is exact", consequence="checkpoints are larger"),
    NoEqual("lr_scheduler_kwargs", "the schedule has other parameters", "the recipe's schedules go down to 0 and have none"),
    NoEqual("optim_args optim_target_modules", "the optimizer has other parameters",
            "there is no key for it: AdamW as torch has it"),
    NoEqual("hub_model_id", "checkpoints are pushed to the hub",
            "push the adapter of a release: it is an ordinary PEFT directory", consequence="nothing is pushed"),
)


def dora(ledger: Ledger, key: str, quantised: bool) -> bool:
    """Whether the recipe trains a DoRA; on a quantised base there is none."""
    if not ledger.get(key, flag, False):
        ledger.ignores(key, "off")
        return False
    if quantised:
        ledger.refuses(key, "the adapter is a DoRA on a quantised base", "the recipe trains plain LoRA on it",
                       "a higher method.rank, or method: {type: lora, dora: true} on the whole base")
        return False
    ledger.maps(key, "method.dora", True)
    return True


def nothing_of_an_adapter(ledger: Ledger, keys: tuple[str, ...]) -> None:
    """Every weight is trained: what is said of an adapter means nothing."""
    for key in keys:
        ledger.ignores(key, "of an adapter, and every weight is trained")
    ledger.takes_back("method.dropout", "of an adapter, and every weight is trained")
    ledger.takes_back("method.lora_plus_ratio", "of an adapter, and every weight is trained")
