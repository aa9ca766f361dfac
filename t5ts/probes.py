"""What is watched while training: gradient norms, update ratios, distance from the start."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn


class GradientNorms:
    """L2 gradient norms of each component, from one pass over the gradients.

    Args:
        component_of: Maps a parameter's name to its component ("patch", "block_3", "head", …).
        names: Every parameter's name; fixes the components and their order.
    """

    def __init__(self, component_of: Callable[[str], str], names: Sequence[str]) -> None:
        self._component_of = component_of
        self.components = list(dict.fromkeys(component_of(name) for name in names))
        self._index: Tensor | None = None
        self._key: tuple[str, ...] = ()

    def measure(self, trainable: Mapping[str, nn.Parameter]) -> Tensor:
        """Norms before clipping: (K + 1,) the K components' in order, then the total.

        A component that is wholly frozen has the norm 0. One device operation per tensor and
        nothing is copied to the host.

        On a CPU a tensor's norm comes from its dot product with itself, which runs on all threads
        (1.7 ms for t5-small on two, `_foreach_norm` 3.0); at batch 8 that is 3 % of a step.
        """
        names = tuple(n for n, p in trainable.items() if p.grad is not None)
        grads = [grad for p in trainable.values() if (grad := p.grad) is not None]
        if grads[0].device.type == "cpu":
            flat = [grad.reshape(-1) for grad in grads]
            squares_G = torch.stack([torch.dot(g, g) for g in flat])
        else:
            squares_G = torch.stack(torch._foreach_norm(grads)).float().square()
        if self._index is None or names != self._key:
            places = [self.components.index(self._component_of(n)) for n in names]
            self._index, self._key = torch.tensor(places, device=squares_G.device), names
        squares = squares_G.new_zeros(len(self.components) + 1)
        squares.index_add_(0, self._index, squares_G)
        squares[-1] = squares[:-1].sum()
        return squares.sqrt()


class UpdateRatios:
    """‖w after a step − w before it‖ / ‖w before it‖ of each component that trains."""

    def __init__(
        self, component_of: Callable[[str], str], trainable: Mapping[str, nn.Parameter]
    ) -> None:
        self._component_of = component_of
        self._before = {name: p.detach().clone() for name, p in trainable.items()}
        self._parameters = trainable

    def measure(self) -> dict[str, float]:
        """Ratio by component, since construction."""
        return _relative_change(self._component_of, self._before, self._parameters)


def distance_from_init(
    component_of: Callable[[str], str],
    initial: Mapping[str, Tensor],
    parameters: Mapping[str, nn.Parameter],
) -> dict[str, float]:
    """‖w − w₀‖ / ‖w₀‖ of each component; inf where it started from all zeros and moved."""
    return _relative_change(component_of, initial, parameters)


def _relative_change(
    component_of: Callable[[str], str],
    before: Mapping[str, Tensor],
    after: Mapping[str, nn.Parameter],
) -> dict[str, float]:
    names = list(before)
    olds = [before[n] for n in names]
    news = [after[n].detach() for n in names]
    moved = torch.stack(torch._foreach_norm(torch._foreach_sub(news, olds))).double().square()
    size = torch.stack(torch._foreach_norm(olds)).double().square()
    sums: dict[str, list[float]] = {}
    for name, m, s in zip(names, moved.tolist(), size.tolist(), strict=True):
        total = sums.setdefault(component_of(name), [0.0, 0.0])
        total[0] += m
        total[1] += s
    return {
        component: (m / s) ** 0.5 if s > 0 else (float("inf") if m > 0 else 0.0)
        for component, (m, s) in sums.items()
    }
