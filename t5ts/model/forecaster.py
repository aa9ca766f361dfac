"""The whole model: normalise, patch, encode, forecast; and a look at its scales at step 0."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from t5ts.model.encoders import Encoder, NoEncoder
from t5ts.model.normalize import InstanceNorm, NoNorm, build_normalize
from t5ts.model.patching import PatchEmbedding, WholeContext

HEAD_INIT_GAIN = 0.1
"""RMS of the head's first output when its input has RMS 1: near the window's mean, and not zero,
so that the encoder has a gradient from the first step."""


class Forecaster(nn.Module):
    """Context in, forecast out: `patch`, `encoder`, `head` inside a normalisation.

    `build_forecaster` makes one; the arms of a comparison differ by the encoder's weights alone.

    Args:
        normalize: Applied to the context and undone on the forecast.
        patch: From (B, C, L) to tokens (M, N, D).
        encoder: From tokens to hidden states of the same shape.
        head: From N·D to H (channels independent) or to C·H (mixing); with `per_patch` from D to
            the P steps of a patch (independent) or to its C·P values (mixing).
        per_patch: Whether each token gives back its own patch: one map for all of them.
    """

    def __init__(
        self,
        *,
        normalize: InstanceNorm | NoNorm,
        patch: PatchEmbedding | WholeContext,
        encoder: Encoder,
        head: nn.Linear,
        per_patch: bool = False,
    ) -> None:
        super().__init__()
        self.normalize = normalize
        self.patch = patch
        self.encoder = encoder
        self.head = head
        self.per_patch = per_patch

    def forward(self, x_BCL: Tensor) -> Tensor:
        """Forecast.

        Args:
            x_BCL: Context in train-standardised units; NaN marks a hidden step where the model was
                built for that, and is an error that spreads where it was not.

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
        """Each token's patch at its place, (B, C, L); what belongs to the padding is dropped."""
        assert isinstance(self.patch, PatchEmbedding)
        patches_MNcP = self.head(hidden_MND).unflatten(-1, (-1, self.patch.patch_len))  # c: C or 1
        y_BCW = patches_MNcP.transpose(1, 2).reshape(shape[0], shape[1], -1)
        return y_BCW[..., self.patch.pad :]

    def compile_blocks(self) -> None:
        """Compile each block of the encoder by itself, in place.

        They are the same code with other weights and are compiled together: once for each state
        that a block can be in (frozen, training, evaluating), however many blocks and stages of
        unfreezing there are. The model as a whole would be compiled again at each stage, until
        torch gives up. What an earlier model of this process left behind is forgotten, since it
        counts towards that limit too.
        """
        torch.compiler.reset()
        for block in () if isinstance(self.encoder, NoEncoder) else self.encoder.block:
            block.compile()


