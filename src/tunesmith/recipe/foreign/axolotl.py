"""axolotl's keys that a recipe has a word for, and those that mean something only together.

Facts from the pydantic schemas of axolotl 0.19.0 (utils/schemas). Keys that change nothing here, or have no equal, are in
`axolotl_keys`.
"""

from __future__ import annotations

from tunesmith.recipe.foreign import shared
from tunesmith.recipe.foreign.axolotl_data import datasets
from tunesmith.recipe.foreign.axolotl_keys import NO_EQUAL, SKIPPED
from tunesmith.recipe.foreign.ledger import Ledger, shown
from tunesmith.recipe.foreign.rules import Copy, Joint, Tool, count, flag, names, number, text, whole

BATCH = shared.Batch(rows="micro_batch_size", accumulation="gradient_accumulation_steps", rows_default=1, length="sequence_len",
                     length_default=512, packing=("sample_packing",))
NO_LORA = "the recipe trains a LoRA adapter"


def model(ledger: Ledger) -> None:
    base = ledger.get("base_model", text)
    revision_key = "model_revision" if ledger.has("model_revision") else "revision_of_model"
    revision = ledger.get(revision_key, text)
    if base is None:
        ledger.bad("base_model", "base_model: missing, so there is nothing to train", "add `base_model:`")
        return
    name = shared.model_path(ledger, base)
    pinned = f"{name}@{revision}" if revision and name == base else name
    ledger.maps("base_model", "base", pinned)
    if pinned == name:
        ledger.ignores(revision_key, "a directory has no revision; bases are pinned by digest")
    else:
        ledger.maps(revision_key, "base", pinned)
    if revision_key == "model_revision":
        ledger.ignores("revision_of_model", "model_revision says it")
    for key in ("base_model_config", "tokenizer_config"):
        if ledger.get(key) == base:
            ledger.ignores(key, "the base itself, as here")
        else:
            ledger.refuses(key, "configuration or tokenizer come from somewhere else", "the recipe takes the base's own",
                           "put model, configuration and tokenizer into one directory, and name it in base")


def adapter(ledger: Ledger) -> None:
    """What is trained: the adapter's kind, size and place, or everything."""
    kind = ledger.get("adapter", text)
    four, eight = ledger.get("load_in_4bit", flag, False), ledger.get("load_in_8bit", flag, False)
    quantised = shared.QUANTISED
    if kind in ("lora", "qlora"):
        ledger.maps("adapter", "method.type", kind, "NF4 with double quantisation" if kind == "qlora" else "")
    elif kind:
        ledger.refuses("adapter", f"the adapter is a {kind}", NO_LORA, "take one of the recipe's methods (docs/methods.md)",
                       "method.type", "lora")
    else:
        ledger.adds("method.type", "full", "`adapter` is not set: all parameters are trained")
    for key, on in (("load_in_4bit", four), ("load_in_8bit", eight)):
        if on and kind == "qlora" and key == "load_in_4bit":
            ledger.maps(key, "method.type", "qlora")
        elif on:
            ledger.refuses(key, quantised.why, quantised.consequence, quantised.fix)
        else:
            ledger.ignores(key, "off")
    if not kind:
        shared.nothing_of_an_adapter(ledger, ("lora_r", "lora_alpha", "peft_use_rslora", "peft_use_dora"))
        return
    rank(ledger, "lora_r", "lora_alpha", "peft_use_rslora")
    shared.dora(ledger, "peft_use_dora", kind == "qlora")


def rank(ledger: Ledger, r: str, alpha: str, stabilised: str, defaults: tuple[int, float] | None = None) -> None:
    """alpha scales by alpha / rank here; rsLoRA's alpha / sqrt(rank) is the same as alpha x sqrt(rank) here
    (Kalajdzievski 2023, arXiv 2312.03732)."""
    size = ledger.get(r, count, defaults[0] if defaults else None)
    scale = ledger.get(alpha, number, None)
    root = ledger.get(stabilised, flag, False)
    ledger.maps(r, "method.rank", size)
    if size is not None:
        ledger.adds("method.rank", size, f"{r} is not set: {ledger.tool.title}'s default")
    if scale is None and defaults and size is not None:
        scale = size * defaults[1]
    if root and scale is not None and size is not None:
        same = round(scale * size ** 0.5, 6)
        how = f"{scale:g} x sqrt({size}): {stabilised} scales by alpha / sqrt(rank), the recipe by alpha / rank"
        ledger.maps(alpha, "method.alpha", same, how)
        ledger.maps(stabilised, "method.alpha", same, how)
        ledger.adds("method.alpha", same, how)
        return
    if root:
        ledger.refuses(stabilised, "the adapter is scaled by alpha / sqrt(rank)", "the recipe scales by alpha / rank",
                       f"set {r} and {alpha} too, or method.alpha to alpha x sqrt(rank)")
    ledger.ignores(stabilised, "off") if not root else None
    if scale is not None:
        ledger.maps(alpha, "method.alpha", float(scale))
        ledger.adds("method.alpha", float(scale), f"{alpha} is not set: {ledger.tool.title} takes "
                    f"{defaults[1] if defaults else 1}"
                    " x the rank")


