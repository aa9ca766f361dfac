"""What trains when, and how fast: freezing as data, learning rate as a function of the step.

A freezing schedule is an ordered list of rules: a regular expression for parameter names, the epoch
from which these parameters train (None: never) and their learning-rate multiplier. The first
matching rule applies, and every parameter must be matched.

Source: big_vision's (pattern, multiplier-or-None) schedules; gradual unfreezing after Howard &
Ruder 2018 (ULMFiT, top-down) and Lee et al. 2022 (surgical fine-tuning, bottom-up).
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from t5ts.schema import FreezeConfig, OptimConfig

#: Settings without effect while the encoder is frozen, except through what trains from step 0
#: and how fast, which is in the reuse key as the optimizer's groups.
ACTS_LATER = (
    "freeze.name",
    "freeze.unfreeze_epoch",
    "freeze.order",
    "freeze.blocks_per_stage",
    "freeze.epochs_per_stage",
    "freeze.rewarmup_epochs",
    "freeze.always",
    "optim.encoder_lr_scale",
    "optim.layer_decay",
)


@dataclass(frozen=True)
class Rule:
    """One line of a freezing schedule."""

    pattern: str  # regular expression, searched for in the parameter's name
    start_epoch: float | None  # from which it trains (fractions allowed); None: never
    lr_scale: float  # multiplier of the base learning rate


def forecaster_plan(freeze: FreezeConfig, optim: OptimConfig, *, num_blocks: int) -> list[Rule]:
    """The rules for a forecaster, in order of precedence: head and patch train from the start.

    Stages count from the top (`top_down`, the final norm goes with the first stage) or from the
    bottom (`bottom_up`, an input stem goes with the first stage); stage k starts at
    `unfreeze_epoch + k · epochs_per_stage`. Block i of n has the multiplier
    `encoder_lr_scale · layer_decay^(n − 1 − i)`, the final norm that of the top block, a stem
    one more decay than block 0.
    """
    rules = [Rule(r"^(head|patch)\.", 0.0, 1.0)]
    if num_blocks == 0:
        return rules
    last, blocks = num_blocks - 1, list(reversed(range(num_blocks)))

    def scale(block: int) -> float:
        return optim.encoder_lr_scale * optim.layer_decay ** (last - block)

    def start(block: int) -> float | None:
        if freeze.unfreeze_epoch is None:
            return None
        place = {"all_at_once": 0, "top_down": last - block, "bottom_up": block}[freeze.order]
        return freeze.unfreeze_epoch + place // freeze.blocks_per_stage * freeze.epochs_per_stage

    for pattern in freeze.exempt:
        # One rule per block, so that layer decay also applies to these parameters.
        rules += [Rule(rf"^encoder\.block\.{i}\..*(?:{pattern})", 0.0, scale(i)) for i in blocks]
        rules.append(Rule(rf"^encoder\..*(?:{pattern})", 0.0, scale(last)))
    rules.append(Rule(r"^encoder\.final_layer_norm\.", start(last), scale(last)))
    rules += [Rule(rf"^encoder\.block\.{i}\.", start(i), scale(i)) for i in blocks]
    rules.append(Rule(r"^encoder\.stem\.", start(0), scale(-1)))
    return rules


def assign(rules: Sequence[Rule], names: Iterable[str]) -> dict[str, Rule]:
    """The first matching rule of each parameter.

    Raises:
        ValueError: if a parameter is matched by no rule, naming it.
    """
    assigned: dict[str, Rule] = {}
    for name in names:
        rule = next((rule for rule in rules if re.search(rule.pattern, name)), None)
        if rule is None:
            raise ValueError(f"no rule of the freezing schedule covers the parameter {name}")
        assigned[name] = rule
    return assigned


def start_step(start_epoch: float | None, steps_per_epoch: int) -> int | None:
    """The first step at which a rule's parameters train; None if never."""
    return None if start_epoch is None else round(start_epoch * steps_per_epoch)


def within_run(rules: Sequence[Rule], *, steps_per_epoch: int, total_steps: int) -> list[Rule]:
    """The same rules, where a start at or after the run's last step becomes never (None)."""
    starts = [start_step(rule.start_epoch, steps_per_epoch) for rule in rules]
    return [
        rule if start is None or start < total_steps else replace(rule, start_epoch=None)
        for rule, start in zip(rules, starts, strict=True)
    ]


def lr_factor(
    step: int, *, total_steps: int, warmup_steps: int, shape: str, min_ratio: float
) -> float:
    """Multiplier of the base learning rate at a step, in [0, 1].

    Linear warm-up over `warmup_steps` (step 0 already moves: 1/warmup), then constant, or a cosine
    from 1 down to `min_ratio` at the last step (Loshchilov & Hutter 2017, eq. 5).
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if shape == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def rewarmup_factor(step: int, *, start: int, rewarmup_steps: int) -> float:
    """Multiplier for parameters unfrozen at step `start`: linear from there, 1 afterwards.

    Parameters that train from step 0 have the common warm-up and no second one.
    """
    if start == 0 or rewarmup_steps == 0:
        return 1.0
    return min(1.0, (step - start + 1) / rewarmup_steps)
