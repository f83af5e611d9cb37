"""Stable Diffusion 3: two CLIP text encoders and a T5 one that may be missing, a transformer over picture and text
together, flow matching.

Source: Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis" (2024), and
StableDiffusion3Pipeline of diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from server.engines.port import Array, Port, Spec
from server.families.base import Family, Network, Run, Size, Stage, Text, together
from server.families.card import Card
from server.families.parts import (
    CLIP_TOKENS,
    MAX_ROWS,
    MEGAPIXEL_SIZES,
    decode,
    encode,
    executions,
    vae_decoder,
    vae_encoder,
)
from server.families.texts import left_out, text_states
from server.levels import FlowScheduler
from server.samplers.flow_match_euler import FLOW_MATCH_EULER

if TYPE_CHECKING:
    from server.plan import Plan

T5_TOKENS = 256  # diffusers' max_sequence_length; a checkpoint without T5 has as many zeros in its place


@dataclass(frozen=True)
class Sd3Card(Card):
    """A checkpoint of Stable Diffusion 3's shape. Widths are channels."""

    scheduler: FlowScheduler
    text_width: int  # of the first CLIP's states
    text_2_width: int  # of the second one's
    pooled_width: int  # of the first CLIP's pooled embedding
    pooled_2_width: int
    joint_width: int  # of the states that the transformer reads: T5's; CLIP's together are narrower
    t5: bool  # whether it has the third text encoder


def text_encoders(card: Sd3Card) -> tuple[Spec, ...]:
    """Two, or three."""
    t5 = Spec(
        name=f"{card.name}_text_encoder_3",
        inputs=(Port("input_ids", "int64", ("rows", T5_TOKENS)),),
        outputs=(Port("hidden_states", "float32", ("rows", T5_TOKENS, card.joint_width)),),  # after the final norm
        max_rows=MAX_ROWS,
    )
    return (
        _clip(f"{card.name}_text_encoder", card.text_width, card.pooled_width),
        _clip(f"{card.name}_text_encoder_2", card.text_2_width, card.pooled_2_width),
        *((t5,) if card.t5 else ()),
    )


def engines(card: Sd3Card) -> tuple[Spec, ...]:
    """All of a checkpoint."""
    return (*text_encoders(card), vae_encoder(card), transformer(card), vae_decoder(card))


def _clip(name: str, width: int, pooled_width: int) -> Spec:
    return Spec(
        name=name,
        inputs=(Port("input_ids", "int64", ("rows", CLIP_TOKENS)),),
        outputs=(
            Port("hidden_states", "float32", ("rows", CLIP_TOKENS, width)),  # before the last layer, without a norm
            Port("pooled", "float32", ("rows", pooled_width)),  # of the end token, projected
        ),
        max_rows=MAX_ROWS,
    )


def transformer(card: Sd3Card) -> Spec:
    """The denoiser."""
    latent = ("rows", card.latent_channels, "height", "width")  # in latent pixels
    return Spec(
        name=f"{card.name}_transformer",
        inputs=(
            Port("sample", "float32", latent),  # (1 - sigma) * clean + sigma * noise
            Port("timestep", "float32", ("rows",)),  # 1000 * sigma
            Port("encoder_hidden_states", "float32", ("rows", "tokens", card.joint_width)),
            Port("pooled_projections", "float32", ("rows", card.pooled_width + card.pooled_2_width)),
        ),
        outputs=(Port("prediction", "float32", latent),),  # velocity: noise - clean
        max_rows=MAX_ROWS,
    )


def texts(card: Sd3Card) -> tuple[Text, ...]:
    """Every encoder reads the same prompt, as much of it as one chunk holds: the checkpoint was trained so."""
    return tuple(Text(spec.name, "prompt", 1) for spec in text_encoders(card))


async def condition(plan: Plan, card: Sd3Card, run: Run) -> tuple[Stage, ...]:
    """CLIP's states side by side, padded to T5's width, and T5's behind them; both pooled embeddings side by side."""
    encoders = text_encoders(card)
    rows_of = (plan.rows(text) for text in texts(card))
    encoded = await together(
        *(
            text_states(spec, prompts, left_out(plan, prompts), run, plan.vectors)
            for spec, prompts in zip(encoders, rows_of, strict=True)
        )
    )
    clip, clip_2, *t5 = (outputs["hidden_states"] for outputs in encoded)  # rows tokens width, float32
    rows = len(clip)
    padding = np.zeros((rows, CLIP_TOKENS, card.joint_width - card.text_width - card.text_2_width), np.float32)
    behind = t5[0] if card.t5 else np.zeros((rows, T5_TOKENS, card.joint_width), np.float32)
    states: Array = np.concatenate((np.concatenate((clip, clip_2, padding), axis=2), behind), axis=1)
    pooled: Array = np.concatenate((encoded[0]["pooled"], encoded[1]["pooled"]), axis=1)  # rows width
    inputs = {"encoder_hidden_states": states, "pooled_projections": pooled}
    return (Stage((Network(transformer(card), inputs, plan.evaluations),), plan.walked, told=False),)


def used(plan: Plan, card: Sd3Card) -> Mapping[str, int]:
    """Executions of each network."""
    return executions(plan, card, dict.fromkeys(text_encoders(card), 1), {transformer(card): plan.evaluations})


FAMILY = Family(
    name="sd3",
    card=Sd3Card,
    sizes=MEGAPIXEL_SIZES,
    default_size=Size(1024, 1024),
    refuses=lambda card: frozenset(
        {
            "checkpoint",
            "clip_skip",
            "controlnet",
            "controlnet_conditioning_scale",
            "controlnet_early_stop",
            "controlnet_image",
            "controlnet_preprocess",
            "high_noise_frac",
            "inpaint_full_res",
            "inpaint_full_res_padding",
            "ip_adapter_image",
            "ip_adapter_mask_image",
            "ip_adapter_method",
            "ip_adapter_mode",
            "ip_adapter_scale",
            "loras",
            "mask_image",
            "negative_prompt_2",
            "outpainting",
            "prompt_2",
            "sampler",
            "style_preset",
            "textual_inversions",
            "transfer_images",
            "use_refiner",
            "vae",
        }
    ),
    samplers={FLOW_MATCH_EULER.name: FLOW_MATCH_EULER},
    engines=engines,
    templates=lambda card: (),
    executions=used,
    most_skipped=lambda card: 0,
    first_step=lambda steps, strength: min(int(max(steps - steps * strength, 0)), steps - 1),
    texts=texts,
    condition=condition,
    encode=encode,
    decode=decode,
)
