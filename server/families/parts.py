"""What several families have alike: CLIP's chunk, the decoder's engine, the sizes of about a megapixel."""

from server.engines.port import Array, Port, Spec
from server.families.base import Run, Size
from server.families.card import Card

CLIP_TOKENS = 77  # one chunk, start and end tokens included
MAX_ROWS = 16  # of one text or denoising call: eight guidance pairs


def sizes(text: str) -> tuple[Size, ...]:
    """Of "512x512 384x704"."""
    return tuple(Size(*map(int, pair.split("x"))) for pair in text.split())


MEGAPIXEL_SIZES = sizes("1024x1024 1536x640 768x1344 832x1216 1344x768 1152x896 640x1536 1216x832 896x1152")


def vae_decoder(card: Card) -> Spec:
    """Latents to pixels."""
    return Spec(
        name=f"{card.name}_vae_decoder",
        # as denoised: the engine undoes the scaling factor and the shift
        inputs=(Port("latents", "float32", ("rows", card.latent_channels, "height", "width")),),
        outputs=(Port("pixels", "uint8", ("rows", "picture_height", "picture_width", 3)),),  # RGB
        max_rows=1,  # a 1536x1024 decode is memory enough for one call
    )


async def decode(latents: Array, card: Card, run: Run) -> Array:
    """Latents (c h w, float32) to pixels (height width 3, uint8)."""
    pixels: Array = (await run(vae_decoder(card), {"latents": latents[None]}))["pixels"][0]
    return pixels
