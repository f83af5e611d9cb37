"""Checkpoints with random weights whose UNets have the published blocks, with a random ControlNet and a random
IP-Adapter: as torch's modules behind the engine port, and as diffusers' pipelines over the same modules.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import checkpoints
import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from mediagen.v1 import image_pb2 as pb
from parity.test_img2img import (
    CLIPPED,
    LATENTS_TOLERANCE,
    MAX_TOLERANCE,
    MEAN_TOLERANCE,
    SAMPLERS,
    SEED,
    relative,
)
from parity.tiny_sdxl import randomise
from safetensors.torch import save_file
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from export.checkpoint import Checkpoint, open_checkpoint
from export.recipes import image_prompt, sd15, sdxl
from export.repository import Recipe
from export.tokenizer import write_tokenizer
from export.weights import load_component
from server.beginning import encode
from server.canvas import FromPicture, Inpainting
from server.catalog import Engine, read_catalog
from server.denoising import denoise
from server.engines.port import Array, Spec, Tensors
from server.families.base import Run, Size
from server.plan import Plan
from server.request import plan

SIZE = Size(192, 128)  # small for the sake of time
STEPS = 5
VISION_WIDTH = 16
MAP_GAIN = 100.0  # so that a map shows in the picture by far more than the tolerance
IMAGE_SIDE = 64  # pixels, of what the image encoder is shown

# Of the published UNet: which levels have attention, hence which blocks the methods of IP-Adapters name.
SD15_UNET: Mapping[str, Any] = {
    "block_out_channels": (8, 8, 8, 16),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "cross_attention_dim": 16,
    "norm_num_groups": 4,
    "sample_size": 64,  # another one is warned of
}
SDXL_UNET: Mapping[str, Any] = {**checkpoints.SDXL_UNET, "layers_per_block": 2}


@dataclass(frozen=True)
class Kind:
    """A shape of checkpoint, and the pipelines of diffusers that know it."""

    recipe: Recipe
    write: Callable[[Path], None]
    unet: Mapping[str, Any]
    parts: Mapping[str, type]
    tokenizers: tuple[str, ...]
    options: Mapping[str, Any]  # of all pipelines
    plain: type
    plain_img2img: type
    control: type
    control_img2img: type
    control_inpaint: type


_PARTS: Mapping[str, type] = {
    "text_encoder": CLIPTextModel,
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "image_encoder": CLIPVisionModelWithProjection,
}


def _write_sd15(folder: Path) -> None:
    checkpoints.write_sd15(folder)
    checkpoints.change_json(folder / "vae" / "config.json", shift_factor=None)  # which no pipeline of diffusers applies
    checkpoints.change_json(folder / "scheduler" / "scheduler_config.json", clip_sample=False, skip_prk_steps=True)


SD15 = Kind(
    recipe=sd15,
    write=_write_sd15,
    unet=SD15_UNET,
    parts=_PARTS,
    tokenizers=("tokenizer",),
    options={"safety_checker": None, "requires_safety_checker": False},
    plain=diffusers.StableDiffusionPipeline,
    plain_img2img=diffusers.StableDiffusionImg2ImgPipeline,
    control=diffusers.StableDiffusionControlNetPipeline,
    control_img2img=diffusers.StableDiffusionControlNetImg2ImgPipeline,
    control_inpaint=diffusers.StableDiffusionControlNetInpaintPipeline,
)
SDXL = Kind(
    recipe=sdxl,
    write=checkpoints.write_sdxl,
    unet=SDXL_UNET,
    parts={**_PARTS, "text_encoder_2": CLIPTextModelWithProjection},
    tokenizers=("tokenizer", "tokenizer_2"),
    options={"add_watermarker": False},
    plain=diffusers.StableDiffusionXLPipeline,
    plain_img2img=diffusers.StableDiffusionXLImg2ImgPipeline,
    control=diffusers.StableDiffusionXLControlNetPipeline,
    control_img2img=diffusers.StableDiffusionXLControlNetImg2ImgPipeline,
    control_inpaint=diffusers.StableDiffusionXLControlNetInpaintPipeline,
)
KINDS: Mapping[str, tuple[Kind, int]] = {  # with the channels of the UNet's sample
    "sd15": (SD15, 4),
    "sd15-inpainting": (SD15, 9),
    "sdxl": (SDXL, 4),
    "sdxl-inpainting": (SDXL, 9),
}


@dataclass(frozen=True)
class Subject:
    """One checkpoint, in both worlds."""

    kind: Kind
    engine: Engine
    run: Run
    folder: Path
    components: Mapping[str, Any]  # of diffusers' pipelines, in float32, with the weights as stored; no UNet
    scheduler: Mapping[str, Any]  # the checkpoint's own configuration
    controlnet: ControlNetModel
    ip_adapters: Mapping[str, Mapping[str, Mapping[str, torch.Tensor]]]  # by projection, as diffusers takes a file

    def pipeline(self, of: type, scheduler: type, **more: Any) -> Any:
        """diffusers', with a UNet of its own: an IP-Adapter changes it."""
        components = {**self.components, "unet": _float32(self.kind, "unet", self.folder)}
        processor = CLIPImageProcessor(
            size={"shortest_edge": IMAGE_SIDE}, crop_size={"height": IMAGE_SIDE, "width": IMAGE_SIDE}
        )
        made = of(
            **components,
            **self.kind.options,
            **more,
            feature_extractor=processor,
            scheduler=scheduler.from_config(self.scheduler),  # type: ignore[attr-defined]
        )
        made.set_progress_bar_config(disable=True)
        return made


