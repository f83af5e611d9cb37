"""Stable Diffusion 1.5 and checkpoints of its shape: which modules become which engines, and the card.

The engines' tensors are those of `server.families.sd15`; this file only says how torch's modules give them.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel

from export import ExportError
from export.checkpoint import Checkpoint
from export.recipes import Axis, EngineRecipe, clip_tokenizer, normal, uniform
from server.families import sd15
from server.families.card import Card, Scheduler
from server.levels import noise_schedule

FAMILY = "sd15"
TITLE = "Stable Diffusion 1.5"
COMPONENTS: Mapping[str, type] = {"text_encoder": CLIPTextModel, "unet": UNet2DConditionModel, "vae": AutoencoderKL}

_ROWS = Axis(multiple=1, most=sd15.MAX_ROWS)
_LATENT = Axis(multiple=8, most=192)  # the largest picture is 1536x1024; the UNet halves three times
_TOKENS = Axis(multiple=1, most=16 * sd15.TOKENS)

# Not 8 by 8 to begin with: OpenVINO 2026.4.1 computes wrongly, and goes on to, when the first picture it ever sees has
# one attention token at the bottom. No supported size does.
_TRACED = {"rows": 2, "height": 24, "width": 32, "tokens": 2 * sd15.TOKENS}
_CHECKED = {"rows": 3, "height": 40, "width": 16, "tokens": sd15.TOKENS}
_GOLDEN = {"rows": 2, "height": 16, "width": 8, "tokens": sd15.TOKENS}
_ONE = {"rows": 1}  # the VAE takes one picture a call, but is traced with two so that the axis stays free


class _TextEncoder(torch.nn.Module):
    def __init__(self, component: torch.nn.Module) -> None:
        super().__init__()
        self.component = component

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """rows 77, int64 -> rows 77 width, float32, after the final layer norm."""
        return cast(torch.Tensor, self.component(input_ids).last_hidden_state)


class _UNet(torch.nn.Module):
    def __init__(self, component: torch.nn.Module) -> None:
        super().__init__()
        self.component = component

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> torch.Tensor:
        """rows 4 h w; rows; rows tokens width -> rows 4 h w; all float32."""
        return cast(torch.Tensor, self.component(sample, timestep, encoder_hidden_states, return_dict=False)[0])


class _VaeDecoder(torch.nn.Module):
    def __init__(self, component: torch.nn.Module) -> None:
        super().__init__()
        self.component = component
        config = cast(Any, component).config
        self.scale = float(config.scaling_factor)
        self.shift = 0.0 if config.get("shift_factor") is None else float(config.shift_factor)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """rows 4 h w, float32, as denoised -> rows 8h 8w 3, uint8; the arithmetic is diffusers' VaeImageProcessor's."""
        decoded = cast(Any, self.component).decode(latents / self.scale + self.shift, return_dict=False)[0]
        unit = (decoded * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        return cast(torch.Tensor, (unit * 255).round().to(torch.uint8))


def recipes(checkpoint: Checkpoint, card: Card) -> tuple[EngineRecipe, ...]:
    """The three engines of `sd15.engines(card)`."""
    text_encoder, unet, vae_decoder = sd15.engines(card)
    vocabulary = int(checkpoint.config("text_encoder")["vocab_size"])
    return (
        EngineRecipe(
            spec=text_encoder,
            component="text_encoder",
            wrap=_TextEncoder,
            axes={"rows": _ROWS},
            traced=_TRACED,
            checked=_CHECKED,
            golden=_GOLDEN,
            draws={"input_ids": uniform(vocabulary, "int64")},
            tokenizer=clip_tokenizer("tokenizer"),
        ),
        EngineRecipe(
            spec=unet,
            component="unet",
            wrap=_UNet,
            axes={"rows": _ROWS, "height": _LATENT, "width": _LATENT, "tokens": _TOKENS},
            traced=_TRACED,
            checked=_CHECKED,
            golden=_GOLDEN,
            draws={"sample": normal, "timestep": uniform(1000, "float32"), "encoder_hidden_states": normal},
        ),
        EngineRecipe(
            spec=vae_decoder,
            component="vae",
            wrap=_VaeDecoder,
            axes={"rows": _ROWS, "height": _LATENT, "width": _LATENT},
            traced=_TRACED,
            checked=_CHECKED | _ONE,
            golden=_GOLDEN | _ONE,
            draws={"latents": normal},
        ),
    )


def card(checkpoint: Checkpoint, name: str, title: str, prediction_type: str | None) -> Card:
    """Raises `ExportError` when the checkpoint is not of this shape or does not say how it was trained."""
    try:
        return _card(checkpoint, name, title, _scheduler(checkpoint, prediction_type))
    except KeyError as error:
        raise ExportError(f"a config.json or scheduler_config.json of {checkpoint.folder} lacks {error}") from error


def _card(checkpoint: Checkpoint, name: str, title: str, scheduler: Scheduler) -> Card:
    unet, vae, text = (checkpoint.config(component) for component in ("unet", "vae", "text_encoder"))
    pixels_per_latent = 2 ** (len(vae["block_out_channels"]) - 1)
    differences = [
        f"{field} is {found!r}, must be {allowed!r}"
        for field, found, allowed in (
            ("unet in_channels", unet["in_channels"], vae["latent_channels"]),  # an inpainting UNet has 9
            ("unet out_channels", unet["out_channels"], vae["latent_channels"]),
            ("unet levels", len(unet["down_block_types"]), 4),
            ("unet cross_attention_dim", unet["cross_attention_dim"], text["hidden_size"]),
            ("unet addition_embed_type", unet.get("addition_embed_type"), None),  # SDXL has one
            ("unet class_embed_type", unet.get("class_embed_type"), None),
            ("text_encoder max_position_embeddings", text["max_position_embeddings"], sd15.TOKENS),
            ("vae pixels per latent", pixels_per_latent, 8),
        )
        if found != allowed
    ]
    if differences:
        raise ExportError(f"{checkpoint.source} is not shaped like Stable Diffusion 1.5: {'; '.join(differences)}")
    return Card(
        name=name,
        family=FAMILY,
        title=title,
        source=checkpoint.source,
        text_width=text["hidden_size"],
        latent_channels=vae["latent_channels"],
        pixels_per_latent=pixels_per_latent,
        scheduler=scheduler,
    )


def _scheduler(checkpoint: Checkpoint, prediction_type: str | None) -> Scheduler:
    config = checkpoint.json("scheduler/scheduler_config.json")
    said = config.get("prediction_type")
    if said is None and prediction_type is None:
        raise ExportError(
            f"{checkpoint.path('scheduler/scheduler_config.json')} does not say what the UNet predicts: give "
            "--prediction-type epsilon (as for Stable Diffusion 1.5 as published) or v_prediction"
        )
    if None not in (said, prediction_type) and said != prediction_type:
        raise ExportError(f"--prediction-type is {prediction_type!r} but the checkpoint's scheduler says {said!r}")
    wanted: dict[str, tuple[object, ...]] = {
        "trained_betas": (None,),
        "clip_sample": (None, False),
        "rescale_betas_zero_snr": (None, False),
    }
    for field, allowed in wanted.items():
        if config.get(field) not in allowed:
            raise ExportError(
                f"{checkpoint.path('scheduler/scheduler_config.json')}: {field} is {config[field]!r}, this version "
                f"knows {' or '.join(repr(value) for value in allowed)}"
            )
    scheduler = Scheduler(
        num_train_timesteps=int(config["num_train_timesteps"]),
        beta_start=float(config["beta_start"]),
        beta_end=float(config["beta_end"]),
        beta_schedule=config["beta_schedule"],
        prediction_type=str(said if prediction_type is None else prediction_type),
        steps_offset=int(config["steps_offset"]),
        set_alpha_to_one=bool(config["set_alpha_to_one"]),
        timestep_spacing=config.get("timestep_spacing"),
    )
    try:
        noise_schedule(scheduler)
    except ValueError as error:
        raise ExportError(f"{checkpoint.path('scheduler/scheduler_config.json')}: {error}") from error
    return scheduler
