"""How ControlNets and IP-Adapters take part in the denoising of SD 1.5 and SDXL: which network does which evaluations,
and what it is told besides the texts. Knows neither family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from server.adapters.control import Control, NoControl, kept
from server.adapters.ip_adapter import ImagePrompt, NoImagePrompt, Reach, scales
from server.adapters.preprocess import mapped, mapper
from server.engines.port import Array, Spec, Tensors
from server.families.adapted import (
    AdaptedCard,
    image_encoder,
    ip_projection,
    ip_projection_plus,
    unet_control,
    unet_ip,
)
from server.families.base import Network, Run

if TYPE_CHECKING:
    from server.plan import Plan


@dataclass(frozen=True)
class Guided:
    """A checkpoint's UNet as adapters guide it."""

    card: AdaptedCard
    unet: Spec  # without any
    text_width: int  # channels of the states that it reads
    reach: Reach

    def turns(self, plan: Plan, evaluations: int) -> tuple[tuple[Spec, int], ...]:
        """Which network does how many of a picture's first evaluations, one after the other.

        A ControlNet's end is a share of all evaluations of a plan, a refiner's among them: so has diffusers.
        """
        found: tuple[tuple[Spec, int], ...]
        match plan.control, plan.image_prompt:
            case Control(early_stop=early_stop), _:
                count = min(kept(plan.sampler.evaluations(plan.walked), early_stop), evaluations)
                found = ((unet_control(self.card, self.unet), count), (self.unet, evaluations - count))
            case _, ImagePrompt():
                found = ((unet_ip(self.card, self.unet, self.text_width), evaluations),)
            case _:
                found = ((self.unet, evaluations),)
        return tuple((spec, count) for spec, count in found if count > 0)

    def lookers(self, plan: Plan, evaluations: int) -> tuple[Spec, ...]:
        """The networks that look at the pictures that guide those evaluations: each runs once for a request."""
        if not self._is_guided(plan, evaluations):
            return ()
        match plan.control, plan.image_prompt:
            case Control() as control, _:
                return mapper(control)
            case _, ImagePrompt() as prompt:
                return image_encoder(self.card), self._projection(prompt)
        return ()

    async def networks(self, plan: Plan, evaluations: int, run: Run) -> tuple[Network, ...]:
        """`turns` with what each is told of pictures."""
        pictures: Tensors = {}
        if self._is_guided(plan, evaluations):
            rows = 2 if plan.guided else 1
            pictures = await self._control(plan.control, rows, run) | await self._prompt(plan.image_prompt, rows, run)
        return tuple(
            Network(spec, {} if spec == self.unet else pictures, count) for spec, count in self.turns(plan, evaluations)
        )

    def _is_guided(self, plan: Plan, evaluations: int) -> bool:
        return any(spec != self.unet for spec, _ in self.turns(plan, evaluations))

    def _projection(self, prompt: ImagePrompt) -> Spec:
        project = ip_projection if prompt.projection == "linear" else ip_projection_plus
        return project(self.card, self.text_width)

    async def _control(self, control: Control | NoControl, rows: int, run: Run) -> dict[str, Array]:
        """Both halves of guidance see the map."""
        match control:
            case NoControl():
                return {}
            case Control():
                shown = await mapped(control, run)
                return {
                    "control": np.broadcast_to(shown, (rows, *shown.shape)),  # rows height width 4, uint8
                    "control_scale": np.full(rows, control.scale, np.float32),
                }

    async def _prompt(self, prompt: ImagePrompt | NoImagePrompt, rows: int, run: Run) -> dict[str, Array]:
        match prompt:
            case NoImagePrompt():
                return {}
            case ImagePrompt():
                pass
        strengths = scales(prompt, self.card.ip_blocks, self.reach)
        tokens = await run(self._projection(prompt), await self._embedded(prompt, rows, run))
        return {
            "image_tokens": tokens["image_tokens"],  # rows tokens width
            "ip_scale": np.broadcast_to(strengths, (rows, *strengths.shape)),
            "ip_mask": np.broadcast_to(prompt.mask, (rows, *prompt.mask.shape)),
        }

    async def _embedded(self, prompt: ImagePrompt, rows: int, run: Run) -> dict[str, Array]:
        """What the projection reads, a row for each half of guidance. The negative one is of no picture: a plain
        adapter was trained with zeros for its embedding, a "plus" one with a picture of zeros."""
        encoder, shown = image_encoder(self.card), prompt.pixel_values[None]
        match prompt.projection:
            case "linear":
                positive = (await run(encoder, {"pixel_values": shown}))["image_embeds"]
                return {"image_embeds": np.concatenate([np.zeros_like(positive), positive])[-rows:]}
            case "plus":
                both = np.concatenate([np.zeros_like(shown), shown])[-rows:]
                return {"hidden_states": (await run(encoder, {"pixel_values": both}))["hidden_states"]}


def with_texts(networks: Sequence[Network], texts: Sequence[tuple[Tensors, int]]) -> tuple[Network, ...]:
    """Networks that are told of texts, too: of each of `texts` for so many evaluations, in order."""
    doing = (network for network in range(len(networks)) for _ in range(networks[network].evaluations))
    told = (text for text in range(len(texts)) for _ in range(texts[text][1]))
    return tuple(
        Network(networks[network].denoiser, {**texts[text][0], **networks[network].inputs}, len(list(evaluations)))
        for (network, text), evaluations in groupby(zip(doing, told, strict=True))
    )
