"""Stable Diffusion XL: two CLIP text encoders, a UNet that is told the picture's size, and maybe a refiner.

The refiner is a second UNet, for the last part of the denoising: it reads the second encoder only and is told an
aesthetic score. SSD-1B is a checkpoint of this shape, with fewer blocks and no refiner.

Source: Podell et al., "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis" (2023). What is
encoded, and how, is as in diffusers: StableDiffusionXLPipeline, and StableDiffusionXLImg2ImgPipeline for the refiner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from server.adapters.ip_adapter import Reach
from server.adapters.transfer import Marked, merged, shared, text_only
from server.engines.port import Array, Port, Spec, Tensors
from server.families.adapted import AdaptedCard, image_encoders, templates
from server.families.base import Family, Network, Run, Size, Stage, Text, both, together
from server.families.guides import Guided, with_texts
from server.families.parts import (
    CLIP_TOKENS,
    MAX_ROWS,
    MEGAPIXEL_SIZES,
    MOST_CHUNKS,
    MOST_SKIPPED,
    decode,
    encode,
    executions,
    shortened,
    vae_decoder,
    vae_encoder,
)
from server.families.texts import left_out, text_states
from server.levels import Scheduler
from server.samplers import SAMPLERS

if TYPE_CHECKING:
    from server.plan import Plan
    from server.tokenizer import Prompt

AESTHETIC_SCORE = 6.0  # what the refiner is told of the positive half; diffusers' default
NEGATIVE_AESTHETIC_SCORE = 2.5
BASE_TIME_IDS = 6  # original height and width, top and left of the crop, target height and width
REFINER_TIME_IDS = 5  # original height and width, top and left of the crop, aesthetic score


# What the methods of IP-Adapters drive.
REACH: Reach = {"full": ("",), "style": ("up_blocks.0.attentions.1.",), "composition": ("down_blocks.2.attentions.1.",)}


@dataclass(frozen=True)
class SdxlCard(AdaptedCard):
    """A checkpoint of SDXL's shape."""

    scheduler: Scheduler
    text_width: int  # channels of the first encoder's states
    text_2_width: int  # of the second one's
    pooled_width: int  # of the second one's summary of a text
    text_layers: int  # of the encoder with the fewer
    zeros_for_no_negative: bool  # whether the base was trained with zeros for no text (force_zeros_for_empty_prompt)
    refiner: bool  # whether the repository holds one
    transfer_side: int  # pixels of what the encoder of transfer images is shown; 0: there is none
    transfer_lora: str  # that goes with it: SHA-256 of a file among the repository's assets; empty: none


def _text(width: int) -> tuple[Port, ...]:
    return (
        Port("input_ids", "int64", ("rows", CLIP_TOKENS)),
        Port("skip", "int64", ("rows",)),  # layers left out at the end, the last of all not counted; 0: none
        Port("vectors", "float32", ("rows", "vectors", width)),  # an id -1-i reads vector i of its row
    )


def states_width(card: SdxlCard) -> int:
    """Channels of both encoders' states side by side."""
    return card.text_width + card.text_2_width


def text_encoder(card: SdxlCard) -> Spec:
    """The smaller one, CLIP-L as published."""
    return Spec(
        name=f"{card.name}_text_encoder",
        inputs=_text(card.text_width),
        outputs=(Port("hidden_states", "float32", ("rows", CLIP_TOKENS, card.text_width)),),  # before the last layer
        max_rows=MAX_ROWS,
    )


def text_encoder_2(card: SdxlCard) -> Spec:
    """The larger one, CLIP-bigG as published."""
    return Spec(
        name=f"{card.name}_text_encoder_2",
        inputs=_text(card.text_2_width),
        outputs=(
            Port("hidden_states", "float32", ("rows", CLIP_TOKENS, card.text_2_width)),  # before the last layer
            Port("pooled", "float32", ("rows", card.pooled_width)),  # projected, of the end token
        ),
        max_rows=MAX_ROWS,
    )


def unet(card: SdxlCard) -> Spec:
    """The base model."""
    return _denoiser(f"{card.name}_unet", card, card.sample_channels, states_width(card), BASE_TIME_IDS)


def refiner(card: SdxlCard) -> Spec:
    """The second UNet of a card that has one."""
    return _denoiser(f"{card.name}_refiner", card, card.latent_channels, card.text_2_width, REFINER_TIME_IDS)


def _denoiser(name: str, card: SdxlCard, channels: int, text_width: int, time_ids: int) -> Spec:
    return Spec(
        name=name,
        inputs=(
            # alpha * clean + sigma * noise, about unit variance
            Port("sample", "float32", ("rows", channels, "height", "width")),  # in latent pixels
            Port("timestep", "float32", ("rows",)),  # 0..999, fractions allowed
            Port("encoder_hidden_states", "float32", ("rows", "tokens", text_width)),
            Port("text_embeds", "float32", ("rows", card.pooled_width)),
            Port("time_ids", "float32", ("rows", time_ids)),
        ),
        outputs=(Port("prediction", "float32", ("rows", card.latent_channels, "height", "width")),),
        max_rows=MAX_ROWS,
    )


