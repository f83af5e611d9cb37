"""Stable Diffusion 3 and checkpoints of its shape: which modules become which engines, and the card.

The engines' tensors are those of `server.families.sd3`; this file only says how torch's modules give them.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from transformers import CLIPTextModelWithProjection, T5EncoderModel, T5Tokenizer

from export import ExportError
from export.checkpoint import Checkpoint
from export.recipes import (
    Axis,
    EngineRecipe,
    TemplateRecipe,
    TokenizerRecipe,
    clip_tokenizer,
    normal,
    uniform,
    vae_encoder_recipe,
)
from export.wrappers import VaeDecoder
from server.engines.port import Spec
from server.families import sd3
from server.families.card import Card
from server.families.parts import CLIP_TOKENS, MAX_ROWS, MEGAPIXEL_SIZES
from server.families.sd3 import T5_TOKENS, Sd3Card
from server.levels import FlowScheduler, noise_schedule

FAMILY = "sd3"
PIPELINES = ("StableDiffusion3Pipeline",)
COMPONENTS: Mapping[str, type] = {
    "text_encoder": CLIPTextModelWithProjection,
    "text_encoder_2": CLIPTextModelWithProjection,
    "text_encoder_3": T5EncoderModel,  # may be absent
    "transformer": SD3Transformer2DModel,
    "vae": AutoencoderKL,
}

_ROWS = Axis(multiple=1, most=MAX_ROWS)
_TOKENS = Axis(multiple=1, most=16 * CLIP_TOKENS + T5_TOKENS)
_SIDES = sorted({side for size in MEGAPIXEL_SIZES for side in size})  # pixels

_TRACED = {"rows": 2, "height": 24, "width": 32, "tokens": CLIP_TOKENS + T5_TOKENS}
_CHECKED = {"rows": 3, "height": 40, "width": 16, "tokens": 2 * CLIP_TOKENS}
_GOLDEN = {"rows": 2, "height": 16, "width": 8, "tokens": CLIP_TOKENS}
_ODD = {"height": 38, "width": 14}  # 19 by 7 tokens: some supported sizes have odd ones, where cropping is delicate
_ONE = {"rows": 1}  # the VAE takes one picture a call, but is traced with two so that the axis stays free

# Of its scheduler, what this version runs. A field that a config lacks has this value in diffusers.
BUILT: Mapping[str, object] = {
    "use_dynamic_shifting": False,
    "invert_sigmas": False,
    "shift_terminal": None,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "stochastic_sampling": False,
}


class _Clip(torch.nn.Module):
    def __init__(self, component: torch.nn.Module) -> None:
        super().__init__()
        self.component = component

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """rows 77, int64 -> the states before the last layer, rows 77 width; the end token's, projected; float32."""
        result = self.component(input_ids, output_hidden_states=True)
        return result.hidden_states[-2], result.text_embeds


class _T5(torch.nn.Module):
    def __init__(self, component: torch.nn.Module) -> None:
        super().__init__()
        self.component = component
        cast(Any, component).set_attn_implementation("eager")  # plain nodes: its position bias is added to the scores

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """rows 256, int64 -> rows 256 width, float32, after the final norm; padding is attended to, as in diffusers."""
        return cast(torch.Tensor, self.component(input_ids).last_hidden_state)


class _Transformer(torch.nn.Module):
    def __init__(self, component: torch.nn.Module) -> None:
        super().__init__()
        self.component = component
        pos_embed = cast(Any, component).pos_embed
        pos_embed.cropped_pos_embed = partial(_cropped, pos_embed)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        pooled_projections: torch.Tensor,
    ) -> torch.Tensor:
        """rows c h w; rows; rows tokens width; rows width -> rows c h w; all float32."""
        result = self.component(sample, encoder_hidden_states, pooled_projections, timestep, return_dict=False)
        return cast(torch.Tensor, result[0])