def targets(ledger: Ledger) -> None:
    if not ledger.has("adapter"):
        shared.nothing_of_an_adapter(ledger, ("lora_target_linear", "lora_target_modules"))
        return
    everything = ledger.get("lora_target_linear", flag, False)
    modules = ledger.get("lora_target_modules", names)
    if everything or modules in (["all-linear"], ["all_linear"]):
        ledger.maps("lora_target_linear", "method.targets", "all-linear")
        ledger.maps("lora_target_modules", "method.targets", "all-linear",
                    "lora_target_linear adds all others" if everything else "")
    elif modules:
        regex = isinstance(ledger.value("lora_target_modules"), str) and any(c in modules[0] for c in "^$*+?()[]|\\")
        if regex:
            ledger.refuses("lora_target_modules", "a regular expression chooses the layers",
                           "the recipe takes all linear layers",
                           "list the names of the layers in method.targets", "method.targets", "all-linear")
        else:
            ledger.maps("lora_target_modules", "method.targets", modules)
        ledger.ignores("lora_target_linear", "off")
    else:
        ledger.ignores("lora_target_linear", "off")


def overflow(ledger: Ledger) -> None:
    what = ledger.get("excess_length_strategy", text, "drop").lower()
    if what == "truncate":
        ledger.refuses("excess_length_strategy", "longer rows are cut, answers and stop tokens with them",
                       "the recipe stops at a longer row", "drop them (data.on_overflow: drop), or raise data.max_tokens",
                       "data.on_overflow", "error")
        return
    ours = {"drop": "drop", "raise": "error"}.get(what)
    if ours is None:
        ledger.bad("excess_length_strategy", f"excess_length_strategy: drop, truncate or raise (got {shown(what)})")
    ledger.maps("excess_length_strategy", "data.on_overflow", ours)
    ledger.adds("data.on_overflow", ours, "excess_length_strategy is not set: axolotl drops longer rows; here they are counted")


def template(ledger: Ledger) -> None:
    """The base's own template unless a file is named."""
    chosen = ledger.get("chat_template", text)
    jinja = ledger.get("chat_template_jinja", text)
    if jinja and len(jinja) < 500 and "{" not in jinja:
        found = shared.find(ledger, jinja)
        path = shared.relative(ledger, found) if found else jinja
        ledger.maps("chat_template_jinja", "data.template", path, "" if found else f"{jinja} is not there now")
        ledger.ignores("chat_template", "chat_template_jinja is the template")
        return
    if jinja:
        ledger.refuses("chat_template_jinja", "the chat template stands in the file itself", "the recipe uses the base's own",
                       "write it to a file and name that in data.template")
    same = chosen == "tokenizer_default"
    if same or (chosen == "jinja" and jinja):
        ledger.ignores("chat_template", "the base's own, as here" if same else "see chat_template_jinja")
    elif chosen:
        named_template(ledger, "chat_template", chosen, str(ledger.given.get("base_model")))


def named_template(ledger: Ledger, key: str, chosen: str, base: str) -> None:
    """A template by name: the base's own is used, and said to be another unless the names are of one family."""
    family = chosen.removeprefix("tokenizer_default_fallback_").lower().rstrip("0123456789._-").split("_")[0].split("-")[0]
    family = family.rstrip("0123456789.")
    if len(family) > 2 and family in base.lower():
        ledger.ignores(key, f"the base's own template is used, and the base is of the family {family}: `tunesmith data show` "
                       "shows it, token by token")
    else:
        ledger.refuses(key, f"the template {chosen!r} is put on, whatever the base's own is",
                       "the recipe trains and serves with the base's own template",
                       "write the template to a Jinja file and name it in data.template, if the base has none or another")


def what_is_trained(ledger: Ledger) -> None:
    """Preference, reward and pretraining data make another training altogether."""
    for key in ("rl", "reward_model", "process_reward_model", "pretraining_dataset"):
        value = ledger.get(key)
        if value in (None, False):
            ledger.ignores(key, "off")
        else:
            ledger.bad(key, f"{key}: {shown(value)} is another training than answers to questions",
                       f"{shared.NO_TRAINING_TEXT}; import the file of a supervised fine-tuning")


def tracking(ledger: Ledger) -> None:
    shared.tracking(ledger, "mlflow_tracking_uri", ("wandb_project", "mlflow_experiment_name"))


def saves(ledger: Ledger) -> None:
    shared.every(ledger, "save_steps", "save_strategy", "train.checkpoint.every_steps", "set train.checkpoint.every_steps")
    shared.every(ledger, "eval_steps", "eval_strategy", "train.eval_every_steps", "set train.eval_every_steps")


def special_tokens(ledger: Ledger) -> None:
    changed = ledger.get("special_tokens")
    if isinstance(changed, dict) and set(changed) <= {"pad_token"}:
        ledger.ignores("special_tokens", "rows are packed here without padding, so no pad token is needed")
    else:
        ledger.refuses("special_tokens", "special tokens are changed", "the recipe uses the base's own tokens",
                       "put a tokenizer that has them beside the base's weights, and name that directory in base")


