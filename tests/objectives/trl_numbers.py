"""What TRL 1.16 computes for the model and the rows of `tiny.py`: losses, rewards, and the norm of every gradient.

    PYTHONPATH=tests/objectives python -P tests/objectives/trl_numbers.py > tests/objectives/trl.json

The Python has trl==1.16 and the CPU build of torch. The tests read the file; they do not need TRL.
"""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import redirect_stdout

import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from tiny import KTO_SETTINGS, ROWS_A_STEP, SETTINGS, SFT_SETTINGS, base_model, chats, fill, labelled, pairs
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer


class Dpo(DPOTrainer):
    def _prepare_dataset(self, dataset, *_args, **_kwargs):
        return dataset


class Kto(KTOTrainer):
    def _prepare_dataset(self, dataset, *_args, **_kwargs):
        return dataset


def tokenizer():
    from tokenizers import Tokenizer, models

    words = models.WordLevel({f"w{i}": i for i in range(61)}, unk_token="w0")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), eos_token="w2", pad_token="w2", bos_token="w1")


def numbers(trainer_class, config, rows: list[dict]) -> dict:
    adapter = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = trainer_class(model=base_model(), args=config, processing_class=tokenizer(), peft_config=adapter,
                            train_dataset=Dataset.from_list(rows))
    model = trainer.model
    fill(model, "lora_")
    model.train()
    batch = trainer.data_collator([dict(row) for row in rows])
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.requires_grad}
    metrics = {name: values[0] for name, values in trainer._metrics["train"].items() if not name.startswith(("logits", "num_"))}
    return {"loss": loss.item(), "metrics": metrics, "gradient_norms": norms}


def curve(config) -> dict:
    """Loss and gradient norm of every step, TRL's whole loop around them."""
    adapter = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(model=base_model(), args=config, processing_class=tokenizer(), peft_config=adapter,
                         train_dataset=Dataset.from_list(chats()))
    fill(trainer.model, "lora_")
    with redirect_stdout(sys.stderr):  # the loop prints what it logs
        trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {name: [entry[name] for entry in steps] for name in ("loss", "grad_norm")}


def main() -> None:
    found = {"trl": trl.__version__, "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as place:
        common = {"output_dir": place, "per_device_train_batch_size": 6, "use_cpu": True, "bf16": False, "report_to": "none",
                  "gradient_checkpointing": False, "max_length": None, "disable_tqdm": True, "remove_unused_columns": False}
        for name, (loss, beta) in SETTINGS.items():
            found[name] = numbers(Dpo, DPOConfig(**common, loss_type=[loss], beta=beta), pairs())
        for name, (beta, good, bad) in KTO_SETTINGS.items():
            found[name] = numbers(Kto, KTOConfig(**common, beta=beta, desirable_weight=good, undesirable_weight=bad,
                                                 train_sampling_strategy="sequential"), labelled())
        for name, rate in SFT_SETTINGS.items():
            found[name] = curve(SFTConfig(**common | {"per_device_train_batch_size": ROWS_A_STEP}, learning_rate=rate,
                                          lr_scheduler_type="constant", num_train_epochs=1, logging_steps=1, save_strategy="no",
                                          train_sampling_strategy="sequential"))
    json.dump(found, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
