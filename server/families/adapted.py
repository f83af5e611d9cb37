"""What SD 1.5 and SDXL have alike of ControlNet and IP-Adapter: what their cards say of them, and the engines.

`unet_control`, `unet_ip` and the projections are templates: graphs without weights of their own, run only as variants
(`server/adapters/weights.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from server.engines.port import Port, Spec
from server.families.card import Card
from server.families.parts import MAX_ROWS

LINEAR_TOKENS = 4  # that a picture is to a plain IP-Adapter: as published
PLUS_TOKENS = 16  # to one of the "plus" kind


@dataclass(frozen=True)
class AdaptedCard(Card):
    """A checkpoint that may have graphs for ControlNets and IP-Adapters."""

    control: bool  # whether there is a graph that takes a ControlNet
    image_side: int  # pixels of what the image encoder is shown; 0: there is none
    image_width: int  # channels of its summary of a picture
    vision_width: int  # of its states
    image_patches: int  # states it has of a picture, the summary's own among them
    ip_blocks: tuple[str, ...]  # the UNet's cross attentions in the order of an IP-Adapter's file; empty: no graph
    ip_plus: bool  # whether there is a graph for the "plus" kind's projection, too


def image_encoder(card: AdaptedCard) -> Spec:
    """CLIP's vision tower."""
    return Spec(
        name=f"{card.name}_image_encoder",
        # RGB, normalised by CLIP's mean and deviation
        inputs=(Port("pixel_values", "float32", ("rows", 3, card.image_side, card.image_side)),),
        outputs=(
            Port("image_embeds", "float32", ("rows", card.image_width)),  # projected
            Port("hidden_states", "float32", ("rows", card.image_patches, card.vision_width)),  # before the last layer
        ),
        max_rows=MAX_ROWS,
    )


def ip_projection(card: AdaptedCard, text_width: int) -> Spec:
    """A picture's summary to what the UNet's cross attentions read of it."""
    return Spec(
        name=f"{card.name}_ip_projection",
        inputs=(Port("image_embeds", "float32", ("rows", card.image_width)),),
        outputs=(Port("image_tokens", "float32", ("rows", LINEAR_TOKENS, text_width)),),
        max_rows=MAX_ROWS,
    )


def ip_projection_plus(card: AdaptedCard, text_width: int) -> Spec:
    """The same of the "plus" kind, which reads all the states."""
    return Spec(
        name=f"{card.name}_ip_projection_plus",
        inputs=(Port("hidden_states", "float32", ("rows", card.image_patches, card.vision_width)),),
        outputs=(Port("image_tokens", "float32", ("rows", PLUS_TOKENS, text_width)),),
        max_rows=MAX_ROWS,
    )


def unet_control(card: AdaptedCard, unet: Spec) -> Spec:
    """The UNet and a ControlNet, whose residuals it takes."""
    control = (
        # RGB of the map and 255; 0 where a pixel is masked, which reads as -1 in all channels
        Port("control", "uint8", ("rows", "picture_height", "picture_width", 4)),
        Port("control_scale", "float32", ("rows",)),
    )
    return replace(unet, name=f"{card.name}_unet_control", inputs=(*unet.inputs, *control))


def unet_ip(card: AdaptedCard, unet: Spec, text_width: int) -> Spec:
    """The UNet with an IP-Adapter's attention beside each of its cross attentions."""
    picture = (
        Port("image_tokens", "float32", ("rows", "image_tokens", text_width)),
        Port("ip_scale", "float32", ("rows", len(card.ip_blocks))),  # in the order of `ip_blocks`
        Port("ip_mask", "float32", ("rows", "height", "width")),  # 1: applies; in latent pixels
    )
    return replace(unet, name=f"{card.name}_unet_ip", inputs=(*unet.inputs, *picture))


def image_encoders(card: AdaptedCard) -> tuple[Spec, ...]:
    """One or none."""
    return (image_encoder(card),) if card.image_side > 0 else ()


def templates(card: AdaptedCard, unet: Spec, text_width: int) -> tuple[Spec, ...]:
    """Those that the checkpoint has."""
    control = (unet_control(card, unet),) if card.control else ()
    if not card.ip_blocks:
        return control
    plus = (ip_projection_plus(card, text_width),) if card.ip_plus else ()
    return (*control, ip_projection(card, text_width), *plus, unet_ip(card, unet, text_width))