def write(folder: Path, name: str) -> Kind:
    """In the layout of diffusers, half precision."""
    kind, channels = KINDS[name]
    kind.write(folder)
    torch.manual_seed(13)
    UNet2DConditionModel(**kind.unet, in_channels=channels).half().save_pretrained(folder / "unet")
    vision = CLIPVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=IMAGE_SIDE,
        patch_size=16,
        projection_dim=12,
    )
    CLIPVisionModelWithProjection(vision).half().save_pretrained(folder / "image_encoder")
    for part, module_class in kind.parts.items():
        module = module_class.from_pretrained(folder / part, dtype=torch.float32)  # type: ignore[attr-defined]
        randomise(module)
        module.half().save_pretrained(folder / part)
    return kind


def subject(name: str, folder: Path, repository: Path) -> Subject:
    """What the exporter would trace, run by torch; the repository gets the card and the tokenizers."""
    kind = write(folder, name)
    recipe = kind.recipe
    checkpoint = open_checkpoint(str(folder), None, tuple(recipe.COMPONENTS))
    plus = dataclasses.replace(checkpoint, folder=_plus(folder / "plus.safetensors", kind))
    checkpoint = checkpoint.join(image_prompt.PLUS, plus)
    card = recipe.card(checkpoint, "tiny", "", None)
    modules: dict[str, Any] = {}
    for engine in recipe.recipes(checkpoint, card):
        modules[engine.spec.name] = engine.wrap(_component(recipe, checkpoint, engine.component)).eval()
        if engine.tokenizer is not None:
            path = repository / engine.spec.name / "tokenizer.json"
            path.parent.mkdir(parents=True)
            write_tokenizer(engine.tokenizer, checkpoint, engine.component, 77, path)
    for template in recipe.templates(checkpoint, card):
        wrapped: Any = template.engine.wrap(_component(recipe, checkpoint, template.engine.component))
        if hasattr(wrapped, "controlnet"):
            randomise(wrapped.controlnet)
            wrapped.controlnet.controlnet_cond_embedding.conv_out.weight.data *= MAP_GAIN
        else:
            randomise(wrapped.ip_adapter)
        modules[template.engine.spec.name] = wrapped.eval()
    (repository / "tiny.json").write_text(json.dumps(asdict(card)))
    attentions = modules["tiny_unet_ip"].ip_adapter.ip_adapter.state_dict()
    projections = {
        projection: modules[f"tiny_{engine}"].ip_adapter.image_proj.state_dict()
        for projection, engine in (("linear", "ip_projection"), ("plus", "ip_projection_plus"))
        if f"tiny_{engine}" in modules
    }
    return Subject(
        kind=kind,
        engine=read_catalog(repository)["tiny"],
        run=_run(modules),
        folder=folder,
        components={
            **{part: _float32(kind, part, folder) for part in kind.parts if part != "unet"},
            **{part: CLIPTokenizer.from_pretrained(folder / part) for part in kind.tokenizers},
        },
        scheduler=checkpoint.json("scheduler/scheduler_config.json"),
        controlnet=modules["tiny_unet_control"].controlnet,
        ip_adapters={
            projection: {"image_proj": state, "ip_adapter": attentions} for projection, state in projections.items()
        },
    )


