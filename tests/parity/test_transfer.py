"""Transfer images against a reference of PhotoMaker's first version, written here from its paper and its public code
(github.com/TencentARC/PhotoMaker) with torch and the tokenizers and encoders of transformers.

Several trigger words are ours; the reference has these, too.
"""

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from mediagen.v1 import image_pb2 as pb
from parity import tiny_sdxl
from parity.test_pictures import relative
from parity.test_sdxl import SIZES
from parity.tiny_sdxl import Oracle
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig

from export.photomaker import IdEncoder
from server.beginning import encode
from server.catalog import Engine, read_catalog
from server.denoising import denoise
from server.engines.port import Array, Spec, Tensors
from server.families.base import Run
from server.plan import Plan
from server.request import plan

SEED = 1234
STEPS = 6  # of which the first two are told of no picture
GUIDANCE = 6.0  # so that texts are seen well
SIDE = 32  # pixels of what the pictures' encoder is shown
SECOND = 10  # channels of its second projection
TOKENS = 77
NEGATIVE = "ing"
TOLERANCE = 2e-5  # far below that of latents elsewhere: what a random encoder says of two pictures is much alike
FAR = 5 * TOLERANCE


class Subject:
    """One checkpoint with an encoder of pictures, in both worlds; random weights."""

    def __init__(self, folder: Path) -> None:
        base, refiner, repository = (folder / name for name in ("base", "refiner", "repository"))
        tiny_sdxl.write(base, refiner)
        self._run = tiny_sdxl.torch_engines(tiny_sdxl.joined(base, refiner), repository)
        card = repository / "sdxl.json"
        fields = json.loads(card.read_text())
        card.write_text(json.dumps(fields | {"transfer_side": SIDE}))
        self.engine: Engine = read_catalog(repository)["sdxl"]
        self.oracle: Oracle = tiny_sdxl.oracle(base, refiner, zeros=False)
        width = fields["text_width"] + fields["text_2_width"]
        config = CLIPVisionConfig(
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=SIDE,
            patch_size=8,
            projection_dim=width - SECOND,
        )
        torch.manual_seed(17)
        self.id_encoder = IdEncoder(config, SECOND)
        tiny_sdxl.randomise(self.id_encoder)
        self.id_encoder.eval()

    async def run(self, spec: Spec, inputs: Tensors) -> Mapping[str, Array]:
        """The exporter's modules by torch."""
        given = {name: torch.from_numpy(tensor.copy()) for name, tensor in inputs.items()}
        with torch.inference_mode():
            match spec.name:
                case "sdxl_transfer_encoder":
                    return {"identity": self.id_encoder.identity(given["pixel_values"]).numpy()}
                case "sdxl_transfer_fusion":
                    return {"fused": self.id_encoder.fuse_module(given["text"], given["identity"]).numpy()}
        return await self._run(spec, inputs)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(tmp_path_factory.mktemp("transfer"))