def transfer_encoder(card: SdxlCard) -> Spec:
    """A picture to what a trigger word stands for: PhotoMaker's CLIP tower with its projections."""
    return Spec(
        name=f"{card.name}_transfer_encoder",
        # RGB, normalised by CLIP's mean and deviation
        inputs=(Port("pixel_values", "float32", ("rows", 3, card.transfer_side, card.transfer_side)),),
        outputs=(Port("identity", "float32", ("rows", states_width(card))),),
        max_rows=MAX_ROWS,
    )


def transfer_fusion(card: SdxlCard) -> Spec:
    """The state of a token and one picture's identity to the state that takes its place."""
    width = states_width(card)
    return Spec(
        name=f"{card.name}_transfer_fusion",
        inputs=(Port("text", "float32", ("rows", width)), Port("identity", "float32", ("rows", width))),
        outputs=(Port("fused", "float32", ("rows", width)),),
        max_rows=MAX_ROWS,
    )


def engines(card: SdxlCard) -> tuple[Spec, ...]:
    """All of a checkpoint."""
    denoisers = (unet(card), refiner(card)) if card.refiner else (unet(card),)
    transfer = (transfer_encoder(card), transfer_fusion(card)) if card.transfer_side > 0 else ()
    pictures = (*image_encoders(card), *transfer, vae_encoder(card))
    return (text_encoder(card), text_encoder_2(card), *pictures, *denoisers, vae_decoder(card))


def used(plan: Plan, card: SdxlCard) -> Mapping[str, int]:
    """Executions of each network. A UNet without a step is left out, and so is the encoder that only the base reads."""
    base, unets = _base_evaluations(plan), guided(card)
    encoders = (text_encoder(card), text_encoder_2(card)) if _has_base(plan) else (text_encoder_2(card),)
    others = dict.fromkeys((*encoders, *unets.lookers(plan, base)), 1)
    if plan.transfers and _has_base(plan):
        calls = ceil(len(shared(_marked(plan, card))) / MAX_ROWS)
        others |= {transfer_encoder(card): calls, transfer_fusion(card): calls}
    denoisers = dict(unets.turns(plan, base))
    if _has_refiner(plan):
        denoisers[refiner(card)] = plan.evaluations - base
    return executions(plan, card, others, denoisers)


def guided(card: SdxlCard) -> Guided:
    """The base with ControlNets and IP-Adapters; a refiner is told of none."""
    return Guided(card, unet(card), states_width(card), REACH)


def _base_evaluations(plan: Plan) -> int:
    return plan.sampler.evaluations(plan.base_steps)


def _has_base(plan: Plan) -> bool:
    return len(plan.base_steps) > 0


def _has_refiner(plan: Plan) -> bool:
    return len(plan.refiner_steps) > 0


def texts(card: SdxlCard) -> tuple[Text, ...]:
    """The refiner's pipeline gives its only encoder `prompt`, where the base gives the same encoder `prompt_2`."""
    base = (_base_text(card), _base_text_2(card))
    return (*base, _refiner_text(card)) if card.refiner else base


def _base_text(card: SdxlCard) -> Text:
    return Text(text_encoder(card).name, "prompt", MOST_CHUNKS)


def _base_text_2(card: SdxlCard) -> Text:
    return Text(text_encoder_2(card).name, "prompt_2", MOST_CHUNKS)


def _refiner_text(card: SdxlCard) -> Text:
    return Text(text_encoder_2(card).name, "prompt", MOST_CHUNKS)


async def condition(plan: Plan, card: SdxlCard, run: Run) -> tuple[Stage, ...]:
    """The stages that have a step. The encoders run side by side, each once."""
    first: tuple[Prompt, ...] = ()
    second: tuple[Prompt, ...] = ()
    alone: tuple[Prompt, ...] = ()  # the refiner's
    marked: Sequence[Marked] = ()  # none or one for each encoder
    if _has_base(plan):
        first, second = (_base_rows(plan, card, text) for text in (_base_text(card), _base_text_2(card)))
        marked = _marked(plan, card) if plan.transfers else ()
    if _has_refiner(plan):
        alone = plan.rows(_refiner_text(card))
    prompts, prompts_2 = (
        (*first, *(each.prompt for each in marked[:1])),
        (*second, *(each.prompt for each in marked[1:])),
    )
    skip = (plan.clip_skip,) * len(marked[:1])
    (encoded, encoded_2), networks = await both(
        together(
            text_states(text_encoder(card), prompts, (*left_out(plan, first), *skip), run, plan.vectors),
            text_states(
                text_encoder_2(card),
                (*prompts_2, *alone),
                (*left_out(plan, second), *skip, *left_out(plan, alone)),
                run,
                plan.vectors,
            ),
        ),
        guided(card).networks(plan, _base_evaluations(plan), run),
    )
    base = {name: tensor[: len(prompts_2)] for name, tensor in encoded_2.items()}
    refined = {name: tensor[len(prompts_2) :] for name, tensor in encoded_2.items()}
    stages = (await _base(plan, card, encoded, base, networks, run),) if first else ()
    return (*stages, _refined(plan, card, refined)) if alone else stages


