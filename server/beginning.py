"""Where an image's denoising begins: from noise alone, or from a picture, of which a part may stay.

A request's pictures are encoded once (`encode`); each of its images then begins with noise of its own (`begin`), drawn
in the order of the diffusers pipelines: the picture's latents, the start noise, the masked picture's latents.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from server.canvas import FromNoise, FromPicture, Inpainting, latent_mask
from server.families.base import Posterior, Run, together
from server.levels import Array, Level
from server.noise import NoiseStream
from server.plan import Plan


@dataclass(frozen=True)
class Encoded:
    """What the autoencoder makes of a request's pictures; each is there or not, as the plan says."""

    picture: tuple[Posterior, ...]  # the one to start from
    masked: tuple[Posterior, ...]  # without the area to paint, for a network that is told so


@dataclass(frozen=True, eq=False)
class View:
    """How a network sees the latents of a picture of which a part is known."""

    known: Callable[[Array, Level], Array]  # x (c h w) at a level -> x with the known area put in
    told: Array  # further channels of the sample: channels h w, float32


@dataclass(frozen=True, eq=False)
class Beginning:
    """One image's first latents, and what networks see of the picture they come from."""

    x: Array  # c h w, float32, at the first step's level
    telling: View  # for a network that is told: mask and masked picture are channels, x is left alone
    blending: View  # for all others: the known area is put into x


async def encode(plan: Plan, run: Run) -> Encoded:
    """Every picture that the plan's denoising needs, each by one execution."""
    if plan.encodings == 0:
        return Encoded((), ())
    family, card = plan.engine.family, plan.engine.card
    pixels, unmasked = _shown(plan)
    everything = np.ones(pixels.shape[:2], np.uint8)
    visible = ((everything,) if plan.needs_picture else ()) + ((unmasked,) if card.inpainting else ())
    posteriors = await together(*(family.encode(pixels, part, card, run) for part in visible))
    first = 1 if plan.needs_picture else 0
    return Encoded(picture=tuple(posteriors[:first]), masked=tuple(posteriors[first:]))


def _shown(plan: Plan) -> tuple[Array, Array]:
    """The picture (height width 3, uint8) and where it is not painted (height width, uint8): nowhere without a mask."""
    height, width = plan.size.height, plan.size.width
    match plan.start:
        case FromNoise():
            return np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
        case FromPicture(pixels=pixels):
            return pixels, np.zeros((height, width), np.uint8)
        case Inpainting(pixels=pixels, mask=mask):
            return pixels, (~mask).astype(np.uint8)


def begin(plan: Plan, encoded: Encoded, noise: NoiseStream) -> Beginning:
    """Of one image; draws from its stream."""
    card = plan.engine.card
    factor = card.pixels_per_latent
    shape = (card.latent_channels, plan.size.height // factor, plan.size.width // factor)
    picture = [_latents(posterior, noise) for posterior in encoded.picture if plan.draws_picture_first]
    start = noise.normal(shape)
    masked = [_latents(posterior, noise) for posterior in encoded.masked]
    picture = picture or [_latents(posterior, noise) for posterior in encoded.picture]  # one or none
    if isinstance(plan.start, Inpainting) and not masked:
        noise.normal(shape)  # diffusers draws the masked picture's latents for every network
    x = np.float32(plan.trajectory.start_scale) * start
    if plan.keeps_picture:
        x = _noised(picture[0], start, plan.walked[0].here)
    nothing = np.empty((0, *shape[1:]), np.float32)
    plain = View(_as_it_is, nothing)
    if not masked and not isinstance(plan.start, Inpainting):
        return Beginning(x, plain, plain)
    mask = latent_mask(_shown(plan)[1] == 0, factor)  # 1 h w
    telling = View(_as_it_is, np.concatenate((mask, *masked))) if masked else plain
    if not isinstance(plan.start, Inpainting) or not picture:
        return Beginning(x, telling, plain)

    def known(x: Array, level: Level) -> Array:
        blended: Array = mask * x + (1 - mask) * _noised(picture[0], start, level)
        return blended

    return Beginning(x, telling, View(known, nothing))


def _as_it_is(x: Array, level: Level) -> Array:
    return x


def _latents(posterior: Posterior, noise: NoiseStream) -> Array:
    """A draw from the picture's latents: c h w, float32."""
    latents: Array = posterior.mean + posterior.std * noise.normal(posterior.mean.shape)
    return latents


def _noised(clean: Array, noise: Array, level: Level) -> Array:
    """Clean latents at a level; all c h w, float32."""
    x: Array = np.float32(level.alpha) * clean + np.float32(level.sigma) * noise
    return x