def _plus(path: Path, kind: Kind) -> Path:
    """A file with a projection of the "plus" kind; of this one only the shape is read."""
    shape = image_prompt.PlusShape(
        vision_width=VISION_WIDTH, width=64, heads=1, hidden=256, text_width=kind.unet["cross_attention_dim"]
    )
    state = image_prompt.Resampler(shape).half().state_dict()
    save_file({f"image_proj.{name}": tensor for name, tensor in state.items()}, path)
    return path


def _float32(kind: Kind, part: str, folder: Path) -> Any:
    return kind.parts[part].from_pretrained(folder / part, dtype=torch.float32).eval()  # type: ignore[attr-defined]


def _component(recipe: Recipe, checkpoint: Checkpoint, component: str) -> torch.nn.Module:
    """A projection has none: all its weights come later."""
    if not component:
        return torch.nn.Module()
    return load_component(recipe.COMPONENTS[component], checkpoint, component)


def _run(modules: Mapping[str, torch.nn.Module]) -> Run:
    async def run(spec: Spec, inputs: Tensors) -> Mapping[str, Array]:
        spec.check(inputs)
        with torch.inference_mode():
            found = modules[spec.name](*(torch.from_numpy(inputs[port.name].copy()) for port in spec.inputs))
        outputs = found if isinstance(found, tuple) else (found,)
        return {port.name: output.numpy() for port, output in zip(spec.outputs, outputs, strict=True)}

    return run


def plan_of(subject: Subject, sampler: str, guidance_scale: float, **fields: Any) -> Plan:
    """A short run from noise at a small size."""
    request = pb.GenerateRequest(
        engine="tiny",
        prompt="the red sun",
        negative_prompt="ing",
        steps=STEPS,
        cfg_scale=guidance_scale,
        seed=SEED,
        sampler=pb.Sampler.Value(f"SAMPLER_{sampler}"),
        **fields,
    )
    return dataclasses.replace(plan(request, {"tiny": subject.engine}), size=SIZE)


def scheduler(made: Plan) -> Any:
    """diffusers' of the plan's sampler."""
    return SAMPLERS[made.sampler.name]


async def drawn(subject: Subject, made: Plan) -> tuple[np.ndarray, np.ndarray]:
    """By the service's own code: latents (c h w) and pixels (height width 3)."""
    family, card = subject.engine.family, subject.engine.card
    stages = await family.condition(made, card, subject.run)
    latents = await denoise(made, stages, await encode(made, subject.run), SEED, subject.run, lambda: None)
    return latents, await family.decode(latents, card, subject.run)


def said(made: Plan) -> dict[str, Any]:
    """What any pipeline of diffusers is told."""
    told: dict[str, Any] = {
        "prompt": made.prompt,
        "negative_prompt": made.negative_prompt,
        "num_inference_steps": made.steps,
        "guidance_scale": made.guidance_scale,
        "generator": torch.Generator().manual_seed(SEED),
        "output_type": "latent",
    }
    if isinstance(made.start, FromPicture):  # the size is read off the picture
        return {**told, "strength": made.strength}
    told |= {"width": made.size.width, "height": made.size.height}
    return {**told, "strength": made.strength} if isinstance(made.start, Inpainting) else told


def taken(pipeline: Any, told: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Latents and pixels of a pipeline of diffusers."""
    with torch.inference_mode():
        latents = pipeline(**told).images
        vae = pipeline.vae
        decoded = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        pixels = pipeline.image_processor.postprocess(decoded, output_type="np")[0]
    return latents[0].numpy(), (pixels * 255).round().astype(np.uint8)


def assert_equal(found: tuple[np.ndarray, np.ndarray], reference: tuple[np.ndarray, np.ndarray]) -> None:
    """Latents and pixels of two runs."""
    assert np.mean((reference[1] == 0) | (reference[1] == 255)) < CLIPPED
    assert relative(found[0], reference[0]) < LATENTS_TOLERANCE
    gap = np.abs(found[1].astype(np.float32) - reference[1]) / 255
    assert gap.mean() <= MEAN_TOLERANCE
    assert gap.max() <= MAX_TOLERANCE
