"""Stable Diffusion XL: two CLIP text encoders, a UNet that is told the picture's size, and maybe a refiner.

The refiner is a second UNet, for the last part of the denoising: it reads the second encoder only and is told an
aesthetic score. SSD-1B is a checkpoint of this shape, with fewer blocks and no refiner.

Source: Podell et al., "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis" (2023). What is
encoded, and how, is as in diffusers: StableDiffusionXLPipeline, and StableDiffusionXLImg2ImgPipeline for the refiner.
Its cards and networks are in `sdxl_networks.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from server.adapters.ip_adapter import Reach
from server.adapters.transfer import Marked, merged, shared, text_only
from server.engines.port import Array, Tensors
from server.families.adapted import templates
from server.families.base import Family, Network, Run, Size, Stage, Text, both, together
from server.families.guides import Guided, with_texts
from server.families.parts import (
    MAX_ROWS,
    MEGAPIXEL_SIZES,
    MOST_CHUNKS,
    MOST_SKIPPED,
    decode,
    encode,
    executions,
    shortened,
)
from server.families.sdxl_networks import (
    SdxlCard,
    engines,
    refiner,
    states_width,
    text_encoder,
    text_encoder_2,
    transfer_encoder,
    transfer_fusion,
    unet,
)
from server.families.texts import left_out, text_states
from server.samplers import SAMPLERS

if TYPE_CHECKING:
    from server.plan import Plan
    from server.tokenizer import Prompt

AESTHETIC_SCORE = 6.0  # what the refiner is told of the positive half; diffusers' default
NEGATIVE_AESTHETIC_SCORE = 2.5


# What the methods of IP-Adapters drive.
REACH: Reach = {"full": ("",), "style": ("up_blocks.0.attentions.1.",), "composition": ("down_blocks.2.attentions.1.",)}


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