def _cropped(pos_embed: Any, height: torch.SymInt, width: torch.SymInt) -> torch.Tensor:
    """The middle height x width (in latent pixels) of the positions, as diffusers' PatchEmbed.cropped_pos_embed, cut in
    two steps: an end of start + length is traced as (size + length) / 2 in a form that ONNX rounds the wrong way for an
    odd number of tokens."""
    side, rows, columns = pos_embed.pos_embed_max_size, height // pos_embed.patch_size, width // pos_embed.patch_size
    grid = pos_embed.pos_embed.reshape(1, side, side, -1)
    grid = grid[:, (side - rows) // 2 :, (side - columns) // 2 :][:, :rows, :columns]
    return cast(torch.Tensor, grid.reshape(1, -1, grid.shape[-1]))


def templates(checkpoint: Checkpoint, card: Card) -> tuple[TemplateRecipe, ...]:
    """None: its transformer takes no adapters."""
    return ()


def recipes(checkpoint: Checkpoint, card: Card) -> tuple[EngineRecipe, ...]:
    """The engines of `sd3.engines(card)`: six with T5, else five."""
    assert isinstance(card, Sd3Card)
    clip, clip_2, *t5, vae_encoder, transformer, vae_decoder = sd3.engines(card)
    latent = Axis(int(checkpoint.config("transformer")["patch_size"]), _SIDES[-1] // card.pixels_per_latent)
    t5_tokenizer = TokenizerRecipe("tokenizer_3", T5Tokenizer, ("tokenizer_config.json",))
    return (
        _text(checkpoint, clip, "text_encoder", _Clip, clip_tokenizer("tokenizer")),
        _text(checkpoint, clip_2, "text_encoder_2", _Clip, clip_tokenizer("tokenizer_2")),
        *(_text(checkpoint, spec, "text_encoder_3", _T5, t5_tokenizer) for spec in t5),
        vae_encoder_recipe(vae_encoder, latent.multiple * card.pixels_per_latent, _SIDES[-1]),
        EngineRecipe(
            spec=transformer,
            component="transformer",
            wrap=_Transformer,
            axes={"rows": _ROWS, "height": latent, "width": latent, "tokens": _TOKENS},
            traced=_TRACED,
            checked=_CHECKED | _ODD,
            golden=_GOLDEN,
            draws={
                "sample": normal,
                "timestep": uniform(1000, "float32"),
                "encoder_hidden_states": normal,
                "pooled_projections": normal,
            },
        ),
        EngineRecipe(
            spec=vae_decoder,
            component="vae",
            wrap=VaeDecoder,
            axes={"rows": _ROWS, "height": latent, "width": latent},
            traced=_TRACED,
            checked=_CHECKED | _ONE,
            golden=_GOLDEN | _ONE,
            draws={"latents": normal},
        ),
    )


def _text(
    checkpoint: Checkpoint, spec: Spec, component: str, wrap: type[torch.nn.Module], tokenizer: TokenizerRecipe
) -> EngineRecipe:
    return EngineRecipe(
        spec=spec,
        component=component,
        wrap=wrap,
        axes={"rows": _ROWS},
        traced=_TRACED,
        checked=_CHECKED,
        golden=_GOLDEN,
        draws={"input_ids": uniform(int(checkpoint.config(component)["vocab_size"]), "int64")},
        tokenizer=tokenizer,
    )


def card(checkpoint: Checkpoint, name: str, title: str, prediction_type: str | None) -> Sd3Card:
    """Raises `ExportError` when the checkpoint is not of this shape or is run in a way that is not built."""
    checkpoint.expect_pipeline(PIPELINES, "SD3")
    if prediction_type is not None:
        raise ExportError(f"--prediction-type {prediction_type}: SD3 always predicts a velocity; leave it out")
    try:
        return _card(checkpoint, name, title)
    except KeyError as error:
        raise ExportError(f"a config.json or scheduler_config.json of {checkpoint.folder} lacks {error}") from error


def _card(checkpoint: Checkpoint, name: str, title: str) -> Sd3Card:
    names = ("text_encoder", "text_encoder_2", "transformer", "vae")
    clip, clip_2, transformer, vae = (checkpoint.config(component) for component in names)
    t5 = _has_t5(checkpoint)
    pixels_per_latent = 2 ** (len(vae["block_out_channels"]) - 1)
    pixels_per_token = pixels_per_latent * transformer["patch_size"]
    channels, out_channels = transformer["in_channels"], transformer.get("out_channels")
    joint_width = transformer["joint_attention_dim"]
    positions = transformer.get("pos_embed_max_size") or 0  # without it diffusers has another embedding a size
    rules: tuple[tuple[str, object, object], ...] = (
        ("transformer in_channels", channels, vae["latent_channels"]),
        ("transformer out_channels", channels if out_channels is None else out_channels, vae["latent_channels"]),
        (
            "transformer pooled_projection_dim",
            transformer["pooled_projection_dim"],
            clip["projection_dim"] + clip_2["projection_dim"],
        ),
        ("text_encoder max_position_embeddings", clip["max_position_embeddings"], CLIP_TOKENS),
        ("text_encoder_2 max_position_embeddings", clip_2["max_position_embeddings"], CLIP_TOKENS),
        (
            f"what both CLIP widths exceed transformer joint_attention_dim {joint_width} by",
            max(0, clip["hidden_size"] + clip_2["hidden_size"] - joint_width),
            0,
        ),
        ("text_encoder_3 d_model", checkpoint.config("text_encoder_3")["d_model"] if t5 else joint_width, joint_width),
        (
            f"sides that transformer pos_embed_max_size {positions} has no positions for",
            [side for side in _SIDES if side > positions * pixels_per_token],
            [],
        ),
        (
            f"sides that are no multiple of {pixels_per_token} pixels",
            [side for side in _SIDES if side % pixels_per_token],
            [],
        ),
    )
    differences = [f"{what} is {found!r}, must be {allowed!r}" for what, found, allowed in rules if found != allowed]
    if differences:
        raise ExportError(f"{checkpoint.source} is not shaped like Stable Diffusion 3: {'; '.join(differences)}")
    return Sd3Card(
        name=name,
        family=FAMILY,
        title=title,
        source=checkpoint.source,
        latent_channels=vae["latent_channels"],
        pixels_per_latent=pixels_per_latent,
        scheduler=_scheduler(checkpoint),
        inpainting=False,
        safety_checker=False,
        text_width=clip["hidden_size"],
        text_2_width=clip_2["hidden_size"],
        pooled_width=clip["projection_dim"],
        pooled_2_width=clip_2["projection_dim"],
        joint_width=joint_width,
        t5=t5,
    )


def _has_t5(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint has the third text encoder: `model_index.json` names its library and class, or null."""
    entry = checkpoint.json("model_index.json").get("text_encoder_3")
    return isinstance(entry, list) and None not in entry


def _scheduler(checkpoint: Checkpoint) -> FlowScheduler:
    name = "scheduler/scheduler_config.json"
    config, path = checkpoint.json(name), checkpoint.path(name)
    built = {"_class_name": FlowMatchEulerDiscreteScheduler.__name__, **BUILT}
    for field, value in built.items():
        if config.get(field, value) != value:
            raise ExportError(
                f"{path}: {field} is {config[field]!r}, this version runs {value!r} only: take another checkpoint"
            )
    scheduler = FlowScheduler(int(config["num_train_timesteps"]), float(config["shift"]))
    try:
        noise_schedule(scheduler)
    except ValueError as error:
        raise ExportError(f"{path}: {error}") from error
    return scheduler