def _base_rows(plan: Plan, card: SdxlCard, text: Text) -> tuple[Prompt, ...]:
    """(negative, positive), or (positive,) where no negative half is encoded."""
    return (plan.prompts[text],) if _has_zeros(plan, card) else plan.rows(text)


def _marked(plan: Plan, card: SdxlCard) -> Sequence[Marked]:
    """Of a plan with transfer images: each encoder's."""
    return [plan.marked[text] for text in (_base_text(card), _base_text_2(card))]


def _has_zeros(plan: Plan, card: SdxlCard) -> bool:
    """Whether zeros stand for the negative text. A refiner was trained with the empty text instead."""
    return card.zeros_for_no_negative and not plan.negated


async def _base(
    plan: Plan, card: SdxlCard, encoded: Tensors, encoded_2: Tensors, networks: tuple[Network, ...], run: Run
) -> Stage:
    """What was encoded has the texts' rows and, with transfer images, one more: the positive text with their tokens."""
    states = [each["hidden_states"] for each in (encoded, encoded_2)]  # rows tokens width
    evaluations = _base_evaluations(plan)
    if not plan.transfers:
        told = [(_base_inputs(plan, card, np.concatenate(states, axis=-1), encoded_2["pooled"]), evaluations)]
        return Stage(with_texts(networks, told), plan.base_steps, told=card.inpainting)
    specs = transfer_encoder(card), transfer_fusion(card)
    pictured = await merged([each[-1] for each in states], _marked(plan, card), plan.transfers, *specs, run)
    plain, pooled = np.concatenate([each[:-1] for each in states], axis=-1), encoded_2["pooled"]
    without = min(text_only(plan.sampler.evaluations(plan.walked)), evaluations)
    told = [
        (_base_inputs(plan, card, plain, pooled[:-1]), without),
        (
            _base_inputs(
                plan, card, np.concatenate([plain[:-1], pictured[None]]), np.concatenate([pooled[:-2], pooled[-1:]])
            ),
            evaluations - without,
        ),
    ]
    return Stage(with_texts(networks, told), plan.base_steps, told=card.inpainting)


def _base_inputs(plan: Plan, card: SdxlCard, states: Array, pooled: Array) -> Tensors:
    """What the base reads besides the sample: of states (rows tokens width) and sums (rows width), float32."""
    texts = {"encoder_hidden_states": states, "text_embeds": pooled}
    if plan.guided and _has_zeros(plan, card):
        texts = {name: np.concatenate([np.zeros_like(tensor), tensor]) for name, tensor in texts.items()}
    time_ids = np.array([(*_framing(plan), plan.size.height, plan.size.width)], np.float32)  # 1 6
    return {**texts, "time_ids": time_ids.repeat(len(texts["text_embeds"]), axis=0)}


def _refined(plan: Plan, card: SdxlCard, encoded: Tensors) -> Stage:
    scores = (NEGATIVE_AESTHETIC_SCORE, AESTHETIC_SCORE) if plan.guided else (AESTHETIC_SCORE,)
    inputs = {
        "encoder_hidden_states": encoded["hidden_states"],  # rows tokens width
        "text_embeds": encoded["pooled"],  # rows width
        "time_ids": np.array([(*_framing(plan), score) for score in scores], np.float32),  # rows 5
    }
    network = Network(refiner(card), inputs, plan.evaluations - _base_evaluations(plan))
    return Stage((network,), plan.refiner_steps, told=False)


def _framing(plan: Plan) -> tuple[int, int, int, int]:
    """As if the picture had been trained on at its own size and uncropped: diffusers' defaults."""
    return plan.size.height, plan.size.width, 0, 0


FAMILY = Family(
    name="sdxl",
    card=SdxlCard,
    sizes=MEGAPIXEL_SIZES,
    default_size=Size(1024, 1024),
    refuses=lambda card: frozenset() if card.refiner else frozenset({"high_noise_frac", "use_refiner"}),
    samplers=SAMPLERS,
    engines=engines,
    templates=lambda card: templates(card, unet(card), states_width(card)),
    executions=used,
    most_skipped=lambda card: min(card.text_layers - 1, MOST_SKIPPED),
    first_step=shortened,
    texts=texts,
    condition=condition,
    encode=encode,
    decode=decode,
)
