"""ControlNet beside a UNet in one graph: its residuals never leave the engine. Knows of families what they hand in.

A ControlNet's weights are not part of a checkpoint; of them only the shapes are taken, from a `controlnet/config.json`
beside the UNet or from the UNet itself, as ControlNets are published.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from export import ExportError
from export.checkpoint import Checkpoint
from export.recipes import Axis, EngineRecipe, TemplateRecipe, called, plain_unet, randomised
from server.engines.port import Array, Spec
from server.families.adapted import AdaptedCard

COMPONENT = "controlnet"  # a folder of the checkpoint, or joined to it under this name
CONFIG = f"{COMPONENT}/config.json"
PUBLISHED_CHANNELS = (16, 32, 96, 256)  # of the layers that halve the map, for an autoencoder of 8 pixels a latent
_MASKED = 0.1  # of an example's map

Wrap = Callable[[torch.nn.Module, torch.nn.Module], torch.nn.Module]


class Controlled(torch.nn.Module):
    """A UNet and the ControlNet whose residuals it takes. A family's subclass says what a UNet of it is told."""

    def __init__(self, unet: torch.nn.Module, controlnet: torch.nn.Module) -> None:
        super().__init__()
        self.unet = unet
        self.controlnet = controlnet

    def predict(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        states: torch.Tensor,
        added: Mapping[str, torch.Tensor] | None,
        control: torch.Tensor,
        scale: torch.Tensor,
    ) -> torch.Tensor:
        """`control` rows height width 4, uint8, in pixels; `scale` rows -> rows c h w, float32."""
        map = control[..., :3].permute(0, 3, 1, 2).float() / 255  # 0..1
        visible = control[..., 3:].permute(0, 3, 1, 2) > 0
        twin = cast(Any, self.controlnet)
        residuals, middle = twin(
            sample[:, : twin.config.in_channels],  # an inpainting UNet's further channels are not for it
            timestep,
            states,
            torch.where(visible, map, -1.0),
            added_cond_kwargs=added,
            return_dict=False,
        )
        weight = scale[:, None, None, None]
        result = cast(Any, self.unet)(
            sample,
            timestep,
            states,
            added_cond_kwargs=added,
            down_block_additional_residuals=[residual * weight for residual in residuals],
            mid_block_additional_residual=middle * weight,
            return_dict=False,
        )
        return cast(torch.Tensor, result[0])


def control_recipe(
    spec: Spec, unet: EngineRecipe, wrap: Wrap, card: AdaptedCard, checkpoint: Checkpoint
) -> TemplateRecipe:
    """The template of `spec`: the UNet of `unet`, wrapped with a ControlNet by `wrap`."""

    def controlled(component: torch.nn.Module) -> torch.nn.Module:
        shape = _config(component, card, checkpoint)
        controlnet = ControlNetModel.from_config(dict(shape))  # type: ignore[no-untyped-call]
        return wrap(component, randomised(cast(torch.nn.Module, controlnet)))

    scale = card.pixels_per_latent
    engine = replace(
        unet,
        spec=spec,
        wrap=controlled,
        axes={
            **unet.axes,
            **{
                f"picture_{side}": Axis(scale * unet.axes[side].multiple, scale * unet.axes[side].most, unit=side)
                for side in ("height", "width")
            },
        },
        traced=_with_picture(unet.traced, scale),
        checked=_with_picture(unet.checked, scale),
        golden=_with_picture(unet.golden, scale),
        draws={**unet.draws, "control": _map, "control_scale": _scales},
    )
    return TemplateRecipe(
        engine,
        reference=called(spec),  # the wrapped modules are diffusers' own
        neutral={"control_scale": lambda random, shape: np.zeros(shape, np.float32)},
        plain=plain_unet(unet),
    )


def check_config(checkpoint: Checkpoint, unet: Mapping[str, Any], card_channels: int, pixels_per_latent: int) -> None:
    """Raises `ExportError` when the checkpoint has a ControlNet's config that does not fit its UNet."""
    if not checkpoint.path(CONFIG).is_file():
        return
    found = checkpoint.json(CONFIG)
    rules = (
        ("in_channels", found.get("in_channels"), card_channels),
        ("cross_attention_dim", found.get("cross_attention_dim"), unet["cross_attention_dim"]),
        ("block_out_channels", found.get("block_out_channels"), unet["block_out_channels"]),
        ("layers_per_block", found.get("layers_per_block"), unet["layers_per_block"]),
        ("addition_embed_type", found.get("addition_embed_type"), unet.get("addition_embed_type")),
        (
            "projection_class_embeddings_input_dim",
            found.get("projection_class_embeddings_input_dim"),
            unet.get("projection_class_embeddings_input_dim"),
        ),
        ("global_pool_conditions", bool(found.get("global_pool_conditions")), False),
        (
            "pixels a latent of conditioning_embedding_out_channels",
            2 ** (len(found.get("conditioning_embedding_out_channels") or PUBLISHED_CHANNELS) - 1),
            pixels_per_latent,
        ),
    )
    differences = [f"{what} is {given!r}, must be {allowed!r}" for what, given, allowed in rules if given != allowed]
    if differences:
        raise ExportError(f"{checkpoint.path(CONFIG)} is no ControlNet of this checkpoint: {'; '.join(differences)}")


def _config(unet: torch.nn.Module, card: AdaptedCard, checkpoint: Checkpoint) -> Mapping[str, Any]:
    if checkpoint.path(CONFIG).is_file():
        return checkpoint.json(CONFIG)
    halvings = card.pixels_per_latent.bit_length() - 1
    further = (PUBLISHED_CHANNELS[-1],) * (halvings + 1 - len(PUBLISHED_CHANNELS))
    try:
        with torch.device("meta"):
            twin = ControlNetModel.from_unet(
                cast(UNet2DConditionModel, unet),
                conditioning_embedding_out_channels=(*PUBLISHED_CHANNELS, *further)[: halvings + 1],
                load_weights_from_unet=False,
            )
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ExportError(
            f"{checkpoint.source}: a ControlNet cannot be shaped like its UNet: {error}; give one's with --controlnet"
        ) from error
    return {**cast(Mapping[str, Any], twin.config), "in_channels": card.latent_channels}


def _with_picture(lengths: dict[str, int], scale: int) -> dict[str, int]:
    return {**lengths, "picture_height": scale * lengths["height"], "picture_width": scale * lengths["width"]}


def _map(random: np.random.RandomState, shape: tuple[int, ...]) -> Array:
    """Noise with holes."""
    drawn = (random.random_sample(shape) * 256).astype(np.uint8)
    drawn[..., 3] = 255 * (random.random_sample(shape[:-1]) > _MASKED)
    return drawn


def _scales(random: np.random.RandomState, shape: tuple[int, ...]) -> Array:
    return random.uniform(0.25, 1.5, shape).astype(np.float32)