def defaults(ledger: Ledger) -> None:
    if not ledger.has("learning_rate"):
        ledger.bad("learning_rate", "learning_rate: missing, and axolotl has no default", "add `learning_rate:`")
    ledger.adds("train.seed", 42, "seed is not set: axolotl's default")


def modules(ledger: Ledger) -> None:
    key = "lora_modules_to_save"
    if not ledger.has("adapter"):
        shared.nothing_of_an_adapter(ledger, (key,))
        return
    ledger.refuses(key, f"{', '.join(ledger.get(key, names, []))}: {shared.MODULES_WHY}", shared.MODULES_THEN,
                   shared.MODULES_FIX)


COPIES = {
    "learning_rate": Copy("train.learning_rate", number),
    "lora_dropout": Copy("method.dropout", number, "above 0 trains on the plain path, which is slower"),
    "loraplus_lr_ratio": Copy("method.lora_plus_ratio", number),
    "weight_decay": Copy("train.weight_decay", number),
    "float32": Copy("train.dtype", lambda value: "float32" if flag(value) else "auto"),
    "seed": Copy("train.seed", whole),
    "save_total_limit": Copy("train.checkpoint.keep", count),
}
JOINTS = (
    Joint("rl reward_model process_reward_model pretraining_dataset", "",
          "supervised fine-tuning only; anything else is an error", what_is_trained),
    Joint("output_dir", "name", "its last parts, else the file's name", lambda ledger: shared.run_name(ledger, "output_dir")),
    Joint("base_model model_revision revision_of_model base_model_config tokenizer_config", "base",
          "name@revision, or the path of a directory", model),
    Joint("datasets test_datasets", "data.train, data.test, data.format",
          "files, hf:owner/name[@revision]:split, and the format of their rows; each nested key is accounted for", datasets),
    Joint("adapter load_in_4bit load_in_8bit lora_r lora_alpha peft_use_rslora peft_use_dora",
          "method.type, method.rank, method.alpha, method.dora", "no adapter is full; rsLoRA becomes alpha x sqrt(rank)",
          adapter),
    Joint("lora_target_linear lora_target_modules", "method.targets", "all-linear, or the names", targets),
    Joint("special_tokens", "", "a pad token alone is not needed; others are not supported", special_tokens),
    Joint("lora_modules_to_save", "", "not supported: whole modules beside the adapter", modules),
    Joint("micro_batch_size gradient_accumulation_steps sample_packing sequence_len",
          "train.tokens_per_step, train.tokens_per_pack, data.max_tokens",
          "packed: rows x accumulation x sequence_len; else rows x accumulation x mean tokens of a row",
          lambda ledger: shared.steps(ledger, BATCH)),
    Joint("excess_length_strategy", "data.on_overflow", "drop is drop, raise is error, truncate is not supported", overflow),
    Joint("num_epochs max_steps", "train.epochs, train.max_steps", "the total",
          lambda ledger: shared.epochs(ledger, "num_epochs", 1)),
    Joint("lr_scheduler warmup_steps warmup_ratio", "train.schedule, train.warmup",
          "warmup_steps / max_steps when that is known",
          lambda ledger: shared.learning_rate(ledger, "lr_scheduler", 0.03, "cosine")),
    Joint("optimizer adam_beta1 adam_beta2 adam_epsilon", "", "AdamW with torch's defaults",
          lambda ledger: shared.optimizer(ledger, "optimizer")),
    Joint("max_grad_norm", "train.clip_norm", "0 is no clipping: a very large norm", shared.clip_norm),
    Joint("save_steps save_strategy eval_steps eval_strategy", "train.checkpoint.every_steps, train.eval_every_steps",
          "steps; a share of them when max_steps is known", saves),
    Joint("val_set_size", "data.split.test", "a share, or rows / all rows",
          lambda ledger: shared.held_out(ledger, "val_set_size", "test_datasets")),
    Joint("chat_template chat_template_jinja", "data.template", "a Jinja file; named templates are not put on", template),
    Joint("wandb_project mlflow_tracking_uri mlflow_experiment_name", "track.mlflow, track.experiment",
          "MLflow takes the place of other trackers", tracking),
    Joint("", "train.seed", "axolotl's default", defaults),
)
TOOL = Tool(name="axolotl", title="axolotl", version="0.19.0", copies=COPIES, joints=JOINTS, no_equal=NO_EQUAL, skipped=SKIPPED,
            signs=frozenset(["base_model", "datasets", "pretraining_dataset", "test_datasets", "sequence_len",
                             "micro_batch_size", "num_epochs", "adapter", "lora_r", "lora_target_linear", "lora_target_modules",
                             "val_set_size", "sample_packing", "lr_scheduler", "optimizer", "special_tokens", "load_in_4bit",
                             "load_in_8bit", "dataset_prepared_path", "chat_template", "lora_modules_to_save",
                             "train_on_inputs", "flash_attention"]))
