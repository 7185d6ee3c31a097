"""Is this training still worth its time? Judged from the lines of metrics.jsonl, and from nothing else.

A run stops, with what, at which step, why and which knob, when going on would end with a wrong model. It warns and goes on
when a person should look. Since every judgement follows from the records, a resumed run that has read them again comes to
the same ones at the same steps (`Health.observe` of every record up to the checkpoint).

False alarms are worse than late ones: a stopped run of ten hours is lost. So each check wants several steps in a row, and
more than one sign. The thresholds below are told with their reasons; tests/training/test_health.py holds each to a real run
that must trigger it and to ordinary ones that must not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING

from tunesmith.errors import TrainingError

if TYPE_CHECKING:
    from tunesmith.data.pack import Step

REACH = 1e-7
"""AdamW moves a number by about one learning rate a step. Where all steps together are less than this, the adapter's part
stays below what float32 can add to a number near 1 (6e-8)."""
MOVED_AFTER = 3
"""Steps after which an adapter must differ from the one it began as. One would do; a first batch may be odd."""
TINY_LOSS = 0.05
"""Nats a token: the right token has 95%. Whoever is there has learned, and nothing more need happen."""

FIRST_LOSS_WITHIN = 0.02
"""Share of the loss before step 1 by which it may differ from what it has to be, or nats where it has to be less than 1."""

LOST_FACTOR = 1.5
"""The loss is lost where it is this many times what it was before step 1: the model is worse than its base. SmolLM2-135M at
a learning rate of 0.05 goes from 2.6 to between 7 and 95."""
DIVERGED_STEPS = 20
"""A warm-up that is too steep can throw the loss up for a dozen steps and recover."""
EXPLODED_FACTOR, UNDONE_SHARE = 20.0, 0.25
EXPLODED_STEPS = 5
"""Single steps of ordinary small runs reach 700 times the median norm and come back; a second in a row is rare. Five in a
row, with a quarter of what the loss had fallen undone, do not come back."""
WINDOW = 50
"""Steps whose gradient norms say what is usual, and whose mean loss is compared."""
NORMS_AT_LEAST = 8
DEAD_NORM = 1e-12
DEAD_STEPS = 20
"""Memorised rows have small gradients, but their loss is tiny as well. Below this Adam's eps (1e-8) eats the step."""

FLAT_SHARE = 0.01
FLAT_WARN_STEPS, FLAT_STOP_STEPS = 150, 300
"""After the warm-up. No window of 50 steps was 1% below where the loss started: that is odd after 150 steps. After 300 it
is an error, if the held-out loss, of the same few rows each time, has not moved by 1% either."""
STARTED = 5
"""The mean of so many first losses, or of a whole window where that is more, is where the loss started."""

RISING_EVALS = 3
RISING_SHARE = 0.01
"""The held-out loss is over its lowest by 1% in three evaluations in a row, while the training loss goes on falling."""
RISING_NATS = 0.02
"""And by so much at least: SmolLM2-135M on addresses goes from 0.0276 to 0.0303 and nothing is wrong with it."""
RISEN_SHARE = 0.05
"""The last evaluation has no successors to confirm it, so it has to be worse by more."""

FORGOTTEN_NATS, FORGOTTEN_TIMES = 0.5, 2
"""Neutral text costs half a nat a token more than before, twice in a row: its perplexity is 1.65 times the base's."""

Warned = dict
"""`{code, step, message, fix}`: one entry of run.json's `warnings`."""


