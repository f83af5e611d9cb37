"""A plan in the words of the API: a request with every default filled in."""

from collections.abc import Mapping

from mediagen.v1 import image_pb2 as pb

from server.adapters.control import Control, NoControl
from server.adapters.ip_adapter import ImagePrompt, Method, NoImagePrompt
from server.canvas import FromNoise
from server.plan import Plan

METHODS: Mapping[Method, pb.IpAdapterMethod] = {
    "full": pb.IP_ADAPTER_METHOD_FULL,
    "style": pb.IP_ADAPTER_METHOD_STYLE,
    "composition": pb.IP_ADAPTER_METHOD_COMPOSITION,
}


def effective(what: Plan) -> pb.EffectiveParameters:
    """A plan in the words of the API. What the engine does not have is left out."""
    refuses = what.engine.refuses
    told = pb.EffectiveParameters(
        engine=what.engine.card.name,
        prompt=what.prompt,
        prompt_2="" if "prompt_2" in refuses else what.prompt_2,
        negative_prompt=what.negative_prompt if what.negated else None,
        negative_prompt_2=what.negative_prompt_2 if what.negated and "negative_prompt_2" not in refuses else None,
        cfg_scale=what.guidance_scale,
        steps=what.steps,
        evaluations=what.evaluations,
        width=what.size.width,
        height=what.size.height,
        seeds=what.seeds,
        sampler=pb.SAMPLER_UNSPECIFIED if "sampler" in refuses else f"SAMPLER_{what.sampler.name}",
        image_encoding=f"IMAGE_ENCODING_{what.encoding.name}",
        models=[what.variants[name].spec.name if name in what.variants else name for name in what.executions],
        high_noise_frac=None if "high_noise_frac" in refuses else what.high_noise_frac,
        outpainting=what.outpainting,
        inpaint_full_res=what.inpaint_full_res,
        inpaint_full_res_padding=what.inpaint_full_res_padding if what.inpaint_full_res else None,
        strength=None if isinstance(what.start, FromNoise) else what.strength,
        clip_skip=what.clip_skip if what.clip_skip > 0 else None,
        style_preset=what.style_preset,
        checkpoint=what.adapters.checkpoint,
        vae=what.adapters.vae,
        loras=what.adapters.loras,
        textual_inversions=what.adapters.textual_inversions,
        controlnet=what.adapters.controlnet,
        ip_adapter=what.adapters.ip_adapter,
        transfer_images={transfer.trigger: len(transfer.pixel_values) for transfer in what.transfers},
    )
    match what.control:
        case Control(preprocessor=preprocessor, scale=scale, early_stop=early_stop):
            told.controlnet_preprocessor = preprocessor
            told.controlnet_conditioning_scale = scale
            told.controlnet_early_stop = early_stop
        case NoControl():
            pass
    match what.image_prompt:
        case ImagePrompt(method=method, scale=scale):
            told.ip_adapter_method = METHODS[method]
            told.ip_adapter_scale = scale
        case NoImagePrompt():
            pass
    return told
