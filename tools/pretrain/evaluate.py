"""How well a model fills corrupted spans, vs. word frequencies alone and random weights."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Score:
    """Losses on one text, in nats per target token.

    Attributes:
        tokens: Target tokens that were scored.
        unigram_entropy: Entropy of these targets' own unigram distribution: the least loss that
            any predictor without context can have on them.
        random_init: The same model as it was before its first step.
        model: The trained model.
    """

    tokens: int
    unigram_entropy: float
    random_init: float
    model: float

    @property
    def below_entropy(self) -> float:
        """The model's loss below the unigram entropy, as a share of it."""
        return 1 - self.model / self.unigram_entropy


@torch.no_grad()
def token_losses(
    model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], device: torch.device
) -> Tensor:
    """Cross-entropy of every target token in float32 and evaluation mode, (tokens,) float64."""
    model.to(device).eval()
    losses = []
    for source_BL, target_BT in batches:
        logits_BTV = model(input_ids=source_BL.to(device), labels=target_BT.to(device)).logits
        losses.append(
            nn.functional.cross_entropy(
                logits_BTV.float().flatten(0, 1), target_BT.to(device).flatten(), reduction="none"
            ).cpu()
        )
    return torch.cat(losses).double()


def unigram_entropy(targets: Tensor) -> float:
    """Entropy in nats of the empirical distribution of these ids."""
    counts = torch.bincount(targets.flatten()).double()
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * shares.log()).sum())


def score(
    models: Mapping[str, nn.Module],
    batches: Sequence[tuple[Tensor, Tensor]],
    *,
    is_text: Tensor,
    device: torch.device,
) -> dict[str, Score]:
    """Scores on all target tokens ("all") and without sentinels and end marks ("text").

    Sentinels are nearly given by the objective, so that "all" flatters every model; the second
    score shows by how much.

    Args:
        models: "model" and "random_init".
        batches: Corrupted inputs and their targets.
        is_text: (vocabulary,) bool, False for ids that no text gives.
    """
    targets = torch.cat([target_BT.flatten() for _, target_BT in batches])
    losses = {name: token_losses(model, batches, device) for name, model in models.items()}
    scores = {}
    every = torch.ones_like(targets, dtype=torch.bool)
    for part, chosen in (("all", every), ("text", is_text[targets])):
        scores[part] = Score(
            tokens=int(chosen.sum()),
            unigram_entropy=unigram_entropy(targets[chosen]),
            **{name: float(loss[chosen].mean()) for name, loss in losses.items()},
        )
    return scores


def as_dict(result: Score) -> dict[str, float]:
    """JSON-able."""
    return {**asdict(result), "below_entropy": result.below_entropy}


def table(results: Mapping[str, Mapping[str, Score]]) -> str:
    """Markdown, a row for each text and kind of token."""
    lines = [
        "| text | target tokens | number | unigram entropy | random init | model | below entropy |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, scores in results.items():
        for part, s in scores.items():
            lines.append(
                f"| {name} | {part} | {s.tokens:,} | {s.unigram_entropy:.3f} | "
                f"{s.random_init:.3f} | {s.model:.3f} | {s.below_entropy:.1%} |"
            )
    return "\n".join(lines)
