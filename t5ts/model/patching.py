"""From a context to tokens: which steps make a patch, and how a patch becomes a vector."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t5ts.errors import WeightsError
from t5ts.model.architecture import architecture_from
from t5ts.model.checkpoint_file import file_sha256, open_checkpoint
from t5ts.model.layers import Linear
from t5ts.model.verify import read_embedding
from t5ts.model.weights import CONTROLS, LoadReport


class PatchEmbedding(nn.Module):
    """Cut a context into patches and project each to a token.

    A patch starts every `stride` steps. If L - P is not a multiple of the stride, the front is
    padded by repeating the first value (and its mark), so that no observation is dropped.

    Channels are `independent` (each channel of each window is a row, all sharing one projection:
    M = B·C, row b·C + c) or `mixing` (a token embeds the same patch of all channels: M = B).

    A token is scale · norm(W patch + b), the norm being an optional LayerNorm over D. W is normal
    with std 1/√fan_in, so that a token's RMS is about its patch's; b uniform within ±1/√fan_in: it
    must not start at zero, where a constant window's tokens would be zero and each of T5's norms
    would multiply their gradient by 1/√ε = 1000 (3e12 through 4 blocks on real data, LOG.md).

    Hidden steps are NaN, and `hidden` is what replaces them. "none": nothing, and a NaN propagates.
    "value": 0, which after instance normalisation is the mean of what is visible. "token": also 0,
    and before the norm the token gets the sum of a learnable vector for each hidden place of its
    patch: a wholly hidden patch is always the same token.

    With a bank of S token embeddings (`token_bank`) a token is scale · norm(softmax(W patch + b)
    A bank): W gives a score for each of K prototypes, the rows of A bank, and A, (K, S), is trained
    like W; hidden places add to the scores. The bank is a buffer: saved, and never trained. A is
    normal with std 1/√S, so that a prototype's RMS is about a token's.

    Args:
        seq_len, num_channels, d_model, patch_len: L, C, D and P; lengths in steps.
        stride: Steps from one patch to the next, at most `patch_len`; None for `patch_len`.
        channels: "independent" or "mixing".
        norm: LayerNorm after the projection.
        scale: What tokens are multiplied by after the norm.
        hidden: "none", "value" or "token".
        num_prototypes: K; None for a linear projection to D.
        bank_SD: The token embeddings that prototypes are mixed from; None without prototypes.
        generator: Draws W, b, the mask token and A, in this order, on the CPU.

    Source: Nie et al. 2023 (PatchTST), section 3.1; norm, scale, padding and hidden steps own.
    Prototypes: Jin et al. 2024 (Time-LLM), section 3.1, with one head, whose scores are a linear
    map of the patch, over a sample of the vocabulary.
    """

    def __init__(
        self,
        *,
        seq_len: int,
        num_channels: int,
        d_model: int,
        patch_len: int,
        stride: int | None,
        channels: str,
        norm: bool,
        scale: float = 1.0,
        hidden: str = "none",
        num_prototypes: int | None = None,
        bank_SD: Tensor | None = None,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        assert (num_prototypes is None) == (bank_SD is None)
        stride = patch_len if stride is None else stride
        assert 1 <= stride <= patch_len <= seq_len
        assert channels in ("independent", "mixing")
        assert hidden in ("none", "value", "token")
        self.d_model = d_model
        self.patch_len = patch_len
        self.stride = stride
        self.mixing = channels == "mixing"
        self.hidden = hidden
        self.pad = -(seq_len - patch_len) % stride
        self.num_patches = (seq_len + self.pad - patch_len) // stride + 1
        self.scale = scale
        fan_in = patch_len * num_channels if self.mixing else patch_len
        width = d_model if num_prototypes is None else num_prototypes
        self.projection = Linear(fan_in, width)
        # A weighted sum of prototypes is small, the more so where the arm's embeddings are: epsilon
        # must not matter in one arm more than in another.
        eps = 1e-5 if bank_SD is None else 1e-12
        self.norm = nn.LayerNorm(d_model, eps=eps) if norm else nn.Identity()
        with torch.no_grad():
            bound = fan_in**-0.5
            self.projection.weight.normal_(0.0, bound, generator=generator)
            self.projection.bias.uniform_(-bound, bound, generator=generator)
        # (fan_in, D or K): a vector for each place
        self.mask_token: nn.Parameter | None = None
        if hidden == "token":
            token_PD = torch.empty(fan_in, width).normal_(0.0, bound, generator=generator)
            self.mask_token = nn.Parameter(token_PD)
        self.mixture: nn.Parameter | None = None  # (K, S)
        self.bank: Tensor | None
        self.register_buffer("bank", bank_SD)
        if bank_SD is not None:
            rows = len(bank_SD)
            mixture_KS = torch.empty(width, rows).normal_(0.0, rows**-0.5, generator=generator)
            self.mixture = nn.Parameter(mixture_KS)

    def forward(self, x_BCL: Tensor) -> Tensor:
        """Embed a context, (B, C, L), as tokens, (M, N, D)."""
        tokens_MND = self._project(self.patches(x_BCL))
        if self.mixture is not None:  # so far they are scores, (M, N, K)
            assert self.bank is not None
            tokens_MND = tokens_MND.softmax(-1) @ (self.mixture @ self.bank)
        tokens_MND = self.norm(tokens_MND)
        return tokens_MND if self.scale == 1.0 else tokens_MND * self.scale

    def _project(self, patches_MNP: Tensor) -> Tensor:
        """Project patches, with hidden places replaced."""
        if self.hidden == "none":
            return self.projection(patches_MNP)
        is_hidden_MNP = patches_MNP.isnan()
        tokens_MND = self.projection(patches_MNP.masked_fill(is_hidden_MNP, 0.0))
        if self.mask_token is None:
            return tokens_MND
        return tokens_MND + is_hidden_MNP.to(patches_MNP.dtype) @ self.mask_token

    def patches(self, x_BCL: Tensor) -> Tensor:
        """The patches before projection: (B·C, N, P), or (B, N, C·P) when channels mix."""
        if self.pad:
            x_BCL = F.pad(x_BCL, (self.pad, 0), mode="replicate")
        patches_BCNP = x_BCL.unfold(-1, self.patch_len, self.stride)
        if self.mixing:
            return patches_BCNP.transpose(1, 2).flatten(2)
        return patches_BCNP.flatten(0, 1)


def token_bank(
    report: LoadReport, *, num_rows: int, sample: torch.Generator, own: torch.Generator
) -> Tensor:
    """Token embeddings of an arm's own weights, to mix prototypes from; (S, D) float32.

    Args:
        report: Of the arm's encoder. A checkpoint's embedding is read from the files it names;
            the controls transform all of it, as they do the encoder; "random" has the model's law.
        num_rows: S.
        sample: Chooses the tokens, so that arms of one vocabulary have the same ones.
        own: Draws what is the arm's own: random weights and controls.

    Raises:
        WeightsError: if the vocabulary has fewer tokens, or the checkpoint's files have changed
            since the encoder was read.
    """
    vocabulary, d_model = (report.architecture[key] for key in ("vocab_size", "d_model"))
    if num_rows > vocabulary:
        raise WeightsError(
            f"patch.bank_size={num_rows}, but {report.source} has {vocabulary:,} token embeddings"
            f" (init={report.init}): use patch.bank_size={vocabulary} or less, or patch=norm."
        )
    if report.init == "random":
        return torch.empty(num_rows, d_model).normal_(0.0, report.embedding_rms, generator=own)
    assert report.path is not None
    files = open_checkpoint(report.path, model_types=None)
    if {file.name: file_sha256(file) for file in files.files} != report.files:
        raise WeightsError(f"{report.path} has changed since its encoder was read: try again.")
    state = {"embedding": read_embedding(files, architecture_from(report.architecture))}
    if report.init in CONTROLS:
        make, _ = CONTROLS[report.init]
        state = make(state, generator=own)
    return state["embedding"][torch.randperm(vocabulary, generator=sample)[:num_rows]]


class WholeContext(nn.Module):
    """The context as one token without projection, for a forecaster without encoder.

    M, N, D are B·C, 1, L, or B, 1, C·L when channels mix. There are no parameters. A hidden step
    ("value") is 0; see `PatchEmbedding` for the arguments.
    """

    def __init__(
        self, *, seq_len: int, num_channels: int, channels: str, hidden: str = "none"
    ) -> None:
        super().__init__()
        assert channels in ("independent", "mixing")
        assert hidden in ("none", "value")  # there are no tokens
        self.hidden = hidden
        self.mixing = channels == "mixing"
        self.num_patches = 1
        self.d_model = seq_len * num_channels if self.mixing else seq_len

    def forward(self, x_BCL: Tensor) -> Tensor:
        """Reshape a context, (B, C, L), to one token a row, (M, 1, D)."""
        if self.hidden == "value":
            x_BCL = x_BCL.masked_fill(x_BCL.isnan(), 0.0)
        return x_BCL.flatten(1)[:, None] if self.mixing else x_BCL.flatten(0, 1)[:, None]
