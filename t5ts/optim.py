"""The optimizer that follows a freezing schedule: frozen, or in one group, stepped and zeroed.

The well-known mistake is to freeze first, build the optimizer from the parameters that
require gradients, and unfreeze later: the encoder is then in no group, never stepped and never
zeroed, and its gradient norm grows for ever. Here parameters enter the optimizer at the moment
their rule starts, and learning rates are set from the step, so that no scheduler can miss a
late group (pytorch #79888).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from t5ts.schedule import Rule, assign, lr_factor, rewarmup_factor, start_step
from t5ts.schema import OptimConfig


class PlannedOptimizer:
    """A torch optimizer whose groups follow a freezing schedule.

    Args:
        named_parameters: Every parameter of the model, in a fixed order.
        rules: The freezing schedule; must cover every parameter.
        settings: The update rule; see `conf/optim`.
        rewarmup_epochs: Warm-up of what is unfrozen later.
        steps_per_epoch: Turns epochs into steps.
        total_steps: Length of the learning-rate schedule.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        rules: Sequence[Rule],
        settings: OptimConfig,
        rewarmup_epochs: float = 0.0,
        steps_per_epoch: int,
        total_steps: int,
    ) -> None:
        self.parameters = dict(named_parameters)
        self.settings = settings
        self.warmup_steps = round(settings.warmup_epochs * steps_per_epoch)
        self.rewarmup_steps = round(rewarmup_epochs * steps_per_epoch)
        self.total_steps = total_steps
        self.plan = assign(rules, self.parameters)
        # Dicts keep the rules' order, which fixes the groups' order.
        self._waiting: dict[Rule, list[str]] = {}
        self._start: dict[Rule, int | None] = {}
        for rule in dict.fromkeys(rules):
            names = [name for name, assigned in self.plan.items() if assigned == rule]
            if names:
                self._waiting[rule] = names
                self._start[rule] = start_step(rule.start_epoch, steps_per_epoch)
        for parameter in self.parameters.values():
            parameter.requires_grad_(False)
        self.torch_optimizer: torch.optim.Optimizer | None = None
        self.unfreeze(0)

    def unfreeze(self, step: int) -> list[str]:
        """Let every rule that starts at or before `step` train; returns the new names."""
        due = [
            rule
            for rule in self._waiting
            if (start := self._start[rule]) is not None and start <= step
        ]
        # Groups enter in the order of their start, so that a resumed run that catches up with
        # several stages at once has its groups in the order of the uninterrupted run.
        due.sort(key=lambda rule: self._start[rule] or 0)
        new: list[str] = []
        for rule in due:
            names = self._waiting.pop(rule)
            for name in names:
                self.parameters[name].requires_grad_(True)
            for group in self._groups(rule, names):
                self._add(group)
            new += names
        return new

    def _groups(self, rule: Rule, names: list[str]) -> list[dict[str, Any]]:
        """A rule's parameters as a group with weight decay (matrices) and one without."""
        groups = []
        for decays in (True, False):
            members = [
                n
                for n in names
                if (self.parameters[n].ndim >= 2 and "relative_attention_bias" not in n) == decays
            ]
            if members:
                groups.append(
                    {
                        "params": [self.parameters[n] for n in members],
                        "names": members,
                        "weight_decay": self.settings.weight_decay if decays else 0.0,
                        "lr_scale": rule.lr_scale,
                        "start": self._start[rule],
                    }
                )
        return groups

    def _add(self, group: dict[str, Any]) -> None:
        s = self.settings
        if self.torch_optimizer is not None:
            self.torch_optimizer.add_param_group(group)
        elif s.algorithm == "adamw_rms":
            self.torch_optimizer = AdamWRms([group], lr=s.lr, betas=(s.beta1, s.beta2), eps=s.eps)
        else:
            self.torch_optimizer = torch.optim.AdamW(
                [group], lr=s.lr, betas=(s.beta1, s.beta2), eps=s.eps, fused=True
            )

    @property
    def settled_step(self) -> int:
        """The step from which all that ever trains does, its own warm-up included."""
        last = max(start or 0 for start in self._start.values())
        return last + self.rewarmup_steps if last else 0

    @property
    def never_trains(self) -> set[str]:
        """Names of the parameters that no step changes."""
        return {name for name, rule in self.plan.items() if rule.start_epoch is None}

    @property
    def inner(self) -> torch.optim.Optimizer:
        """The torch optimizer (for a GradScaler)."""
        assert self.torch_optimizer is not None
        return self.torch_optimizer

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that train now, by name, in the model's order."""
        return {name: p for name, p in self.parameters.items() if p.requires_grad}

    def set_learning_rates(self, step: int) -> None:
        """Set each group's rate from the step alone."""
        s = self.settings
        common = s.lr * lr_factor(
            step,
            total_steps=self.total_steps,
            warmup_steps=self.warmup_steps,
            shape=s.schedule,
            min_ratio=s.min_lr_ratio,
        )
        for group in self.inner.param_groups:
            factor = rewarmup_factor(step, start=group["start"], rewarmup_steps=self.rewarmup_steps)
            group["lr"] = common * group["lr_scale"] * factor

    def learning_rates(self) -> dict[str, float]:
        """Current learning rate of every trainable parameter, by name."""
        return {n: g["lr"] for g in self.inner.param_groups for n in g["names"]}

    def clip(self, total_norm: Tensor) -> None:
        """Scale all gradients so that their common L2 norm is at most `clip_norm`.

        Args:
            total_norm: () the norm, already measured by the probes.
        """
        limit = self.settings.clip_norm
        if limit is None:
            return
        # On a CPU the comparison is free and saves a pass over all gradients; on a GPU it would
        # wait for the device, and the pass is cheap.
        if total_norm.device.type == "cpu" and not bool(total_norm > limit):
            return
        factor = (limit / (total_norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(
            [p.grad for p in self.trainable().values() if p.grad is not None], factor
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Optimizer state: tensors keyed `NAME/KEY`, and step counts keyed by NAME."""
        tensors: dict[str, Tensor] = {}
        steps: dict[str, float] = {}
        for name, parameter in self.trainable().items():
            for key, value in self.inner.state[parameter].items():
                if key == "step":
                    steps[name] = float(value)
                else:
                    tensors[f"{name}/{key}"] = value
        return tensors, steps

    def load_state(
        self,
        tensors: Mapping[str, Tensor],
        steps: Mapping[str, float],
        *,
        step: int,
        skipped_steps: int = 0,
    ) -> None:
        """Restore `state()` as it was at `step`: unfreezes everything unfrozen by then.

        Args:
            tensors, steps: As `state` returns them.
            step: Steps done, including skipped ones.
            skipped_steps: How many of them a GradScaler skipped. A group that has had no more
                steps than that may have no state yet.

        Raises:
            ValueError: if the state's parameters are not those that train by then.
        """
        # What starts at `step` itself has not stepped yet and has no state.
        self.unfreeze(step - 1)
        begun = [group for group in self.inner.param_groups if group["start"] < step]
        allowed = {name for group in begun for name in group["names"]}
        needed = {
            name
            for group in begun
            if step - group["start"] > skipped_steps or not steps.keys().isdisjoint(group["names"])
            for name in group["names"]
        }
        if wrong := (steps.keys() - allowed) | (needed - steps.keys()):
            raise ValueError(
                f"the optimizer state is for different parameters: {sorted(wrong)[:3]}"
            )
        for name, parameter in self.trainable().items():
            if name not in steps:
                continue
            prefix = f"{name}/"
            state: dict[str, Any] = {
                key.removeprefix(prefix): value.to(parameter.device)
                for key, value in tensors.items()
                if key.startswith(prefix)
            }
            # A fused AdamW keeps its step count on the parameter's device.
            state["step"] = torch.tensor(steps[name], dtype=torch.float32, device=parameter.device)
            self.inner.state[parameter] = state


class AdamWRms(torch.optim.Optimizer):
    """AdamW whose step for each matrix is scaled by that matrix's RMS.

    A matrix W moves by `lr · max(RMS(W), 1e-3)` times Adam's direction, as Adafactor's relative
    step does, so that an arm is not judged by its weights' scale; vectors move as in AdamW.

    Source: Shazeer & Stern 2018 (Adafactor, section 8) and nanoT5 (arXiv 2309.02373), which found
    that this scaling is what makes AdamW train T5.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        assert closure is None, "no closure is supported"
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            beta1, beta2 = group["betas"]
            for p in parameters:
                if not self.state[p]:
                    self.state[p] = {
                        "step": torch.zeros((), dtype=torch.float32, device=p.device),
                        "exp_avg": torch.zeros_like(p),
                        "exp_avg_sq": torch.zeros_like(p),
                    }
            states = [self.state[p] for p in parameters]
            grads = [p.grad for p in parameters]
            averages = [s["exp_avg"] for s in states]
            squares = [s["exp_avg_sq"] for s in states]
            steps = [s["step"] for s in states]
            torch._foreach_add_(steps, 1.0)
            torch._foreach_lerp_(averages, grads, 1 - beta1)
            torch._foreach_mul_(squares, beta2)
            torch._foreach_addcmul_(squares, grads, grads, value=1 - beta2)
            # Every member of a group entered it at the same step, so the counts agree.
            count = steps[0]
            correction1, correction2 = 1 - beta1**count, 1 - beta2**count
            directions = torch._foreach_div(squares, correction2)
            torch._foreach_sqrt_(directions)
            torch._foreach_add_(directions, group["eps"])
            directions = torch._foreach_div(averages, directions)
            torch._foreach_div_(directions, correction1)
            sizes = [
                p.norm() / p.numel() ** 0.5 if p.ndim >= 2 else p.new_ones(()) for p in parameters
            ]
            scales = [size.clamp(min=1e-3) * group["lr"] for size in sizes]
            if group["weight_decay"]:
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_mul_(directions, scales)
            torch._foreach_sub_(parameters, directions)
