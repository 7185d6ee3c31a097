"""LLaMA-Factory's keys that a recipe has a word for, and those that mean something only together.

Facts from the argument classes of LLaMA-Factory 0.9.5 (hparams) and of transformers' Seq2SeqTrainingArguments below them.
Keys that change nothing here, or have no equal, are in `llamafactory_keys`.
"""

from __future__ import annotations

from tunesmith.recipe.foreign import shared
from tunesmith.recipe.foreign.axolotl import named_template, rank
from tunesmith.recipe.foreign.ledger import Ledger, shown
from tunesmith.recipe.foreign.llamafactory_data import datasets
from tunesmith.recipe.foreign.llamafactory_keys import NO_EQUAL, SKIPPED
from tunesmith.recipe.foreign.rules import Copy, Joint, Tool, count, flag, names, number, text, whole

BATCH = shared.Batch(rows="per_device_train_batch_size", accumulation="gradient_accumulation_steps", rows_default=8,
                     length="cutoff_len", length_default=2048, packing=("packing", "neat_packing"))


def model(ledger: Ledger) -> None:
    base = ledger.get("model_name_or_path", text)
    revision = ledger.get("model_revision", text, "main")
    if base is None:
        ledger.bad("model_name_or_path", "model_name_or_path: missing, so there is nothing to train", "add it")
        return
    name = shared.model_path(ledger, base)
    pinned = f"{name}@{revision}" if revision != "main" and name == base else name
    ledger.maps("model_name_or_path", "base", pinned)
    if pinned == name:
        ledger.ignores("model_revision", "the newest, or a directory; bases are pinned by digest")
    else:
        ledger.maps("model_revision", "base", pinned)


def adapter(ledger: Ledger) -> None:
    kind, four = ledger.get("finetuning_type", text, "lora"), _quantised(ledger)
    if kind == "full":
        ledger.maps("finetuning_type", "method.type", "full")
        shared.nothing_of_an_adapter(ledger, ("lora_rank", "lora_alpha", "use_rslora", "lora_target", "additional_target",
                                              "use_dora", "pissa_init"))
        return
    if kind == "lora":
        ledger.maps("finetuning_type", "method.type", "qlora" if four else "lora")
    else:
        what = {"freeze": "some layers of the base are trained"}
        ledger.refuses("finetuning_type", what.get(kind, f"the method is {kind}"), "the recipe trains a LoRA adapter",
                       "take one of the recipe's methods (docs/methods.md)", "method.type", "qlora" if four else "lora")
    if four:
        ledger.adds("method.type", "qlora", "quantization_bit is 4")
    rank(ledger, "lora_rank", "lora_alpha", "use_rslora", (8, 2))
    modules = ledger.get("lora_target", names, ["all"])
    ledger.maps("lora_target", "method.targets", "all-linear" if modules == ["all"] else modules)
    ledger.adds("method.targets", "all-linear", "lora_target is not set: LLaMA-Factory takes all")
    if ledger.has("additional_target"):
        ledger.refuses("additional_target", f"{', '.join(ledger.get('additional_target', names))}: {shared.MODULES_WHY}",
                       shared.MODULES_THEN, shared.MODULES_FIX)
    dora = shared.dora(ledger, "use_dora", four)
    if not ledger.get("pissa_init", flag, False):
        ledger.ignores("pissa_init", "off")
    elif four or dora:
        ledger.refuses("pissa_init", "the adapter begins with the base's main directions (PiSSA)",
                       "the recipe begins as the LoRA paper does", "PiSSA goes with plain LoRA alone: method.init")
    else:
        ledger.maps("pissa_init", "method.init", "pissa")


def _quantised(ledger: Ledger) -> bool:
    """Whether the base is in NF4; other ways are refused, and said."""
    bits = ledger.get("quantization_bit", count)
    if bits is None:
        return False
    usual = {"quantization_method": "bnb", "quantization_type": "nf4", "finetuning_type": "lora"}
    if bits != 4 or any(ledger.get(key, text, value) != value for key, value in usual.items()):
        ledger.refuses("quantization_bit", shared.QUANTISED.why, shared.QUANTISED.consequence, shared.QUANTISED.fix)
        return False
    ledger.maps("quantization_bit", "method.type", "qlora", "NF4 with double quantisation")
    if not ledger.get("double_quantization", flag, True):
        ledger.adds("method.double_quant", False, "double_quantization is off")
    return True


def what_is_trained(ledger: Ledger) -> None:
    stage = ledger.get("stage", text, "sft")
    if stage != "sft":
        ledger.bad("stage", f"stage: {shown(stage)} is another training than answers to questions",
                   f"{shared.NO_TRAINING_TEXT}; import the file of a supervised fine-tuning")
    ledger.maps("stage", "objective.type", "sft")
    if ledger.get("do_train", flag, True):
        ledger.ignores("do_train", "a recipe is for training")
    else:
        ledger.bad("do_train", "do_train: false, so there is nothing to train", "import the YAML of a training")


def template(ledger: Ledger) -> None:
    chosen = ledger.get("template", text)
    if chosen:
        named_template(ledger, "template", chosen, str(ledger.given.get("model_name_or_path")))