class Health:
    """Takes every record of metrics.jsonl in order.

    `best_step`, `best_loss`: the trained step with the lowest held-out loss so far (the first of equals), or None.
    `stale`: evaluations since then.
    """

    def __init__(self, total: int, warmup: int = 0, patience: int | None = None):
        self.total, self.warmup, self.patience = total, warmup, patience
        self.best_step: int | None = None
        self.best_loss = float("inf")
        self.stale = 0
        self.losses: list[float] = []
        self.evals: list[tuple[int, float]] = []
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self._levels: deque[float] = deque(maxlen=WINDOW)
        self._lowest_window = float("inf")
        self._exploded = self._diverged = self._dead = self._forgetting = 0
        self._warned: set[str] = set()

    @property
    def exhausted(self) -> bool:
        """Early stopping has seen enough: as many evaluations without improvement as `patience` allows."""
        return self.patience is not None and self.stale >= self.patience

    def observe(self, record: dict) -> list[Warned]:
        """What a person should know after this record. Raises TrainingError when the run should not go on."""
        found = (self._held_out(record["step"], record["eval_loss"]) if "eval_loss" in record else
                 self._drifted(record["step"], record["drift_kl"], record["drift_loss"]) if "drift_kl" in record else
                 self._step(record))
        fresh = [w for w in found if w["code"] not in self._warned]
        self._warned |= {w["code"] for w in fresh}
        return fresh

    # ---- a step of training ------------------------------------------------------------------------------------------

    def _step(self, record: dict) -> list[Warned]:
        step, loss, norm = record["step"], record["loss"], record["grad_norm"]
        self.losses.append(loss)
        self._lost(step, loss, norm)
        self._dead_gradient(step, loss, norm)
        return self._flat(step)

    def _lost(self, step: int, loss: float, norm: float) -> None:
        """Stops when the loss is lost for many steps, or for few while the gradient norm agrees."""
        base = max(self.losses[0], self.evals[0][1] if self.evals else 0.0)
        lost = loss > max(LOST_FACTOR * base, TINY_LOSS)
        known = len(self._norms) >= NORMS_AT_LEAST
        usual, level = (median(self._norms), median(self._levels)) if known else (float("inf"), loss)
        undone = loss > max(1.1 * level, level + UNDONE_SHARE * (base - level), TINY_LOSS)
        exploding = norm > EXPLODED_FACTOR * usual and undone
        if not (lost or exploding):
            self._norms.append(norm)
            self._levels.append(loss)
        self._diverged = self._diverged + 1 if lost else 0
        self._exploded = self._exploded + 1 if exploding else 0
        fix = "lower train.learning_rate (LoRA: 1e-4 to 5e-4 is usual), or raise train.warmup"
        if self._exploded >= EXPLODED_STEPS:
            times = norm / max(usual, 1e-30)
            raise TrainingError(f"step {step}: the gradient exploded", fix=fix,
                                why=f"its norm is {norm:.3g}, {times:,.0f} times the {usual:.3g} that is usual in this run; it "
                                    f"is over {EXPLODED_FACTOR:.0f} times since {EXPLODED_STEPS} steps, and the loss went from "
                                    f"{level:.3g} to {loss:.3g}")
        if self._diverged >= DIVERGED_STEPS:
            raise TrainingError(f"step {step}: the loss diverged", fix=fix,
                                why=f"it is {loss:.3g}, {loss / base:.1f} times the {base:.3g} before step 1, and over "
                                    f"{LOST_FACTOR} times since {DIVERGED_STEPS} steps: the model is worse than its base")

    def _dead_gradient(self, step: int, loss: float, norm: float) -> None:
        self._dead = self._dead + 1 if norm < DEAD_NORM and loss > TINY_LOSS else 0
        if self._dead >= DEAD_STEPS:
            raise TrainingError(
                f"step {step}: the gradient is gone", fix="lower train.learning_rate and method.alpha",
                why=f"its norm is {norm:.3g} after {DEAD_STEPS} such steps in a row, and the loss is still {loss:.3g}: "
                    "the adapter grew to where nothing it does makes a difference")

    def _flat(self, step: int) -> list[Warned]:
        if len(self.losses) < WINDOW:
            return []
        window = fmean(self.losses[-WINDOW:])
        self._lowest_window = min(self._lowest_window, window) if step >= 2 * WINDOW else float("inf")
        since = step - self.warmup
        start = max(fmean(self.losses[:STARTED]), fmean(self.losses[:WINDOW]))
        if since < FLAT_WARN_STEPS or window < TINY_LOSS or self._lowest_window < (1 - FLAT_SHARE) * start:
            return []
        why = f"no {WINDOW} steps were {FLAT_SHARE:.0%} below the {start:.4g} that it started at; now it is {window:.4g}"
        fix = "raise train.learning_rate or method.rank, or look at what is trained with `tunesmith data show`"
        unmoved = len(self.evals) > 1 and min(v for _, v in self.evals[1:]) > (1 - FLAT_SHARE) * self.evals[0][1]
        if since >= FLAT_STOP_STEPS and unmoved:
            raise TrainingError(f"step {step}: nothing was learned in {since} steps", fix=fix,
                                why=f"{why}; the held-out loss was {self.evals[0][1]:.4g} and is {self.evals[-1][1]:.4g}")
        return [_warning("flat_loss", step, f"the loss has not fallen in {step} steps: {why}", fix)]

    # ---- a held-out evaluation ---------------------------------------------------------------------------------------

    def _held_out(self, step: int, loss: float) -> list[Warned]:
        self.evals.append((step, loss))
        if step == 0:  # an adapter that was not trained yet is no candidate
            return []
        if loss < self.best_loss:
            self.best_step, self.best_loss, self.stale = step, loss, 0
        else:
            self.stale += 1
        return self._overfit(step)

    def _overfit(self, step: int) -> list[Warned]:
        lowest_at, lowest = min(self.evals, key=lambda e: e[1])
        since = [v for s, v in self.evals if s > lowest_at]
        over = [v - lowest for v in since]
        rising = len(over) >= RISING_EVALS and min(over[-RISING_EVALS:]) > max(RISING_SHARE * lowest, RISING_NATS)
        risen = step == self.total and over and over[-1] > max(RISEN_SHARE * lowest, RISING_NATS)
        if not (rising or risen):
            return []
        before, after = self.losses[:lowest_at] or self.losses[:STARTED], self.losses[lowest_at:]
        here, there = fmean(before[-len(after) :]), fmean(after[-len(before) :])
        if there >= here:  # both rise: that is divergence, not overfitting
            return []
        return [_warning("overfit", step, f"the held-out loss rises since step {lowest_at}, from {lowest:.4g} to "
                         f"{since[-1]:.4g} at step {step}, while the training loss fell from {here:.4g} to {there:.4g}",
                         "set train.early_stop or train.checkpoint.keep_best, train fewer epochs, or bring more data")]


    # ---- drift on neutral text ---------------------------------------------------------------------------------------

    def _drifted(self, step: int, kl: float, loss: float) -> list[Warned]:
        self._forgetting = self._forgetting + 1 if loss > FORGOTTEN_NATS else 0
        if self._forgetting < FORGOTTEN_TIMES:
            return []
        return [_warning("drift", step, f"the model forgets: neutral text costs it {loss:.2f} nats a token more than its base, "
                         f"and its next words are {kl:.2f} nats from the base's",
                         "lower train.learning_rate, train fewer epochs, or mix in other rows with data.replay")]


