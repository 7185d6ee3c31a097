"""Tiny models of every family that a GGUF is written of, each with a tokenizer and a template of its kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

WORDS = ("12 Oak Street, Cedar Rapids", "Grüße aus Köln", "def f(x): return [1, 2]", '{"number": "12", "street": "Oak"}',
         "It's what they'll say", "one two three four five six seven", "the cat and the dog", "3.14159 and 2718")
CHATML = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
GEMMA = ("{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
         "{% set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
         "{% for m in turns %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + "
         "(first if loop.first else '') + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
         "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}")
LLAMA3 = ("{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + "
          "m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")
MISTRAL = ("{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
           "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
           "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}")
PHI = ("{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
       "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}")
ODD = ("{% for m in messages %}{% if loop.last %}{{ 'the last: ' }}{% endif %}{{ m['content'] + '<|im_end|>' }}{% endfor %}")
TEMPLATES = {"chatml": CHATML, "gemma": GEMMA, "llama3": LLAMA3, "mistral": MISTRAL, "phi": PHI, "odd": ODD}
ENDS = {"chatml": "<|im_end|>", "gemma": "<end_of_turn>", "llama3": "<|eot_id|>", "mistral": "</s>", "phi": "<|end|>",
        "odd": "<|im_end|>"}
SPECIALS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|start_header_id|>",
            "<|end_header_id|>", "<|eot_id|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
FAMILIES = {  # what cuts texts, template, changes to the config
    "llama": ("llama-bpe", "llama3", {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64}}),
    "mistral": ("sentencepiece", "mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", "chatml", {}),
    "qwen3": ("smollm", "chatml", {"tie_word_embeddings": True}),
    "gemma": ("sentencepiece", "gemma", {"tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh"}),
    "gemma2": ("sentencepiece", "gemma", {"tie_word_embeddings": True, "query_pre_attn_scalar": 16, "sliding_window": 32,
                                          "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3_text": ("sentencepiece", "gemma", {"tie_word_embeddings": True, "query_pre_attn_scalar": 16, "sliding_window": 16,
                                               "num_hidden_layers": 6}),
    "phi3": ("gpt-2", "phi", {"sliding_window": None, "original_max_position_embeddings": 512}),
}


def byte_level(cut: str, specials: list[str]):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    from tunesmith.exports.gguf.vocabulary import CL100K, CONTRACTIONS

    bpe = Tokenizer(models.BPE(ignore_merges=cut == "llama-bpe"))
    if cut in ("llama-bpe", "qwen2"):
        pattern = CONTRACTIONS + CL100K % ("{1,3}" if cut == "llama-bpe" else "")
        parts = [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    else:
        parts = [pre_tokenizers.Digits(individual_digits=True)] * (cut == "smollm") + [pre_tokenizers.ByteLevel(False)]
    bpe.pre_tokenizer = pre_tokenizers.Sequence(parts)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(WORDS * 3, trainers.BpeTrainer(vocab_size=420, special_tokens=specials, show_progress=False,
                                                           initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return bpe


def sentencepiece(specials: list[str]):
    """As a converted SentencePiece model is: a merge for every way to split a piece, in the order of the pieces; bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers

    learned = Tokenizer(models.BPE())
    learned.normalizer = normalizers.Replace(" ", "▁")
    learned.train_from_iterator([w + " " + w for w in WORDS], trainers.BpeTrainer(vocab_size=200, show_progress=False))
    pieces = [t for t, _ in sorted(learned.get_vocab().items(), key=lambda item: item[1])]
    vocab = {t: i for i, t in enumerate([*specials, *(f"<0x{b:02X}>" for b in range(256)), *pieces])}
    merges = [(t[:i], t[i:]) for t in pieces for i in range(1, len(t)) if t[:i] in vocab and t[i:] in vocab]
    bpe = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    bpe.normalizer = normalizers.Replace(" ", "▁")
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    bpe.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    return bpe


