"""One run of TRL's SFTTrainer with PEFT, for train_vs_peers.py, which starts it with the Python that has TRL.

    python peer_trl.py JOB.json

JOB has model (directory), rows (input_ids and labels), rows_a_step, steps, learning_rate, rank, alpha, dtype, sampling (random
or group_by_length), packing, checkpointing, qlora, out. Prints one JSON line: seconds of each step and the real tokens in it,
and the peak resident set.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
from trl import SFTConfig, SFTTrainer


class Clock(TrainerCallback):
    def __init__(self):
        self.seconds, self.began = [], 0.0

    def on_step_begin(self, *_args, **_kwargs):
        self.began = time.perf_counter()

    def on_step_end(self, *_args, **_kwargs):
        self.seconds.append(time.perf_counter() - self.began)


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.manual_seed(0)
    more = {}
    if job["qlora"]:
        more["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                                                         bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]), **more)
    tokens: list[int] = []

    class Counting(SFTTrainer):
        def training_step(self, model, inputs, *args, **kwargs):
            mask = inputs.get("attention_mask")
            tokens.append(int(mask.sum()) if mask is not None else inputs["input_ids"].numel())
            return super().training_step(model, inputs, *args, **kwargs)

    clock = Clock()
    config = SFTConfig(
        output_dir=job["out"], per_device_train_batch_size=job["rows_a_step"], max_steps=job["steps"], use_cpu=True, bf16=False,
        learning_rate=job["learning_rate"], lr_scheduler_type="constant", max_length=1024, packing=job["packing"],
        gradient_checkpointing=job["checkpointing"], train_sampling_strategy=job["sampling"], logging_steps=1,
        report_to="none", save_strategy="no", seed=0, dataloader_pin_memory=False, disable_tqdm=True)
    trainer = Counting(
        model=model, args=config, processing_class=AutoTokenizer.from_pretrained(job["model"]), callbacks=[clock],
        train_dataset=Dataset.from_list([{"input_ids": row["input_ids"], "labels": row["labels"]} for row in job["rows"]]),
        peft_config=LoraConfig(r=job["rank"], lora_alpha=job["alpha"], target_modules="all-linear", task_type="CAUSAL_LM"))
    trainer.train()
    trainer.save_model(job["out"])
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print("RESULT " + json.dumps({"seconds": clock.seconds, "tokens": tokens, "losses": losses, "peak": peak}), flush=True)


if __name__ == "__main__":
    main()
