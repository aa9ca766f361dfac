"""Norms and ratios against their definitions."""

import pytest
import torch
from torch import nn

from t5ts import probes
from t5ts.probes import DistanceFromInit, GradientNorms, UpdateRatios, activation_bytes


def net() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 1)})


@pytest.fixture(autouse=True)
def _components(monkeypatch) -> None:
    monkeypatch.setattr(probes, "component_of", lambda name: name.split(".")[0])


def backward(model: nn.ModuleDict) -> None:
    model["b"](model["a"](torch.ones(2, 3))).sum().backward()


def test_gradient_norms_equal_the_definition():
    model = net()
    backward(model)
    parameters = dict(model.named_parameters())
    probe = GradientNorms(parameters)
    got = probe.measure(parameters)
    assert probe.components == ["a", "b"]
    flat = {
        c: torch.cat([p.grad.flatten() for n, p in parameters.items() if n[0] == c]) for c in "ab"
    }
    torch.testing.assert_close(
        got, torch.stack([flat["a"].norm(), flat["b"].norm(), torch.cat([*flat.values()]).norm()])
    )


def test_a_frozen_component_has_norm_zero_and_unfreezing_is_noticed():
    model = net()
    parameters = dict(model.named_parameters())
    probe = GradientNorms(parameters)
    for trains in (False, True):
        model["a"].requires_grad_(trains)
        model.zero_grad()
        backward(model)
        norms = probe.measure({n: p for n, p in parameters.items() if p.requires_grad})
        assert (float(norms[0]) > 0.0) == trains
    model["b"].weight.grad[0, 0] = float("nan")
    assert probe.measure(parameters).isnan().tolist() == [False, True, True]


def test_update_ratio_and_distance():
    model = net()
    parameters = dict(model.named_parameters())
    distance = DistanceFromInit(parameters)
    ratios = UpdateRatios(parameters)
    with torch.no_grad():
        for p in model["a"].parameters():
            p.mul_(1.1)
    assert ratios.measure() == pytest.approx({"a": 0.1, "b": 0.0}, abs=1e-6)
    for _ in range(2):
        assert distance.measure() == pytest.approx({"a": 0.1, "b": 0.0}, abs=1e-6)


def test_distance_from_zero_is_infinite_once_moved():
    p = nn.Parameter(torch.zeros(3))
    distance = DistanceFromInit({"a.w": p})
    assert distance.measure() == {"a": 0.0}
    with torch.no_grad():
        p.add_(1)
    assert distance.measure() == {"a": float("inf")}


def test_what_never_trains_has_no_copy_and_may_not_change():
    model = net()
    parameters = dict(model.named_parameters())
    distance = DistanceFromInit(parameters, frozen=["a.weight", "a.bias", "b.weight"])
    assert distance.measure() == {"a": 0.0, "b": 0.0}
    with torch.no_grad():
        model["b"].bias.add_(1)
    assert distance.measure()["b"] > 0
    with torch.no_grad():
        model["a"].weight[0, 0] += 1e-6
    with pytest.raises(AssertionError, match=r"a\.weight"):
        distance.measure()
    assert set(distance._initial) == {"b.bias"}


def test_a_gpus_sums_by_component_are_the_cpus():
    """They need no `index_add_`, whose order is not fixed there, and spread no NaN."""
    squares, places = torch.rand(50), torch.randint(0, 4, (50,))
    squares[7] = float("nan")
    in_order, by_mask = (
        add(squares, places, 5) for add in (probes._add_in_order, probes._add_by_mask)
    )
    torch.testing.assert_close(by_mask, in_order, equal_nan=True)
    assert by_mask.isnan().sum() == 1
    assert by_mask[4] == 0.0


def test_activations_are_what_the_graph_keeps():
    """A matrix product keeps its input if its weight is trained, a ReLU its output."""
    model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    model.requires_grad_(False)
    layers = list(model.children())

    def kept(*trained: nn.Module) -> int:
        parameters = [p for layer in trained for p in layer.parameters()]
        return activation_bytes(model, lambda: model(torch.ones(5, 3)), parameters)

    assert kept(layers[3]) == 5 * 16 * 4
    assert kept(layers[1]) == 5 * (8 + 16) * 4
    assert kept(layers[0], layers[1], layers[3]) == 5 * (3 + 8 + 16) * 4
    assert not [p for p in model.parameters() if p.requires_grad]
