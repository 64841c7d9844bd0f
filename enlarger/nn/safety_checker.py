"""Stable Diffusion's safety checker: how near a picture's CLIP embedding lies to fixed concepts."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_CONCEPTS, NUM_SPECIAL_CONCEPTS = 17, 3
SPECIAL_CARE_ADJUSTMENT = 0.01  # added to every score of a picture that needs special care


class SafetyCheckerNetwork(nn.Module):
    """`vision` is CLIP's image model of `width` channels, whose second output is the pooled state."""

    def __init__(self, vision: nn.Module, width: int, projection: int) -> None:
        super().__init__()
        self.vision_model = vision
        self.visual_projection = nn.Linear(width, projection, bias=False)
        self.concept_embeds = nn.Parameter(torch.ones(NUM_CONCEPTS, projection))
        self.concept_embeds_weights = nn.Parameter(
            torch.ones(NUM_CONCEPTS)
        )  # the cosine above which a picture is flagged
        self.special_care_embeds = nn.Parameter(torch.ones(NUM_SPECIAL_CONCEPTS, projection))
        self.special_care_embeds_weights = nn.Parameter(torch.ones(NUM_SPECIAL_CONCEPTS))

    def forward(self, pixels: Tensor) -> Tensor:
        """Which of (B, 3, H, W) preprocessed pictures show a concept, (B,) bool."""
        embedding = F.normalize(self.visual_projection(self.vision_model(pixels)[1]))  # (B, projection)
        special_scores = _concept_scores(embedding, self.special_care_embeds, self.special_care_embeds_weights)
        adjustment = (_round_to_thousandths(special_scores) > 0).any(1, keepdim=True) * SPECIAL_CARE_ADJUSTMENT
        concept_scores = _concept_scores(embedding, self.concept_embeds, self.concept_embeds_weights)
        return (_round_to_thousandths(concept_scores + adjustment) > 0).any(1)


def _concept_scores(embedding: Tensor, concepts: Tensor, thresholds: Tensor) -> Tensor:
    """How far the cosine to each concept is above its threshold, (B, concepts)."""
    return (embedding @ F.normalize(concepts).mT).float() - thresholds.float()


def _round_to_thousandths(x: Tensor) -> Tensor:
    """The thresholds were chosen for scores of three digits."""
    return (x * 1000).round()
