"""Norms and ratios against their definitions."""

import pytest
import torch
from torch import nn

from t5ts.probes import GradientNorms, UpdateRatios, distance_from_init


def net() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 1)})


def component(name: str) -> str:
    return name.split(".")[0]


def backward(model: nn.ModuleDict) -> None:
    model["b"](model["a"](torch.ones(2, 3))).sum().backward()


def test_gradient_norms_equal_the_definition() -> None:
    model = net()
    backward(model)
    parameters = dict(model.named_parameters())
    probe = GradientNorms(component, list(parameters))
    got = probe.measure(parameters)
    assert probe.components == ["a", "b"]
    flat = {
        c: torch.cat([p.grad.flatten() for n, p in parameters.items() if n[0] == c]) for c in "ab"
    }
    torch.testing.assert_close(
        got, torch.stack([flat["a"].norm(), flat["b"].norm(), torch.cat([*flat.values()]).norm()])
    )


def test_a_frozen_component_has_norm_zero_and_thawing_is_noticed() -> None:
    model = net()
    model["a"].requires_grad_(False)
    parameters = dict(model.named_parameters())
    probe = GradientNorms(component, list(parameters))
    backward(model)
    trainable = {n: p for n, p in parameters.items() if p.requires_grad}
    assert float(probe.measure(trainable)[0]) == 0.0
    model["a"].requires_grad_(True)
    model.zero_grad()
    backward(model)
    assert float(probe.measure(parameters)[0]) > 0.0


def test_a_nan_gradient_shows_in_its_component_and_the_total() -> None:
    model = net()
    backward(model)
    model["b"].weight.grad[0, 0] = float("nan")
    parameters = dict(model.named_parameters())
    norms = GradientNorms(component, list(parameters)).measure(parameters)
    assert norms.isnan().tolist() == [False, True, True]


def test_update_ratio_and_distance() -> None:
    model = net()
    parameters = dict(model.named_parameters())
    initial = {n: p.detach().clone() for n, p in parameters.items()}
    ratios = UpdateRatios(component, parameters)
    with torch.no_grad():
        for p in model["a"].parameters():
            p.mul_(1.1)
    assert ratios.measure() == pytest.approx({"a": 0.1, "b": 0.0}, abs=1e-6)
    got = distance_from_init(component, initial, parameters)
    assert got == pytest.approx({"a": 0.1, "b": 0.0}, abs=1e-6)


def test_distance_from_zero_is_infinite_once_moved() -> None:
    p = nn.Parameter(torch.zeros(3))
    initial = {"a.w": p.detach().clone()}
    assert distance_from_init(component, initial, {"a.w": p}) == {"a": 0.0}
    with torch.no_grad():
        p.add_(1)
    assert distance_from_init(component, initial, {"a.w": p}) == {"a": float("inf")}
