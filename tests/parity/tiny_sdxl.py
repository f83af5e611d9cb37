"""Checkpoints of SDXL's shape with random weights, as diffusers saves them, and the oracle over them.

Every matrix keeps the variance of what it is fed, so that texts, sizes and scores are seen in the picture.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import checkpoints
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from export.checkpoint import Checkpoint, open_checkpoint
from export.recipes import sdxl
from export.tokenizer import write_tokenizer
from export.weights import load_component
from server.engines.port import Array, Spec, Tensors
from server.families.base import Run

KINDS = {
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
}


def write(base: Path, refiner: Path, unet: Mapping[str, Any] = checkpoints.SDXL_UNET) -> None:
    """In the layout of diffusers, half precision."""
    checkpoints.write_sdxl(base, unet)
    checkpoints.write_refiner(refiner)
    torch.manual_seed(11)
    for folder, parts in ((base, tuple(KINDS)), (refiner, ("unet",))):
        for part in parts:
            module = KINDS[part].from_pretrained(folder / part, dtype=torch.float32)
            randomise(module)
            module.half().save_pretrained(folder / part)


def joined(base: Path, refiner: Path) -> Checkpoint:
    """Both, as the exporter takes them."""
    parts = tuple(sdxl.COMPONENTS)
    return open_checkpoint(str(base), None, parts).join("refiner", open_checkpoint(str(refiner), None, parts))


def torch_engines(checkpoint: Checkpoint, repository: Path) -> Run:
    """What the exporter would trace, run by torch; the repository gets the card and the tokenizers."""
    card = sdxl.card(checkpoint, "sdxl", "", None)
    modules: dict[str, torch.nn.Module] = {}
    for recipe in sdxl.recipes(checkpoint, card):
        component = load_component(sdxl.COMPONENTS[recipe.component], checkpoint, recipe.component)
        modules[recipe.spec.name] = recipe.wrap(component).eval()
        if recipe.tokenizer is not None:
            path = repository / recipe.spec.name / "tokenizer.json"
            path.parent.mkdir(parents=True)
            write_tokenizer(recipe.tokenizer, checkpoint, recipe.component, 77, path)
    (repository / "sdxl.json").write_text(json.dumps(asdict(card)))

    async def run(spec: Spec, inputs: Tensors) -> Mapping[str, Array]:
        spec.check(inputs)
        with torch.inference_mode():
            given = [torch.from_numpy(inputs[port.name].copy()) for port in spec.inputs]
            found = modules[spec.name](*given)
        outputs = found if isinstance(found, tuple) else (found,)
        return {port.name: output.numpy() for port, output in zip(spec.outputs, outputs, strict=True)}

    return run


def randomise(module: torch.nn.Module) -> None:
    for name, tensor in module.named_parameters():
        if tensor.ndim > 1:
            gain = 0.4 if name == "decoder.conv_out.weight" else 1.0  # grey pictures: clipping would hide differences
            values = torch.randn(tensor.shape) * gain / tensor[0].numel() ** 0.5
        else:
            values = torch.randn(tensor.shape) * 0.05 + (1.0 if name.endswith("weight") else 0.0)
        tensor.data.copy_(values)


@dataclass(frozen=True)
class Oracle:
    """diffusers' two pipelines over one checkpoint, in float32."""

    base: StableDiffusionXLPipeline
    refiner: StableDiffusionXLImg2ImgPipeline
    scheduler: Mapping[str, Any]  # the checkpoint's own configuration; the pipelines' change with the sampler


def oracle(base: Path, refiner: Path, *, zeros: bool) -> Oracle:
    """`zeros` is the base's force_zeros_for_empty_prompt; a refiner's is false."""
    parts: dict[str, Any] = {
        part: kind.from_pretrained(base / part, dtype=torch.float32).eval() for part, kind in KINDS.items()
    }
    tokenizers = {name: CLIPTokenizer.from_pretrained(base / name) for name in ("tokenizer", "tokenizer_2")}
    scheduler = EulerDiscreteScheduler.from_pretrained(base / "scheduler")
    pipelines = Oracle(
        StableDiffusionXLPipeline(
            **parts,
            **tokenizers,
            scheduler=scheduler,
            force_zeros_for_empty_prompt=zeros,
            add_watermarker=False,
        ),
        StableDiffusionXLImg2ImgPipeline(
            vae=parts["vae"],
            text_encoder=None,
            text_encoder_2=parts["text_encoder_2"],
            tokenizer=None,
            tokenizer_2=tokenizers["tokenizer_2"],
            unet=UNet2DConditionModel.from_pretrained(refiner / "unet", dtype=torch.float32).eval(),
            scheduler=scheduler,
            requires_aesthetics_score=True,
            force_zeros_for_empty_prompt=False,
            add_watermarker=False,
        ),
        dict(scheduler.config),
    )
    for pipeline in (pipelines.base, pipelines.refiner):
        pipeline.set_progress_bar_config(disable=True)
    return pipelines
