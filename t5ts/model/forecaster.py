"""The whole model: normalise, patch, encode, forecast; and what its encoder does to the tokens."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from t5ts.model.encoders import Encoder, NoEncoder
from t5ts.model.layers import Linear
from t5ts.model.normalize import InstanceNorm, NoNorm
from t5ts.model.patching import PatchEmbedding, WholeContext

HEAD_INIT_GAIN = 0.1
"""RMS of the head's first output when its input has RMS 1: near the window's mean, and not zero,
so that the encoder has a gradient from the first step."""


class Forecaster(nn.Module):
    """Context in, forecast out: `patch`, `encoder`, `head` inside a normalisation.

    The head's weight is normal with std `HEAD_INIT_GAIN`/√fan_in, its bias zero. With `NoEncoder`
    it maps the L steps of a channel (or the C·L of all, mixing) to the forecast.

    Args:
        normalize: Applied to the context and undone on the forecast.
        patch, encoder: From (B, C, L) to tokens (M, N, D), and to hidden states of that shape.
        num_channels, output_len: C, and the steps H that come out per channel.
        per_patch: Each token is mapped back to its own patch, by one shared map, from D to P
            (channels independent) or C·P (mixing); patches do not overlap and H is L. Otherwise
            one map from all tokens to the output, N·D to H (or C·H).
        generator: Draws the head, on the CPU.

    Source: Nie et al. 2023 (PatchTST), section 3.1 (flattened) and 3.2 (per patch).
    """

    def __init__(
        self,
        *,
        normalize: InstanceNorm | NoNorm,
        patch: PatchEmbedding | WholeContext,
        encoder: Encoder,
        num_channels: int,
        output_len: int,
        per_patch: bool = False,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.normalize = normalize
        self.patch = patch
        self.encoder = encoder
        self.per_patch = per_patch
        fan_in, steps = patch.num_patches * patch.d_model, output_len
        if per_patch:
            assert isinstance(patch, PatchEmbedding), "there are no tokens"
            assert patch.stride == patch.patch_len, "a step would have two tokens"
            fan_in, steps = patch.d_model, patch.patch_len
        self.head = Linear(fan_in, steps * num_channels if patch.mixing else steps)
        with torch.no_grad():
            self.head.weight.normal_(0.0, HEAD_INIT_GAIN * fan_in**-0.5, generator=generator)
            self.head.bias.zero_()

    def forward(self, x_BCL: Tensor) -> Tensor:
        """Forecast.

        Args:
            x_BCL: Context in train-standardised units; NaN marks a hidden step if the model was
                built for that, and otherwise propagates.

        Returns:
            (B, C, H) in the same units and dtype.
        """
        normed_BCL, mean_BC1, divisor_BC1 = self.normalize(x_BCL)
        hidden_MND = self.encoder(self.patch(normed_BCL))
        if self.per_patch:
            y_BCH = self._own_patches(hidden_MND, x_BCL.shape)
        else:
            y_BCH = self.head(hidden_MND.flatten(1)).reshape(x_BCL.shape[0], x_BCL.shape[1], -1)
        return self.normalize.invert(y_BCH, mean_BC1, divisor_BC1)

    def _own_patches(self, hidden_MND: Tensor, shape: torch.Size) -> Tensor:
        """Each token's patch at its place, (B, C, L), without the padding."""
        assert isinstance(self.patch, PatchEmbedding)
        patches_MNcP = self.head(hidden_MND).unflatten(-1, (-1, self.patch.patch_len))  # c: C or 1
        y_BCW = patches_MNcP.transpose(1, 2).reshape(shape[0], shape[1], -1)
        return y_BCW[..., self.patch.pad :]

    def compile_blocks(self) -> None:
        """Compile each block of the encoder by itself, in place.

        Once for each state that a block can be in (frozen, training, evaluating), whereas the whole
        model would be compiled again at each stage of unfreezing, until torch gives up. The cache
        is reset first, because earlier models count towards that limit.
        """
        torch.compiler.reset()
        for block in self._blocks():
            block.compile()

    @contextmanager
    def bypassing_blocks(self) -> Iterator[None]:
        """Inside, each block of the encoder returns its input; a stem and the final norm stay.

        Not for compiled blocks, which do not notice (see `torch.compiler.set_stance`).
        """
        blocks = self._blocks()
        try:
            for block in blocks:
                vars(block)["forward"] = _bypassed(block)
            yield
        finally:
            for block in blocks:
                del vars(block)["forward"]

    def _blocks(self) -> list[nn.Module]:
        return [] if isinstance(self.encoder, NoEncoder) else list(self.encoder.block)


