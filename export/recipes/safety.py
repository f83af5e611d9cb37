"""The safety checker of diffusers, beside any family's engines. Its tensors are those of `server.safety`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch.nn.functional import normalize

from export import ExportError
from export.checkpoint import Checkpoint
from export.recipes import Axis, EngineRecipe, TemplateRecipe, normal
from export.repository import Recipe
from server.families.card import Card
from server.safety import LEAST_MARGIN, SIDE, safety_checker

COMPONENT = "safety_checker"  # a folder of the checkpoint, or joined to it under this name
_CAUTION = 0.01  # added to every concept's margin where a special one is seen


class _Margin(torch.nn.Module):
    """The number that decides, and the decision's arithmetic as StableDiffusionSafetyChecker has it."""

    def __init__(self, component: torch.nn.Module) -> None:
        super().__init__()
        self.component = component

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """rows 3 224 224, float32, normalised -> rows, float32."""
        checker = cast(Any, self.component)
        summary = normalize(checker.visual_projection(checker.vision_model(pixels)[1]))  # rows width
        special = summary @ normalize(checker.special_care_embeds).T - checker.special_care_embeds_weights
        concepts = summary @ normalize(checker.concept_embeds).T - checker.concept_embeds_weights
        caution = _CAUTION * (special > LEAST_MARGIN).any(dim=1).to(concepts.dtype)
        return cast(torch.Tensor, concepts.amax(dim=1) + caution)


class WithSafetyChecker:
    """A family's recipe and, behind its engines, the checker."""

    def __init__(self, family: Recipe) -> None:
        self._family = family
        self.COMPONENTS: Mapping[str, type] = {**family.COMPONENTS, COMPONENT: StableDiffusionSafetyChecker}

    def card(self, checkpoint: Checkpoint, name: str, title: str, prediction_type: str | None) -> Card:
        """Raises `ExportError` also for a checker that is none of this shape."""
        config = checkpoint.config(COMPONENT)
        side = config.get("vision_config", {}).get("image_size")
        if side != SIDE:
            raise ExportError(
                f"{checkpoint.path(f'{COMPONENT}/config.json')} is not of a StableDiffusionSafetyChecker: its "
                f"vision_config has the image_size {side}, must be {SIDE}"
            )
        return replace(self._family.card(checkpoint, name, title, prediction_type), safety_checker=True)

    def recipes(self, checkpoint: Checkpoint, card: Card) -> tuple[EngineRecipe, ...]:
        """The family's, and the checker's."""
        checker = EngineRecipe(
            spec=safety_checker(card),
            component=COMPONENT,
            wrap=_Margin,
            axes={"rows": Axis(multiple=1, most=16)},
            traced={"rows": 2},
            checked={"rows": 3},
            golden={"rows": 1},
            draws={"pixels": normal},
        )
        return (*self._family.recipes(checkpoint, card), checker)

    def templates(self, checkpoint: Checkpoint, card: Card) -> tuple[TemplateRecipe, ...]:
        """The family's."""
        return self._family.templates(checkpoint, card)