def make_tokenizer(cut: str, template: str):
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    made = sentencepiece(SPECIALS) if cut == "sentencepiece" else byte_level(cut, SPECIALS)
    bos = template in ("gemma", "llama3", "mistral")
    if bos:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token=ENDS[template], pad_token="</s>",
                                   bos_token="<s>" if bos else None, chat_template=TEMPLATES[template])


def make_base(folder: Path, family: str, **changes) -> Path:
    """A base on disk whose attention, norms and biases all matter: nothing is near 0 or 1 for want of training."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    cut, template, own = FAMILIES[family]
    tokenizer = make_tokenizer(cut, template)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16,
             "num_key_value_heads": 2, "max_position_embeddings": 512, "vocab_size": len(tokenizer) + 6, "pad_token_id": 2,
             "bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id, "tie_word_embeddings": False}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**shape | own | changes))
    offset = 0.0 if family.startswith("gemma") else 1.0
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.normal_(offset if "norm" in name else 0.0, 0.2)
            else:
                p.normal_(0.0, 0.25)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def base_of(tmp_path_factory):
    """`base_of("qwen2")`: a directory, made once. With changes to its config it is made anew."""
    made: dict[str, Path] = {}

    def find(family: str, **changes) -> Path:
        if changes:
            return make_base(tmp_path_factory.mktemp(family), family, **changes)
        if family not in made:
            made[family] = make_base(tmp_path_factory.mktemp(family), family)
        return made[family]

    return find


@pytest.fixture(scope="session")
def tokenizer_like():
    """`tokenizer_like("qwen2", "chatml")`: one that cuts texts so and has that template."""
    return make_tokenizer


@pytest.fixture(scope="session")
def job_of(base_of, tmp_path_factory):
    """`job_of("qwen2", quant="q8_0")`: a Job with a LoRA on that base that changes its answers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tunesmith import methods
    from tunesmith.exports.job import Job
    from tunesmith.models.base import Base
    from tunesmith.recipe.methods import Lora

    made: dict[str, Job] = {}

    def find(family: str, quant: str | None = None) -> Job:
        if family not in made:
            base, adapter = base_of(family), tmp_path_factory.mktemp(f"{family}-adapter")
            torch.manual_seed(1)
            model = methods.attach(AutoModelForCausalLM.from_pretrained(base), Lora(rank=4, alpha=8), str(base))
            with torch.no_grad():
                for p in model.parameters():
                    if p.requires_grad:
                        p += 0.05 * torch.randn(p.shape)
            methods.save(model, adapter)
            made[family] = Job(name="tiny", base=Base(str(base), "sha256:0", base), adapter=adapter,
                               tokenizer=AutoTokenizer.from_pretrained(base), trained_dtype="float32", dtype="float16")
        return replace(made[family], quant=quant, dtype="bfloat16" if quant == "bf16" else "float16")

    return find


@pytest.fixture(scope="session")
def asked_of(job_of):
    """`asked_of(job)`: (questions, what the adapter on its base answers them, the job with its rounding measured)."""
    from tunesmith.evals.items import Item
    from tunesmith.exports.probe import ask, questions
    from tunesmith.exports.verdict import rounding

    texts = ("12 Oak Street", "Who is the cat?", "Grüße aus Köln und 3.14", "one two three four five the dog and the cat")
    items = [Item(f"q{i}", [{"role": "user", "content": text}]) for i, text in enumerate(texts)]
    items.append(Item("turns", [{"role": "user", "content": "Oak"}, {"role": "assistant", "content": "Street"},
                                {"role": "user", "content": "and now?"}]))
    made: dict = {}

    def find(job):
        key = (job.adapter, job.dtype, job.template)
        if key not in made:
            asked = questions(job.tokenizer, items)
            model = job.adapted()
            reference = ask(model, job.tokenizer, asked, new_tokens=16)
            made[key] = asked, reference, rounding(job, model, asked, reference)
        asked, reference, measured = made[key]
        return asked, reference, replace(job, rounding=measured)

    return find
