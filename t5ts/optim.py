"""The optimizer that follows a freezing schedule: frozen, or in one group, stepped and zeroed.

The well-known mistake is to freeze first, build the optimizer from the parameters that
require gradients, and unfreeze later: the encoder is then in no group, never stepped and never
zeroed, and its gradient norm grows for ever. Here parameters enter the optimizer at the moment
their rule starts, and learning rates are set from the step, so that no scheduler can miss a
late group (pytorch #79888).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from t5ts.schedule import Rule, assign, lr_factor, rewarmup_factor, start_step
from t5ts.schema import OptimConfig


class PlannedOptimizer:
    """A torch optimizer (`inner`) whose groups follow a freezing schedule.

    Args:
        named_parameters: Every parameter of the model, in a fixed order.
        rules: The freezing schedule; must cover every parameter, and start some at step 0.
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
        self.settings = s = settings
        self.warmup_steps = round(s.warmup_epochs * steps_per_epoch)
        self.rewarmup_steps = round(rewarmup_epochs * steps_per_epoch)
        self.total_steps = total_steps
        self.plan = assign(rules, self.parameters)
        self._starts = {
            n: start
            for n, rule in self.plan.items()
            if (start := start_step(rule.start_epoch, steps_per_epoch)) is not None
        }
        self._waiting = sorted(set(self._starts.values()))
        self._last_start = self._waiting[-1]
        for parameter in self.parameters.values():
            parameter.requires_grad_(False)
        common: dict[str, Any] = {"lr": s.lr, "betas": (s.beta1, s.beta2), "eps": s.eps}
        self.inner: torch.optim.Optimizer
        if s.algorithm == "adamw_rms":
            self.inner = AdamWRms(self._due(0), **common)
        else:
            self.inner = torch.optim.AdamW(self._due(0), **common, fused=True)

    def unfreeze(self, step: int) -> bool:
        """Let every rule that starts at or before `step` train; returns whether any is new."""
        new = list(self._due(step))
        for group in new:
            self.inner.add_param_group(group)
        return bool(new)

    def _due(self, step: int) -> Iterator[dict[str, Any]]:
        """The groups that start by `step`, in the order of their start.

        What starts together with one rate is one group with weight decay and one without, whatever
        the number of rules: a group is a launch of its own, and a GPU waits for launches.
        """
        while self._waiting and self._waiting[0] <= step:
            start = self._waiting.pop(0)
            groups: dict[tuple[float, bool], list[str]] = {}
            for name, p in self.parameters.items():
                if self._starts.get(name) == start:
                    decays = p.ndim >= 2 and "relative_attention_bias" not in name
                    groups.setdefault((self.plan[name].lr_scale, decays), []).append(name)
            for (lr_scale, decays), names in groups.items():
                yield {
                    "params": [self.parameters[n].requires_grad_(True) for n in names],
                    "names": names,
                    "weight_decay": self.settings.weight_decay if decays else 0.0,
                    "lr_scale": lr_scale,
                    "start": start,
                }

    @property
    def settled_step(self) -> int:
        """The step from which everything that ever trains is training, warmed up."""
        return self._last_start + self.rewarmup_steps if self._last_start else 0

    @property
    def never_trains(self) -> set[str]:
        """Names of the parameters that no step changes."""
        return {name for name, rule in self.plan.items() if rule.start_epoch is None}

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
        # On a CPU the comparison is free and saves a pass over all gradients; on a GPU it would
        # wait for the device, and the pass is cheap.
        if limit is None or (total_norm.device.type == "cpu" and not bool(total_norm > limit)):
            return
        factor = (limit / (total_norm + 1e-6)).clamp(max=1.0)
        grads = [p.grad for p in self.trainable().values() if p.grad is not None]
        torch._foreach_mul_(grads, factor)

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
        allowed, needed = set[str](), set[str]()
        for group in self.inner.param_groups:
            names = set(group["names"])
            if group["start"] < step:
                allowed |= names
            if step - group["start"] > skipped_steps or names & steps.keys():
                needed |= names
        if wrong := (steps.keys() - allowed) | (needed - steps.keys()):
            raise ValueError(
                f"the optimizer state is for different parameters: {sorted(wrong)[:3]}"
            )
        for name in steps:
            parameter, prefix = self.parameters[name], f"{name}/"
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
            grads = [p.grad for p in parameters]
            steps, averages, squares = (
                [self.state[p][key] for p in parameters]
                for key in ("step", "exp_avg", "exp_avg_sq")
            )
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
