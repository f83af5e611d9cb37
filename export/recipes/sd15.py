"""Stable Diffusion 1.5 and checkpoints of its shape: which modules become which engines, and the card.

The engines' tensors are those of `server.families.sd15`; this file only says how torch's modules give them.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPVisionModelWithProjection

from export import ExportError
from export.checkpoint import Checkpoint
from export.recipes import (
    Axis,
    EngineRecipe,
    TemplateRecipe,
    clip_text_recipe,
    image_prompt,
    normal,
    uniform,
    vae_encoder_recipe,
)
from export.recipes.control import Controlled, check_config, control_recipe
from export.recipes.image_prompt import Prompted
from export.scheduler import trained_scheduler
from export.wrappers import VaeDecoder, inverted, skipping
from server.families import sd15
from server.families.adapted import image_encoders
from server.families.parts import CLIP_TOKENS, MAX_ROWS, vae_decoder, vae_encoder
from server.families.sd15 import Sd15Card
from server.levels import Scheduler

FAMILY = "sd15"
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionInpaintPipeline")
COMPONENTS: Mapping[str, type] = {
    "text_encoder": CLIPTextModel,
    "image_encoder": CLIPVisionModelWithProjection,  # may be absent
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
}

_ROWS = Axis(multiple=1, most=MAX_ROWS)
_LATENT = Axis(multiple=8, most=192)  # the largest picture is 1536x1024; the UNet halves three times
_TOKENS = Axis(multiple=1, most=16 * CLIP_TOKENS)

# Not 8 by 8 to begin with: OpenVINO 2026.4.1 computes wrongly, and goes on to, when the first picture it ever sees has
# one attention token at the bottom. No supported size does.
_TRACED = {"rows": 2, "height": 24, "width": 32, "tokens": 2 * CLIP_TOKENS}
_CHECKED = {"rows": 3, "height": 40, "width": 16, "tokens": CLIP_TOKENS}
_GOLDEN = {"rows": 2, "height": 16, "width": 8, "tokens": CLIP_TOKENS}
_ONE = {"rows": 1}  # the VAE takes one picture a call, but is traced with two so that the axis stays free


class _TextEncoder(torch.nn.Module):
    def __init__(self, component: torch.nn.Module) -> None:
        super().__init__()
        self.component = component

    def forward(self, input_ids: torch.Tensor, skip: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """rows 77, int64; rows, int64: how many layers to leave out at the end; rows vectors width, float32: what ids
        below 0 stand for -> rows 77 width, float32, after the final layer norm."""
        with inverted(self.component, input_ids, vectors):
            states = self.component(input_ids, output_hidden_states=True).hidden_states[1:]
        return cast(torch.Tensor, cast(Any, self.component).final_layer_norm(skipping(states, skip)))


class _UNet(torch.nn.Module):
    def __init__(self, component: torch.nn.Module) -> None:
        super().__init__()
        self.component = component

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> torch.Tensor:
        """rows 4 h w; rows; rows tokens width -> rows 4 h w; all float32."""
        return cast(torch.Tensor, self.component(sample, timestep, encoder_hidden_states, return_dict=False)[0])


class _Control(Controlled):
    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        control: torch.Tensor,
        control_scale: torch.Tensor,
    ) -> torch.Tensor:
        """As `_UNet`, and as `Controlled.predict`."""
        return self.predict(sample, timestep, encoder_hidden_states, None, control, control_scale)


class _Prompted(Prompted):
    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        image_tokens: torch.Tensor,
        ip_scale: torch.Tensor,
        ip_mask: torch.Tensor,
    ) -> torch.Tensor:
        """As `_UNet`, and as `Prompted.predict`."""
        return self.predict(sample, timestep, encoder_hidden_states, None, image_tokens, ip_scale, ip_mask)


def templates(checkpoint: Checkpoint, card: Sd15Card) -> tuple[TemplateRecipe, ...]:
    """Those of `sd15.FAMILY.templates(card)`."""
    (unet,) = (recipe for recipe in recipes(checkpoint, card) if recipe.spec == sd15.unet(card))
    specs = {spec.name.removeprefix(f"{card.name}_"): spec for spec in sd15.FAMILY.templates(card)}
    control = control_recipe(specs["unet_control"], unet, _Control, card, checkpoint)
    return (control, *image_prompt.recipes(specs, unet, _Prompted, card, checkpoint))


def recipes(checkpoint: Checkpoint, card: Sd15Card) -> tuple[EngineRecipe, ...]:
    """The engines of `sd15.engines(card)`."""
    vocabulary = int(checkpoint.config("text_encoder")["vocab_size"])
    return (
        clip_text_recipe(
            sd15.text_encoder(card), "text_encoder", _TextEncoder, vocabulary, card.text_layers, "tokenizer"
        ),
        *(image_prompt.encoder_recipe(spec) for spec in image_encoders(card)),
        vae_encoder_recipe(
            vae_encoder(card), _LATENT.multiple * card.pixels_per_latent, _LATENT.most * card.pixels_per_latent
        ),
        EngineRecipe(
            spec=sd15.unet(card),
            component="unet",
            wrap=_UNet,
            axes={"rows": _ROWS, "height": _LATENT, "width": _LATENT, "tokens": _TOKENS},
            traced=_TRACED,
            checked=_CHECKED,
            golden=_GOLDEN,
            draws={"sample": normal, "timestep": uniform(1000, "float32"), "encoder_hidden_states": normal},
        ),
        EngineRecipe(
            spec=vae_decoder(card),
            component="vae",
            wrap=VaeDecoder,
            axes={"rows": _ROWS, "height": _LATENT, "width": _LATENT},
            traced=_TRACED,
            checked=_CHECKED | _ONE,
            golden=_GOLDEN | _ONE,
            draws={"latents": normal},
        ),
    )


def card(checkpoint: Checkpoint, name: str, title: str, prediction_type: str | None) -> Sd15Card:
    """Raises `ExportError` when the checkpoint is not of this shape or does not say how it was trained."""
    checkpoint.expect_pipeline(PIPELINES, "Stable Diffusion 1.5")
    try:
        return _card(checkpoint, name, title, trained_scheduler(checkpoint, prediction_type))
    except KeyError as error:
        raise ExportError(f"a config.json or scheduler_config.json of {checkpoint.folder} lacks {error}") from error


def _card(checkpoint: Checkpoint, name: str, title: str, scheduler: Scheduler) -> Sd15Card:
    unet, vae, text = (checkpoint.config(component) for component in ("unet", "vae", "text_encoder"))
    pixels_per_latent = 2 ** (len(vae["block_out_channels"]) - 1)
    channels = vae["latent_channels"]
    inpainting = unet["in_channels"] == 2 * channels + 1  # latents, a mask, the masked picture's latents
    differences = [
        f"{field} is {found!r}, must be {allowed!r}"
        for field, found, allowed in (
            (
                f"unet in_channels ({2 * channels + 1} where it inpaints)",
                channels if inpainting else unet["in_channels"],
                channels,
            ),
            ("unet out_channels", unet["out_channels"], channels),
            ("unet levels", len(unet["down_block_types"]), 4),
            ("unet cross_attention_dim", unet["cross_attention_dim"], text["hidden_size"]),
            ("unet addition_embed_type", unet.get("addition_embed_type"), None),  # SDXL has one
            ("unet class_embed_type", unet.get("class_embed_type"), None),
            ("text_encoder max_position_embeddings", text["max_position_embeddings"], CLIP_TOKENS),
            ("vae pixels per latent", pixels_per_latent, 8),
        )
        if found != allowed
    ]
    if differences:
        raise ExportError(f"{checkpoint.source} is not shaped like Stable Diffusion 1.5: {'; '.join(differences)}")
    check_config(checkpoint, unet, channels, pixels_per_latent)
    vision = image_prompt.vision(checkpoint, text["hidden_size"])
    return Sd15Card(
        name=name,
        family=FAMILY,
        title=title,
        source=checkpoint.source,
        latent_channels=channels,
        pixels_per_latent=pixels_per_latent,
        scheduler=scheduler,
        inpainting=inpainting,
        safety_checker=False,
        control=True,
        image_side=vision.image_side,
        image_width=vision.image_width,
        vision_width=vision.vision_width,
        image_patches=vision.image_patches,
        ip_blocks=vision.ip_blocks,
        ip_plus=vision.ip_plus,
        text_width=text["hidden_size"],
        text_layers=text["num_hidden_layers"],
    )