def limit(ledger: Ledger) -> None:
    """`max_samples` is of each dataset, and the first rows there; a cap draws them by content and seed."""
    most = ledger.get("max_samples", count)
    if most is not None:
        ledger.maps("max_samples", "data.mix", {"by": "source", "caps": most}, f"at most {most} rows of each file, drawn by "
                    f"their "
                    "content; there the first ones")


def saves(ledger: Ledger) -> None:
    shared.every(ledger, "save_steps", "save_strategy", "train.checkpoint.every_steps", "set train.checkpoint.every_steps")
    shared.every(ledger, "eval_steps", "eval_strategy", "train.eval_every_steps", "set train.eval_every_steps", unset="no")


def tracking(ledger: Ledger) -> None:
    shared.tracking(ledger, None, ("project",))


def defaults(ledger: Ledger) -> None:
    ledger.adds("train.learning_rate", 5e-5, "learning_rate is not set: LLaMA-Factory's default")
    ledger.adds("train.seed", 42, "seed is not set: LLaMA-Factory's default")
    ledger.adds("data.on_overflow", "error", "LLaMA-Factory cuts longer rows, answers and stop tokens with them; here they are "
                "an "
                "error until you raise data.max_tokens or write drop")


COPIES = {
    "learning_rate": Copy("train.learning_rate", number),
    "lora_dropout": Copy("method.dropout", number, "above 0 trains on the plain path, which is slower"),
    "loraplus_lr_ratio": Copy("method.lora_plus_ratio", number),
    "weight_decay": Copy("train.weight_decay", number),
    "seed": Copy("train.seed", whole),
    "save_total_limit": Copy("train.checkpoint.keep", count),
    "max_new_tokens": Copy("eval.max_new_tokens", count, "of answers in the evaluation"),
}
JOINTS = (
    Joint("stage do_train", "objective.type", "supervised fine-tuning only; anything else is an error", what_is_trained),
    Joint("output_dir", "name", "its last parts, else the file's name", lambda ledger: shared.run_name(ledger, "output_dir")),
    Joint("model_name_or_path model_revision", "base", "name@revision, or the path of a directory", model),
    Joint("dataset eval_dataset dataset_dir", "data.train, data.test, data.format",
          "dataset_info.json says where the rows are and how they look; it is looked for in dataset_dir, from here and from "
          "above the file", datasets),
    Joint("finetuning_type quantization_bit lora_rank lora_alpha use_rslora lora_target additional_target use_dora pissa_init",
          "method.type, method.rank, method.alpha, method.targets, method.dora, method.init",
          "4 bits are qlora; rsLoRA becomes alpha x sqrt(rank); alpha is twice the rank when it is not set", adapter),
    Joint("per_device_train_batch_size gradient_accumulation_steps packing neat_packing cutoff_len",
          "train.tokens_per_step, train.tokens_per_pack, data.max_tokens",
          "packed: rows x accumulation x cutoff_len; else rows x accumulation x mean tokens of a row",
          lambda ledger: shared.steps(ledger, BATCH)),
    Joint("num_train_epochs max_steps", "train.epochs, train.max_steps", "the total",
          lambda ledger: shared.epochs(ledger, "num_train_epochs", 3)),
    Joint("lr_scheduler_type warmup_steps warmup_ratio", "train.schedule, train.warmup",
          "warmup_steps / max_steps when that is known",
          lambda ledger: shared.learning_rate(ledger, "lr_scheduler_type", 0.0, "linear")),
    Joint("optim adam_beta1 adam_beta2 adam_epsilon", "", "AdamW with torch's defaults",
          lambda ledger: shared.optimizer(ledger, "optim")),
    Joint("max_grad_norm", "train.clip_norm", "0 is no clipping: a very large norm", shared.clip_norm),
    Joint("save_steps save_strategy eval_steps eval_strategy", "train.checkpoint.every_steps, train.eval_every_steps",
          "steps; a share of them when max_steps is known", saves),
    Joint("val_size", "data.split.test", "a share, or rows / all rows",
          lambda ledger: shared.held_out(ledger, "val_size", "eval_dataset")),
    Joint("template", "", "the base's own template is used; a template of another family is not supported", template),
    Joint("max_samples", "data.mix", "caps of each source", limit),
    Joint("report_to project", "track.mlflow, track.experiment", "MLflow takes the place of other trackers", tracking),
    Joint("", "train.learning_rate, train.seed, data.on_overflow", "LLaMA-Factory's defaults", defaults),
)
TOOL = Tool(name="llamafactory", title="LLaMA-Factory", version="0.9.5", copies=COPIES, joints=JOINTS, no_equal=NO_EQUAL,
            skipped=SKIPPED, signs=frozenset([
                "model_name_or_path", "stage", "finetuning_type", "dataset", "dataset_dir", "template", "cutoff_len",
                "lora_target", "lora_rank", "num_train_epochs", "per_device_train_batch_size", "val_size", "do_train",
                "lr_scheduler_type", "quantization_bit", "max_samples", "overwrite_cache", "plot_loss", "eval_dataset",
                "preprocessing_num_workers", "adapter_name_or_path"]))