def build_forecaster(
    *,
    encoder: Encoder,
    num_channels: int,
    seq_len: int,
    output_len: int,
    patch_len: int,
    stride: int | None,
    channels: str,
    norm: bool,
    scale: str,
    embedding_rms: float | None,
    hidden: str = "none",
    normalize: str,
    head: str = "flatten",
    patch_generator: torch.Generator,
    head_generator: torch.Generator,
) -> Forecaster:
    """Build a forecaster around an encoder.

    Patch and head draw from their own generators and nothing else does, so the same seeds give
    bit-identical patch and head weights around every encoder of one width. The head's weight is
    normal with std `HEAD_INIT_GAIN`/√fan_in, its bias zero.

    With `NoEncoder` there is no patch embedding either: the head maps the L steps of a channel
    (or the C·L of all, mixing) to the forecast, and `patch_len` and `stride` do not matter.

    Args:
        encoder: What stands between patch embedding and head.
        num_channels: Channels C.
        seq_len: Context length L in steps.
        output_len: Steps H that the head puts out per channel.
        patch_len: Patch length in steps.
        stride: Steps from patch to patch; None for `patch_len`.
        channels: "independent" or "mixing".
        norm: LayerNorm on the tokens.
        scale: Scale of the tokens; see `PatchEmbedding`.
        embedding_rms: For `scale="match_embedding"` and "native".
        hidden: What stands for a step that is NaN: "none" (there is none), "value" or "token"; see
            `PatchEmbedding`. Statistics of the normalisation are then the visible steps'.
        normalize: "instance" or "none".
        head: "flatten": one map from all tokens to the output. "per_patch": one map, the same for
            all, from a token to its own patch; the output is then the context, so `output_len` is
            `seq_len`, the stride is the patch length, and there are tokens.
        patch_generator: Draws the patch embedding, on the CPU.
        head_generator: Draws the head, on the CPU.

    Raises:
        ConfigError: if the scale is the embedding's, and its RMS is unknown or not positive.

    Source: Nie et al. 2023 (PatchTST), section 3.1 (flattened) and 3.2 (per patch).
    """
    assert num_channels >= 1
    assert output_len >= 1
    patch: PatchEmbedding | WholeContext
    if isinstance(encoder, NoEncoder):
        assert not norm, "there are no tokens"
        assert scale == "none"
        patch = WholeContext(
            seq_len=seq_len, num_channels=num_channels, channels=channels, hidden=hidden
        )
    else:
        patch = PatchEmbedding(
            seq_len=seq_len,
            num_channels=num_channels,
            d_model=encoder.d_model,
            patch_len=patch_len,
            stride=stride,
            channels=channels,
            norm=norm,
            scale=scale,
            embedding_rms=embedding_rms,
            hidden=hidden,
            generator=patch_generator,
        )
    per_patch = head == "per_patch"
    if per_patch:
        assert isinstance(patch, PatchEmbedding), "there are no tokens"
        assert patch.stride == patch.patch_len, "a step would have two tokens"
        assert output_len == seq_len
    fan_in = patch.d_model if per_patch else patch.num_patches * patch.d_model
    steps = patch_len if per_patch else output_len
    linear = torch.nn.utils.skip_init(
        nn.Linear, fan_in, steps * num_channels if patch.mixing else steps
    )
    with torch.no_grad():
        linear.weight.normal_(0.0, HEAD_INIT_GAIN * fan_in**-0.5, generator=head_generator)
        linear.bias.zero_()
    return Forecaster(
        normalize=build_normalize(normalize, has_hidden=hidden != "none"),
        patch=patch,
        encoder=encoder,
        head=linear,
        per_patch=per_patch,
    )


@torch.no_grad()
def scale_audit(model: Forecaster, x_BCL: Tensor) -> dict[str, float]:
    """How large the signal is along the encoder, and how much each block changes it.

    Evaluated without dropout and without gradients; the model's training modes are restored. A
    ratio far above 1 in the first blocks says that they drown the tokens: the scale of the
    tokens, not what the weights know, then decides the arm.

    Args:
        model: A forecaster, not compiled.
        x_BCL: Contexts, as for `forward`; one batch is enough.

    Returns:
        RMS over all entries, in order: `input` (the tokens), `block_<i>` (each block's output),
        `output` (after the final norm, where there is one), and for each block
        `residual_ratio/block_<i>`, RMS(output - input) / RMS(input) of the block (not finite when
        the input is all zeros, as constant contexts make it).

    Source: own.
    """
    rms: dict[str, Tensor] = {}
    ratio: dict[str, Tensor] = {}

    def record_block(name: str, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        rms[name] = _rms(output)
        ratio[f"residual_ratio/{name}"] = _rms(output - inputs[0]) / _rms(inputs[0])

    def record_patch(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        rms["input"] = _rms(output)

    def record_encoder(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        rms["output"] = _rms(output)

    with ExitStack() as stack:
        stack.enter_context(_evaluating(model))
        for module, hook in ((model.patch, record_patch), (model.encoder, record_encoder)):
            stack.callback(module.register_forward_hook(hook).remove)
        blocks = () if isinstance(model.encoder, NoEncoder) else model.encoder.block
        for i, block in enumerate(blocks):
            handle = block.register_forward_hook(
                lambda _, inputs, output, name=f"block_{i}": record_block(name, inputs, output)
            )
            stack.callback(handle.remove)
        model(x_BCL)
    return {name: value.item() for name, value in (rms | ratio).items()}


def _rms(x: Tensor) -> Tensor:
    return x.double().square().mean().sqrt()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; each module's own mode restored, since frozen blocks may differ."""
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in was_training.items():
            module.training = training
