"""One run of TRL's DPOTrainer with PEFT, for dpo_vs_trl.py, which starts it with the Python that has TRL.

    python peer_trl_dpo.py JOB.json

JOB has model and adapter (directories), pairs (prompt_ids, chosen_ids, rejected_ids), pairs_a_step, steps, learning_rate, beta,
rank, alpha, dtype, checkpointing, precompute, out. Prints one JSON line: seconds and loss of each step, the peak resident set,
and the seconds that a step's reference took before the training.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer


class Clock(TrainerCallback):
    def __init__(self):
        self.seconds, self.began = [], 0.0

    def on_step_begin(self, *_args, **_kwargs):
        self.began = time.perf_counter()

    def on_step_end(self, *_args, **_kwargs):
        self.seconds.append(time.perf_counter() - self.began)


class Prepared(DPOTrainer):
    def _prepare_dataset(self, dataset, *_args, **_kwargs):
        """The pairs are tokens already."""
        return dataset


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.manual_seed(0)
    clock = Clock()
    config = DPOConfig(
        output_dir=job["out"], per_device_train_batch_size=job["pairs_a_step"], max_steps=job["steps"], use_cpu=True,
        bf16=False, learning_rate=job["learning_rate"], lr_scheduler_type="constant", max_length=None, beta=job["beta"],
        gradient_checkpointing=job["checkpointing"], precompute_ref_log_probs=job["precompute"],
        train_sampling_strategy="sequential", logging_steps=1, report_to="none", save_strategy="no", seed=0,
        dataloader_pin_memory=False, disable_tqdm=True)
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]))
    began = time.perf_counter()
    trainer = Prepared(
        model=model, args=config, processing_class=AutoTokenizer.from_pretrained(job["model"]), callbacks=[clock],
        train_dataset=Dataset.from_list(job["pairs"]),
        peft_config=LoraConfig(r=job["rank"], lora_alpha=job["alpha"], target_modules="all-linear", task_type="CAUSAL_LM"))
    before = time.perf_counter() - began if job["precompute"] else 0.0
    set_peft_model_state_dict(trainer.model, load_file(Path(job["adapter"]) / "adapter_model.safetensors"))
    trainer.train()
    trainer.save_model(job["out"])
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print("RESULT " + json.dumps({"seconds": clock.seconds, "losses": losses, "peak": peak,
                                  "reference_seconds": before / job["steps"]}), flush=True)


if __name__ == "__main__":
    main()