def _bypassed(block: nn.Module) -> Callable[..., Any]:
    """A block's forward that returns its input, in a tuple if the block returns several things."""
    others: list[tuple[None, ...] | None] = []

    def forward(hidden_MND: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not others:
            real = type(block).forward(block, hidden_MND, *args, **kwargs)
            others.append((None,) * (len(real) - 1) if isinstance(real, tuple | list) else None)
        return hidden_MND if others[0] is None else (hidden_MND, *others[0])

    return forward


@torch.no_grad()
def scale_audit(model: Forecaster, x_BCL: Tensor) -> dict[str, float]:
    """The signal's scale along the encoder, and how much each block changes it.

    Evaluated without dropout and gradients; the model's training modes are restored. A ratio far
    above 1 in the first blocks means that they outweigh the tokens: the scale of the tokens then
    decides the result. A cosine near 1 means that the blocks pass the tokens on: with such an
    encoder, no weights are compared.

    Args:
        model: A forecaster, not compiled.
        x_BCL: Contexts, as for `forward`; one batch is enough.

    Returns:
        RMS over all entries, in order: `input` (the tokens), `block_<i>` (each block's output),
        `output` (after the final norm, if there is one), for each block
        `residual_ratio/block_<i>`, RMS(output - input) / RMS(input) of the block, and with blocks
        `cosine`, of the angle between a token and the last block's output there, mean over tokens.
        Not finite when the tokens are all zeros, as for constant contexts.

    Source: own.
    """
    rms: dict[str, Tensor] = {}
    ratio: dict[str, Tensor] = {}
    seen: dict[str, Tensor] = {}  # the latest block's replaces the one before

    def record(name: str, _: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        output = output[0] if isinstance(output, tuple | list) else output
        rms[name] = _rms(output)
        seen[name.partition("_")[0]] = output
        if name.startswith("block"):
            ratio[f"residual_ratio/{name}"] = _rms(output - inputs[0]) / _rms(inputs[0])

    blocks = model._blocks()
    watched: dict[str, nn.Module] = {f"block_{i}": block for i, block in enumerate(blocks)}
    watched |= {"input": model.patch, "output": model.encoder}
    was_training = {module: module.training for module in model.modules()}
    with ExitStack() as stack:
        for name, module in watched.items():
            stack.callback(module.register_forward_hook(partial(record, name)).remove)
        for module, mode in was_training.items():  # each module's own: frozen blocks differ
            stack.callback(setattr, module, "training", mode)
        model.eval()(x_BCL)
    if blocks:
        ratio["cosine"] = _cosine(seen["input"], seen["block"])
    return {name: value.item() for name, value in (rms | ratio).items()}


def _cosine(a_MND: Tensor, b_MND: Tensor) -> Tensor:
    """Mean over tokens; tokens of length 0, as of a constant context, have no angle."""
    a_MND, b_MND = _double(a_MND), _double(b_MND)
    sizes_MN = a_MND.norm(dim=-1) * b_MND.norm(dim=-1)
    return ((a_MND * b_MND).sum(-1) / sizes_MN).nanmean()


def _rms(x: Tensor) -> Tensor:
    return _double(x).square().mean().sqrt()


def _double(x: Tensor) -> Tensor:
    return (x.cpu() if x.device.type == "mps" else x).double()  # mps has no float64
