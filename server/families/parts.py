"""What several families have alike: CLIP's chunk, the autoencoder's engines, the sizes of about a megapixel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from server.engines.port import Array, Port, Spec
from server.families.base import Posterior, Run, Size
from server.families.card import Card

if TYPE_CHECKING:
    from server.plan import Plan

CLIP_TOKENS = 77  # one chunk, start and end tokens included
MOST_CHUNKS = 3  # of a text on engines that read several
MOST_SKIPPED = 12  # of the API
MAX_ROWS = 16  # of one text or denoising call: eight guidance pairs


def sizes(text: str) -> tuple[Size, ...]:
    """Of "512x512 384x704"."""
    return tuple(Size(*map(int, pair.split("x"))) for pair in text.split())


MEGAPIXEL_SIZES = sizes("1024x1024 1536x640 768x1344 832x1216 1344x768 1152x896 640x1536 1216x832 896x1152")


def vae_encoder(card: Card) -> Spec:
    """A picture to the distribution of its latents."""
    latent = ("rows", card.latent_channels, "height", "width")
    return Spec(
        name=f"{card.name}_vae_encoder",
        inputs=(
            Port("pixels", "uint8", ("rows", "picture_height", "picture_width", 3)),  # RGB
            Port("visible", "uint8", ("rows", "picture_height", "picture_width")),  # 0: reads as mid grey; else 1
        ),
        # as the denoiser takes them: the engine applies the scaling factor and the shift
        outputs=(Port("mean", "float32", latent), Port("std", "float32", latent)),
        max_rows=1,  # as the decoder
    )


def vae_decoder(card: Card) -> Spec:
    """Latents to pixels."""
    return Spec(
        name=f"{card.name}_vae_decoder",
        # as denoised: the engine undoes the scaling factor and the shift
        inputs=(Port("latents", "float32", ("rows", card.latent_channels, "height", "width")),),
        outputs=(Port("pixels", "uint8", ("rows", "picture_height", "picture_width", 3)),),  # RGB
        max_rows=1,  # a 1536x1024 decode is memory enough for one call
    )


async def encode(pixels: Array, visible: Array, card: Card, run: Run) -> Posterior:
    """Pixels (height width 3, uint8) to their latents; `visible` (height width, uint8) is 0 where they are not told."""
    outputs = await run(vae_encoder(card), {"pixels": pixels[None], "visible": visible[None]})
    return Posterior(outputs["mean"][0], outputs["std"][0])


def shortened(steps: int, strength: float) -> int:
    """The first step of image to image, as diffusers' StableDiffusionImg2ImgPipeline has it; one runs at least."""
    return min(steps - min(int(steps * strength), steps), steps - 1)


def executions(plan: Plan, card: Card, others: Mapping[Spec, int], denoisers: Mapping[Spec, int]) -> Mapping[str, int]:
    """Of each network for a whole request; `denoisers` has the evaluations of one picture, `others` what comes before
    them. A text encoder takes all texts in one call."""
    pictures = len(plan.seeds)
    counts = {spec.name: count for spec, count in others.items()}
    counts[vae_encoder(card).name] = plan.encodings
    counts |= {spec.name: evaluations * pictures for spec, evaluations in denoisers.items()}
    counts[vae_decoder(card).name] = pictures
    return {name: count for name, count in counts.items() if count > 0}


async def decode(latents: Array, card: Card, run: Run) -> Array:
    """Latents (c h w, float32) to pixels (height width 3, uint8)."""
    pixels: Array = (await run(vae_decoder(card), {"latents": latents[None]}))["pixels"][0]
    return pixels
