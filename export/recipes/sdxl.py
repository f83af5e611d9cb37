"""Stable Diffusion XL, with its refiner or without, and checkpoints of its shape such as SSD-1B.

Which blocks a UNet has is its config's business: SSD-1B differs in nothing else. The refiner is a checkpoint of its
own, joined as "refiner"; it is told by the five numbers that its UNet is conditioned on, where the base has six. Of it
only the UNet is taken: it reads the base's second text encoder and shares its autoencoder, as the published ones do.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from export import ExportError
from export.checkpoint import Checkpoint
from export.recipes import (
    Axis,
    EngineRecipe,
    Lengths,
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
from export.wrappers import PenultimateStates, PenultimateStatesAndPooled, VaeDecoder
from server.families import sdxl, sdxl_networks
from server.families.adapted import image_encoders
from server.families.parts import CLIP_TOKENS, MAX_ROWS, MEGAPIXEL_SIZES
from server.families.sdxl_networks import BASE_TIME_IDS, REFINER_TIME_IDS, SdxlCard

FAMILY = "sdxl"
COMPONENTS: Mapping[str, type] = {
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
    "image_encoder": CLIPVisionModelWithProjection,  # may be absent
    "unet": UNet2DConditionModel,
    "refiner/unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
}
PIPELINES = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline")

_ROWS = Axis(multiple=1, most=MAX_ROWS)
_TOKENS = Axis(multiple=1, most=16 * CLIP_TOKENS)
_ONE = {"rows": 1}  # the VAE takes one picture a call, but is traced with two so that the axis stays free


class _UNet(torch.nn.Module):
    def __init__(self, component: torch.nn.Module) -> None:
        super().__init__()
        self.component = component

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        text_embeds: torch.Tensor,
        time_ids: torch.Tensor,
    ) -> torch.Tensor:
        """rows c h w; rows; rows tokens width; rows pooled; rows ids -> rows c h w; all float32."""
        added = {"text_embeds": text_embeds, "time_ids": time_ids}
        result = self.component(sample, timestep, encoder_hidden_states, added_cond_kwargs=added, return_dict=False)
        return cast(torch.Tensor, result[0])


class _Control(Controlled):
    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        text_embeds: torch.Tensor,
        time_ids: torch.Tensor,
        control: torch.Tensor,
        control_scale: torch.Tensor,
    ) -> torch.Tensor:
        """As `_UNet`, and as `Controlled.predict`."""
        added = {"text_embeds": text_embeds, "time_ids": time_ids}
        return self.predict(sample, timestep, encoder_hidden_states, added, control, control_scale)


class _Prompted(Prompted):
    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        text_embeds: torch.Tensor,
        time_ids: torch.Tensor,
        image_tokens: torch.Tensor,
        ip_scale: torch.Tensor,
        ip_mask: torch.Tensor,
    ) -> torch.Tensor:
        """As `_UNet`, and as `Prompted.predict`."""
        added = {"text_embeds": text_embeds, "time_ids": time_ids}
        return self.predict(sample, timestep, encoder_hidden_states, added, image_tokens, ip_scale, ip_mask)


def templates(checkpoint: Checkpoint, card: SdxlCard) -> tuple[TemplateRecipe, ...]:
    """Those of `sdxl.FAMILY.templates(card)`."""
    (unet,) = (recipe for recipe in recipes(checkpoint, card) if recipe.spec == sdxl_networks.unet(card))
    specs = {spec.name.removeprefix(f"{card.name}_"): spec for spec in sdxl.FAMILY.templates(card)}
    control = control_recipe(specs["unet_control"], unet, _Control, card, checkpoint)
    return (control, *image_prompt.recipes(specs, unet, _Prompted, card, checkpoint))


def recipes(checkpoint: Checkpoint, card: SdxlCard) -> tuple[EngineRecipe, ...]:
    """Those of `sdxl_networks.engines(card)` that come out of the checkpoint: all but those for transfer images."""
    specs = {spec.name.removeprefix(f"{card.name}_"): spec for spec in sdxl_networks.engines(card)}
    halvings = _multiple(checkpoint.config("unet"))
    text = [
        clip_text_recipe(
            specs[name], name, wrap, int(checkpoint.config(name)["vocab_size"]), card.text_layers, tokenizer
        )
        for name, wrap, tokenizer in (
            ("text_encoder", PenultimateStates, "tokenizer"),
            ("text_encoder_2", PenultimateStatesAndPooled, "tokenizer_2"),
        )
    ]
    unets = [
        EngineRecipe(
            spec=specs[name],
            component=component,
            wrap=_UNet,
            axes={"rows": _ROWS, "tokens": _TOKENS, **_latent_axes(card, multiple)},
            traced=_traced(multiple),
            checked=_checked(multiple),
            golden=_golden(multiple),
            draws={
                "sample": normal,
                "timestep": uniform(1000, "float32"),
                "encoder_hidden_states": normal,
                "text_embeds": normal,
                "time_ids": uniform(1024, "float32"),
            },
        )
        for name, component in (("unet", "unet"), ("refiner", "refiner/unet"))
        if name in specs
        for multiple in (_multiple(checkpoint.config(component)),)
    ]
    side = _latent_axes(card, halvings)["width"]
    encoder = vae_encoder_recipe(
        specs["vae_encoder"], side.multiple * card.pixels_per_latent, side.most * card.pixels_per_latent
    )
    decoder = EngineRecipe(
        spec=specs["vae_decoder"],
        component="vae",
        wrap=VaeDecoder,
        axes={"rows": _ROWS, "height": side, "width": side},
        traced=_traced(halvings),
        checked=_checked(halvings) | _ONE,
        golden=_golden(halvings) | _ONE,
        draws={"latents": normal},
    )
    vision = (image_prompt.encoder_recipe(spec) for spec in image_encoders(card))
    return (*text, *vision, encoder, *unets, decoder)


def _multiple(unet: Mapping[str, Any]) -> int:
    """Latent sides are multiples of this: each level but the last halves them."""
    return int(2 ** (len(unet["block_out_channels"]) - 1))


def _latent_axes(card: SdxlCard, multiple: int) -> Mapping[str, Axis]:
    most = max(max(size) for size in MEGAPIXEL_SIZES) // card.pixels_per_latent
    return {"height": Axis(multiple, most), "width": Axis(multiple, most)}


# Not one token at the bottom to begin with: see export/recipes/sd15.py.
def _traced(multiple: int) -> Lengths:
    return {"rows": 2, "height": 3 * multiple, "width": 4 * multiple, "tokens": 2 * CLIP_TOKENS}


def _checked(multiple: int) -> Lengths:
    return {"rows": 3, "height": 5 * multiple, "width": 2 * multiple, "tokens": CLIP_TOKENS}


def _golden(multiple: int) -> Lengths:
    """Eight tokens at the bottom: of two, OpenVINO 2026.4.1 makes NaN in bfloat16 at full size."""
    return {"rows": 2, "height": 4 * multiple, "width": 2 * multiple, "tokens": CLIP_TOKENS}


def card(checkpoint: Checkpoint, name: str, title: str, prediction_type: str | None) -> SdxlCard:
    """Raises `ExportError` when the checkpoint is not of this shape or does not say how it was trained."""
    refiner = checkpoint.joined.get("refiner")
    checkpoint.expect_pipeline(PIPELINES, "SDXL")
    if refiner is not None:
        refiner.expect_pipeline(PIPELINES, "SDXL's refiner")
    try:
        _refuse_swapped(checkpoint)
        card = _card(checkpoint, name, title, prediction_type)
        if refiner is not None:
            _check_refiner(refiner, card, prediction_type)
        return card
    except KeyError as error:
        raise ExportError(f"a config.json or scheduler_config.json of {checkpoint.source} lacks {error}") from error


def _ids(unet: Mapping[str, Any], pooled_width: int) -> float | None:
    """How many numbers besides the pooled text a UNet is conditioned on; None when it is on neither."""
    if unet.get("addition_embed_type") != "text_time":
        return None
    return float((unet["projection_class_embeddings_input_dim"] - pooled_width) / unet["addition_time_embed_dim"])


def _refuse_swapped(checkpoint: Checkpoint) -> None:
    """A base where a refiner belongs, or the other way about. Before all else: a refiner lacks a text encoder, too."""
    pooled_width = checkpoint.config("text_encoder_2")["projection_dim"]
    for part, wrong, advice in (
        ("unet", REFINER_TIME_IDS, "is a refiner's UNet: give it with --refiner, and its base with --checkpoint"),
        ("refiner/unet", BASE_TIME_IDS, "is a base's UNet, not a refiner's: give it with --checkpoint"),
    ):
        if part == "unet" or "refiner" in checkpoint.joined:
            found = _ids(checkpoint.config(part), pooled_width)
            if found == wrong:
                raise ExportError(f"{checkpoint.path(part)} {advice} (it is conditioned on {wrong} numbers)")


def _card(checkpoint: Checkpoint, name: str, title: str, prediction_type: str | None) -> SdxlCard:
    unet, vae, text, text_2 = (
        checkpoint.config(component) for component in ("unet", "vae", "text_encoder", "text_encoder_2")
    )
    pixels_per_latent = 2 ** (len(vae["block_out_channels"]) - 1)
    channels = vae["latent_channels"]
    inpainting = unet["in_channels"] == 2 * channels + 1  # latents, a mask, the masked picture's latents
    _refuse_differences(
        checkpoint.source,
        "SDXL",
        (
            ("unet cross_attention_dim", unet["cross_attention_dim"], text["hidden_size"] + text_2["hidden_size"]),
            ("text_encoder max_position_embeddings", text["max_position_embeddings"], CLIP_TOKENS),
            ("text_encoder_2 max_position_embeddings", text_2["max_position_embeddings"], CLIP_TOKENS),
            # diffusers would whiten latents with these
            ("vae latents_mean", vae.get("latents_mean"), None),
            ("vae latents_std", vae.get("latents_std"), None),
            (
                f"unet in_channels ({2 * channels + 1} where it inpaints)",
                channels if inpainting else unet["in_channels"],
                channels,
            ),
            *_unet_rules(unet, channels, text_2["projection_dim"], BASE_TIME_IDS, pixels_per_latent),
        ),
    )
    check_config(checkpoint, unet, channels, pixels_per_latent)
    vision = image_prompt.vision(checkpoint, unet["cross_attention_dim"])
    return SdxlCard(
        name=name,
        family=FAMILY,
        title=title,
        source=checkpoint.source,
        latent_channels=channels,
        pixels_per_latent=pixels_per_latent,
        scheduler=trained_scheduler(checkpoint, prediction_type),
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
        text_2_width=text_2["hidden_size"],
        pooled_width=text_2["projection_dim"],
        text_layers=min(text["num_hidden_layers"], text_2["num_hidden_layers"]),
        zeros_for_no_negative=_zeros(checkpoint),
        refiner="refiner" in checkpoint.joined,
        transfer_side=0,
        transfer_lora="",
    )


def _zeros(checkpoint: Checkpoint) -> bool:
    return bool(checkpoint.json("model_index.json").get("force_zeros_for_empty_prompt", True))


def _check_refiner(refiner: Checkpoint, card: SdxlCard, prediction_type: str | None) -> None:
    unet = refiner.config("unet")
    _refuse_differences(
        refiner.source,
        "a refiner of this base",
        (
            ("unet cross_attention_dim", unet["cross_attention_dim"], card.text_2_width),
            ("unet in_channels", unet["in_channels"], card.latent_channels),
            *_unet_rules(unet, card.latent_channels, card.pooled_width, REFINER_TIME_IDS, card.pixels_per_latent),
            # what the service gives a refiner for an absent negative prompt is the empty text (diffusers assumes True)
            ("force_zeros_for_empty_prompt", _zeros(refiner), False),
            # both work on one picture's levels, one after the other
            ("scheduler", trained_scheduler(refiner, prediction_type), card.scheduler),
        ),
    )


Rule = tuple[str, object, object]  # what, found, allowed


def _unet_rules(
    unet: Mapping[str, Any], channels: int, pooled_width: int, ids: int, pixels_per_latent: int
) -> tuple[Rule, ...]:
    sides = {side for size in MEGAPIXEL_SIZES for side in size}
    step = _multiple(unet) * pixels_per_latent
    return (
        ("unet out_channels", unet["out_channels"], channels),
        ("unet addition_embed_type", unet.get("addition_embed_type"), "text_time"),
        ("unet class_embed_type", unet.get("class_embed_type"), None),
        ("numbers that the unet is conditioned on", _ids(unet, pooled_width), ids),
        (f"sides that are no multiple of {step} pixels", sorted(side for side in sides if side % step), []),
    )


def _refuse_differences(source: str, shape: str, rules: tuple[Rule, ...]) -> None:
    differences = [f"{what} is {found!r}, must be {allowed!r}" for what, found, allowed in rules if found != allowed]
    if differences:
        raise ExportError(f"{source} is not shaped like {shape}: {'; '.join(differences)}")