def _warning(code: str, step: int, message: str, fix: str) -> Warned:
    return {"code": code, "step": step, "message": message, "fix": fix}


# ---- before and between steps ----------------------------------------------------------------------------------------


def check_reach(learning_rate: float, factors: Sequence[float]) -> None:
    """Raises TrainingError when all steps together are too small to change a model. `factors`: the schedule, a step each."""
    reach = learning_rate * sum(factors)
    if reach < REACH:
        raise TrainingError(f"{len(factors)} steps at a learning rate of at most {learning_rate:.1e} cannot change the model",
                            why=f"together they move a number by about {reach:.1e}, which float32 rounds away",
                            fix="raise train.learning_rate (LoRA: 1e-4 to 5e-4 is usual)")


def check_trained(steps: Sequence[Step], trained: Sequence[int], part: str) -> None:
    """Raises TrainingError for the first step whose rows have no trained token. `trained`: tokens of each row."""
    for number, step in enumerate(steps, 1):
        if not any(trained[row] for row in step.rows):
            raise TrainingError(f"step {number} of {part}: no token is trained",
                                why=f"rows {step.rows[:10]} have none: their loss would be 0 / 0",
                                fix="look at them with `tunesmith data show`; delete the dataset and prepare it again")


def check_adapter(model, step: int) -> None:
    """An adapter that is as it began changes nothing, whatever the loss said. Raises TrainingError."""
    from tunesmith.methods import unmoved

    if not all(p.detach().isfinite().all() for p in model.parameters() if p.requires_grad):
        raise overflow(f"step {step}: the adapter is not finite")
    if why := unmoved(model):
        raise TrainingError("the adapter did not change", why=f"{why} after step {step}",
                            fix="check that train.learning_rate and train.clip_norm are not tiny and that the targets are used")


def check_first_loss(loss: float, expected: float | None) -> None:
    """Where the loss is known before anything was trained, a reference that is not the base shows. Raises TrainingError.

    The reference was computed in other packs, and in bfloat16 products of other sizes round otherwise.
    """
    if expected is not None and not abs(loss - expected) <= FIRST_LOSS_WITHIN * max(1.0, expected):
        raise TrainingError(f"the loss before step 1 is {loss:.4f}, and it must be {expected:.4f}",
                            why="a model that has learned nothing is its own reference, so its loss does not depend on the "
                                "data: the reference's log-probabilities are not those of this base, or of these rows",
                            fix="delete the folder `reference` of the dataset and train again; if it comes again, the base or "
                                "its weights have changed")


def overflow(what: str) -> TrainingError:
    """A number that is not finite."""
    return TrainingError(what, why="a number overflowed; going on would save an adapter of NaN",
                         fix="lower train.learning_rate, or set train.dtype: float32")
