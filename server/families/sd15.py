"""Stable Diffusion 1.5: one CLIP text encoder, an epsilon- or v-predicting UNet, an 8x autoencoder.

Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2022), and the published
checkpoint's layout in diffusers.
"""

from server.engines.port import Port, Spec
from server.families.card import Card

TOKENS = 77  # of CLIP: one chunk, start and end tokens included
MAX_ROWS = 16  # of one denoising call: eight guidance pairs


def engines(card: Card) -> tuple[Spec, ...]:
    """The three engines of a checkpoint, in the order they are needed."""
    latent = ("rows", card.latent_channels, "height", "width")  # in latent pixels
    return (
        Spec(
            name=f"{card.name}_text_encoder",
            inputs=(Port("input_ids", "int64", ("rows", TOKENS)),),
            outputs=(Port("hidden_states", "float32", ("rows", TOKENS, card.text_width)),),  # after the final layer norm
            max_rows=MAX_ROWS,
        ),
        Spec(
            name=f"{card.name}_unet",
            inputs=(
                Port("sample", "float32", latent),  # alpha * clean + sigma * noise, about unit variance
                Port("timestep", "float32", ("rows",)),  # 0..999, fractions allowed
                Port("encoder_hidden_states", "float32", ("rows", "tokens", card.text_width)),
            ),
            outputs=(Port("prediction", "float32", latent),),
            max_rows=MAX_ROWS,
        ),
        Spec(
            name=f"{card.name}_vae_decoder",
            inputs=(Port("latents", "float32", latent),),  # as denoised: the engine undoes the scaling factor
            outputs=(Port("pixels", "uint8", ("rows", "picture_height", "picture_width", 3)),),  # RGB
            max_rows=1,  # a 1536x1024 decode is memory enough for one call
        ),
    )
