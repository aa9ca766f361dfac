"""Each parameter is frozen bit for bit, or in exactly one group, stepped and zeroed."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from t5ts.optim import AdamWRms, PlannedOptimizer
from t5ts.schedule import Rule, lr_factor
from t5ts.schema import OptimConfig

SETTINGS = OptimConfig(
    name="test", lr=1e-2, warmup_epochs=0, schedule="constant", weight_decay=0.1, clip_norm=None
)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))


RULES = [
    Rule(pattern=r"^4\.", start_epoch=0.0, lr_scale=1.0),
    Rule(pattern=r"^2\.", start_epoch=1.0, lr_scale=0.5),
    Rule(pattern=r"^0\.", start_epoch=None, lr_scale=0.1),
]


def planned(net: nn.Module, rules=RULES, rewarmup_epochs=0.0, **changes) -> PlannedOptimizer:
    return PlannedOptimizer(
        net.named_parameters(),
        rules=rules,
        settings=replace(SETTINGS, **changes),
        rewarmup_epochs=rewarmup_epochs,
        steps_per_epoch=3,
        total_steps=9,
    )


def step(net: nn.Module, optimizer: PlannedOptimizer, number: int) -> None:
    optimizer.unfreeze(number)
    optimizer.set_learning_rates(number)
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(8, 3, generator=generator)
    net(x).square().mean().backward()
    optimizer.inner.step()
    optimizer.inner.zero_grad(set_to_none=True)


def test_each_parameter_is_frozen_bit_for_bit_or_in_exactly_one_group():
    net = model()
    optimizer = planned(net)
    for number in range(6):
        before = copy.deepcopy(net.state_dict())
        step(net, optimizer, number)
        for name, value in net.state_dict().items():
            trains = name[0] == "4" or (name[0] == "2" and number >= 3)
            assert torch.equal(value, before[name]) != trains, (number, name)
        grouped = [id(p) for g in optimizer.inner.param_groups for p in g["params"]]
        assert len(grouped) == len(set(grouped))
        for parameter in net.parameters():
            assert parameter.requires_grad == (id(parameter) in grouped)
            assert parameter.grad is None  # zeroed, or never there
            assert (parameter in optimizer.inner.state) == parameter.requires_grad


def test_what_starts_together_with_one_rate_is_one_group_with_decay_and_one_without():
    blocks = [Rule(rf"^{name}\.", 1.0, 0.5) for name in (0, 2)]
    optimizer = planned(model(), [RULES[0], *blocks])
    optimizer.unfreeze(3)
    names = [group["names"] for group in optimizer.inner.param_groups]
    assert names == [["4.weight"], ["4.bias"], ["0.weight", "2.weight"], ["0.bias", "2.bias"]]
    apart = planned(model(), [RULES[0], blocks[0], replace(blocks[1], lr_scale=0.25)])
    apart.unfreeze(3)
    scales = {n: g["lr_scale"] for g in apart.inner.param_groups for n in g["names"]}
    assert (scales["0.weight"], scales["2.weight"]) == (0.5, 0.25)


def test_rates_follow_rule_and_rewarmup_and_decay_takes_matrices_only():
    net = model()
    optimizer = planned(net, rewarmup_epochs=2 / 3)
    seen = []
    for number in range(6):
        step(net, optimizer, number)
        seen.append(optimizer.learning_rates().get("2.weight"))
    assert seen == [None, None, None, *map(pytest.approx, (0.0025, 0.005, 0.005))]
    assert optimizer.learning_rates()["4.bias"] == 0.01
    net[4].register_parameter("relative_attention_bias", nn.Parameter(torch.ones(2, 2)))
    optimizer = planned(net)
    decay = {n: g["weight_decay"] for g in optimizer.inner.param_groups for n in g["names"]}
    assert decay == {"4.weight": 0.1, "4.bias": 0.0, "4.relative_attention_bias": 0.0}


def test_what_trains_from_the_start_has_the_common_schedule_alone():
    shape = {"schedule": "cosine", "min_lr_ratio": 0.1, "warmup_epochs": 0.5}
    optimizer = planned(model(), [Rule("", 0.0, 0.5)], rewarmup_epochs=1, **shape)
    for number in range(9):
        optimizer.set_learning_rates(number)
        factor = lr_factor(number, total_steps=9, warmup_steps=2, shape="cosine", min_ratio=0.1)
        assert set(optimizer.learning_rates().values()) == {0.01 * factor * 0.5}
    assert optimizer.settled_step == 0
    assert planned(model(), rewarmup_epochs=1).settled_step == 3 + 3


@pytest.mark.parametrize("algorithm", ["adamw", "adamw_rms"])
@pytest.mark.parametrize("skipped", [set(), {0}, {0, 1}, {0, 1, 2, 3}, {3, 4}, {1, 3}])
@pytest.mark.parametrize("stop", [1, 3, 4, 5])
def test_state_round_trip_resumes_bit_for_bit(algorithm, skipped, stop):
    """A GradScaler skips its first steps: whatever has not stepped yet has no state."""

    def train(net, optimizer, numbers) -> None:
        for number in numbers:
            if number in skipped:
                optimizer.unfreeze(number)
            else:
                step(net, optimizer, number)

    net = model()
    optimizer = planned(net, algorithm=algorithm)
    train(net, optimizer, range(stop))
    again = model()
    again.load_state_dict(net.state_dict())
    other = planned(again, algorithm=algorithm)
    done = sum(number < stop for number in skipped)
    other.load_state(*copy.deepcopy(optimizer.state()), step=stop, skipped_steps=done)
    train(net, optimizer, range(stop, 7))
    train(again, other, range(stop, 7))
    for name, value in net.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_state_of_other_parameters_is_refused():
    net = model()
    optimizer = planned(net)
    step(net, optimizer, 0)
    tensors, steps = optimizer.state()
    with pytest.raises(ValueError, match=r"[02]\.weight"):
        planned(model()).load_state(tensors, steps, step=4)
    other = {"4.weight": steps["4.weight"], "0.weight": 1.0}
    with pytest.raises(ValueError, match=r"[02]\.weight"):
        planned(model()).load_state(tensors, other, step=1, skipped_steps=1)


@pytest.mark.parametrize("limit", [0.01, 1e6])
def test_clip_equals_torch(limit):
    ours, theirs = model(), model()
    optimizer = planned(ours, [Rule(pattern="", start_epoch=0.0, lr_scale=1.0)], clip_norm=limit)
    for net in (ours, theirs):
        net(torch.ones(8, 3)).square().mean().backward()
    total = torch.stack([p.grad.norm() for p in ours.parameters()]).norm()
    optimizer.clip(total)
    nn.utils.clip_grad_norm_(theirs.parameters(), limit)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("size", [0.3, 1e-5])
def test_adamw_rms_is_adamw_whose_rate_is_the_matrix_rms(size):
    torch.manual_seed(1)
    weight, bias = torch.randn(6, 5) * size, torch.randn(5)
    ours = [nn.Parameter(weight.clone()), nn.Parameter(bias.clone())]
    optimizer = AdamWRms(ours, lr=1e-2, eps=1e-8, weight_decay=0.1)
    reference = [nn.Parameter(weight.clone()), nn.Parameter(bias.clone())]
    theirs = [torch.optim.AdamW([p], lr=1e-2, eps=1e-8, weight_decay=0.0) for p in reference]
    for _ in range(5):
        gradients = [torch.randn_like(weight), torch.randn_like(bias)]
        rms = float(reference[0].detach().square().mean().sqrt())
        theirs[0].param_groups[0]["lr"] = 1e-2 * max(rms, 1e-3)
        for p, q, g in zip(ours, reference, gradients, strict=True):
            p.grad, q.grad = g.clone(), g.clone()
        optimizer.step()
        for q, reference_optimizer in zip(reference, theirs, strict=True):
            q.data *= 1 - 1e-2 * 0.1  # decay is not scaled
            reference_optimizer.step()
        for p, q in zip(ours, reference, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)