def picture(seed: int) -> Image.Image:
    """Neither square nor of the encoder's size."""
    small = np.random.RandomState(seed).randint(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(small).resize((70, 50), Image.Resampling.BICUBIC)


def file(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


Pictures = Mapping[str, Sequence[Image.Image]]  # by trigger word


async def ours(subject: Subject, prompt: str, pictures: Pictures) -> Array:
    """Latents, c h w."""
    request = pb.GenerateRequest(
        engine="sdxl",
        seed=SEED,
        steps=STEPS,
        cfg_scale=GUIDANCE,
        prompt=prompt,
        negative_prompt=NEGATIVE,
        sampler=pb.SAMPLER_DDIM,
        use_refiner=False,
        transfer_images={
            trigger: pb.TransferImages(images=[file(image) for image in images]) for trigger, images in pictures.items()
        },
    )
    made: Plan = dataclasses.replace(plan(request, {"sdxl": subject.engine}), size=SIZES[0])
    assert made.notices == ()
    run: Run = subject.run
    stages = await made.engine.family.condition(made, made.engine.card, run)
    return await denoise(made, stages, await encode(made, run), SEED, run, lambda: None)


def perceptron(x: torch.Tensor, weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """LayerNorm, then two layers with a GELU between."""
    part = {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}
    normed = torch.nn.functional.layer_norm(x, x.shape[-1:], part["layernorm.weight"], part["layernorm.bias"])
    hidden = torch.nn.functional.gelu(normed @ part["fc1.weight"].T + part["fc1.bias"])
    return hidden @ part["fc2.weight"].T + part["fc2.bias"]


def identities(encoder: Any, images: Sequence[Image.Image]) -> torch.Tensor:
    """pictures width: what CLIP's vision tower pools, through both projections side by side."""
    processor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    pixels = processor(list(images), return_tensors="pt").pixel_values
    weights = encoder.state_dict()
    pooled = encoder.vision_model(pixels).pooler_output
    projections = (weights["visual_projection.weight"], weights["visual_projection_2.weight"])
    return torch.cat([pooled @ projection.T for projection in projections], dim=-1)


def fused(encoder: Any, text: torch.Tensor, identity: torch.Tensor) -> torch.Tensor:
    """tokens width and tokens width: the paper's stacked embedding."""
    weights = {
        key.removeprefix("fuse_module."): value
        for key, value in encoder.state_dict().items()
        if key.startswith("fuse_module.")
    }
    stacked = perceptron(torch.cat([text, identity], dim=-1), weights, "mlp1") + text
    stacked = perceptron(stacked, weights, "mlp2") + stacked
    return torch.nn.functional.layer_norm(
        stacked, stacked.shape[-1:], weights["layer_norm.weight"], weights["layer_norm.bias"]
    )


def expanded(tokenizer: Any, prompt: str, pictures: Pictures) -> tuple[list[int], list[str]]:
    """77 ids, and of each whose picture it is, "" for none: the trigger words are taken out, and the token before each
    stands there once a picture."""
    numbers = {tokenizer.convert_tokens_to_ids(trigger): trigger for trigger in pictures}
    ids: list[int] = []
    owners: list[str] = []
    for number in tokenizer.encode(prompt):
        if number in numbers:
            count = len(pictures[numbers[number]])
            ids[-1:] = ids[-1:] * count
            owners[-1:] = [numbers[number]] * count
        else:
            ids.append(number)
            owners.append("")
    fill = TOKENS - len(ids)
    return ids + [tokenizer.pad_token_id] * fill, owners + [""] * fill


def embedded(
    subject: Subject, tokenizers: Sequence[Any], prompt: str, pictures: Pictures
) -> tuple[torch.Tensor, torch.Tensor]:
    """1 77 width: the prompt with the pictures in it; and 1 width, its pooled state, which knows the words alone."""
    base: Any = subject.oracle.base
    parts, pooled = [], torch.empty(0)
    for tokenizer, encoder in zip(tokenizers, (base.text_encoder, base.text_encoder_2), strict=True):
        ids, owners = expanded(tokenizer, prompt, pictures)
        told = encoder(torch.tensor([ids]), output_hidden_states=True)
        parts.append(told.hidden_states[-2][0])
        pooled = told[0]  # the second encoder's, as PhotoMaker takes it
    states = torch.cat(parts, dim=-1)
    for trigger, images in pictures.items():
        mask = torch.tensor([owner == trigger for owner in owners])
        states[mask] = fused(subject.id_encoder, states[mask], identities(subject.id_encoder, images))
    return states[None], pooled


def theirs(subject: Subject, prompt: str, pictures: Pictures) -> Array:
    """Latents, c h w: StableDiffusionXLPipeline, given other embeddings after the first steps."""
    base: Any = subject.oracle.base
    base.scheduler = DDIMScheduler.from_config(subject.oracle.scheduler, clip_sample=False, set_alpha_to_one=False)
    tokenizers = [type(each).from_pretrained(each.name_or_path) for each in (base.tokenizer, base.tokenizer_2)]
    plain = prompt
    for trigger in pictures:
        plain = plain.replace(f" {trigger}", "")
        for tokenizer in tokenizers:
            tokenizer.add_tokens([trigger], special_tokens=True)
    with torch.inference_mode():
        positive, negative, pooled, negative_pooled = base.encode_prompt(plain, negative_prompt=NEGATIVE)
        fused_states, pooled_words = embedded(subject, tokenizers, prompt, pictures)
        merged = {
            "prompt_embeds": torch.cat([negative, fused_states]),
            "add_text_embeds": torch.cat([negative_pooled, pooled_words]),
        }

        def told(pipeline: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            return tensors if step + 1 <= int(0.2 * STEPS) else merged

        latents = base(
            prompt_embeds=positive,
            negative_prompt_embeds=negative,
            pooled_prompt_embeds=pooled,
            negative_pooled_prompt_embeds=negative_pooled,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(SEED),
            output_type="latent",
            width=SIZES[0].width,
            height=SIZES[0].height,
            callback_on_step_end=told,
            callback_on_step_end_tensor_inputs=["prompt_embeds", "add_text_embeds"],
        ).images
    found: Array = latents[0].numpy()
    return found


CASES: Mapping[str, tuple[str, Pictures]] = {
    "one picture": ("the red luis sun", {"luis": [picture(1)]}),
    "three pictures": ("the red luis, the sun", {"luis": [picture(1), picture(2), picture(3)]}),
    "two trigger words": ("the sun anna, a red luis", {"luis": [picture(1), picture(2)], "anna": [picture(4)]}),
}


@pytest.mark.parametrize("case", CASES)
async def test_pictures_are_fused_into_the_prompt_as_in_the_reference(subject: Subject, case: str) -> None:
    prompt, pictures = CASES[case]
    assert relative(await ours(subject, prompt, pictures), theirs(subject, prompt, pictures)) < TOLERANCE


async def test_other_pictures_and_fewer_are_far_from_the_reference(subject: Subject) -> None:
    prompt, pictures = CASES["two trigger words"]
    reference = theirs(subject, prompt, pictures)
    swapped = {"luis": [*pictures["anna"], pictures["luis"][1]], "anna": [pictures["luis"][0]]}
    for other in ({**pictures, "luis": pictures["luis"][:1]}, swapped, {**pictures, "anna": [picture(5)]}):
        assert relative(await ours(subject, prompt, other), reference) > FAR
