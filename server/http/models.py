"""The bodies of the JSON routes: keys, types, and what the document says of them. Values are the plan's to judge.

A type is checked here because the proto cannot hold a wrong one; a bound is the plan's, and only told here.
Every key may be null, which is as if it were not there.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from server.bounds import CONTROL_SCALE, NUMBERS, SEEDS, Above, AtLeast, Bounds, Within
from server.fields import DEFAULTS
from server.http.values import Encoding, Float, Image, Int, Method, Mode, Sampler, Seed, Style, Text
from server.request import MAX_PROMPT
from server.samplers import SAMPLERS

STATES = ("pending", "running", "completed", "failed")  # of an asynchronous request


def _of(description: str, *examples: Any, **facts: float | str) -> Any:
    """A key that may be absent, with its default and bounds for the document."""
    return Field(default=None, description=description, examples=list(examples) or None, json_schema_extra={**facts})


def _number(name: str, bounds: Bounds, description: str, *examples: float) -> Any:
    """A key whose value the plan judges by these bounds."""
    match bounds:
        case Within(least, most):
            said, facts = f"{least:g} to {most:g}", {"minimum": least, "maximum": most}
        case Above(bottom, most):
            said, facts = f"Above {bottom:g}, at most {most:g}", {"exclusiveMinimum": bottom, "maximum": most}
        case AtLeast(least):
            said, facts = f"At least {least:g}", {"minimum": least}
    return _of(f"{description} {said}.", *examples, default=DEFAULTS[name], **facts)


_STEPS = Within(1, max(sampler.max_steps for sampler in SAMPLERS.values()))
_LCM_STEPS = SAMPLERS["LCM"].max_steps
_PICTURE = "A PNG, JPEG or WebP file in base64, with or without `data:image/png;base64,` before it."


class ImageGenerationRequest(BaseModel):
    """What to draw. A key that the route's engine cannot serve is refused by name, never ignored; null, and whatever
    asks for nothing, is accepted everywhere. Unknown keys are refused."""

    model_config = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, json_schema_extra={"required": ["prompt"]}
    )

    prompt: Text | None = _of(
        f"What the picture shows. 1 to {MAX_PROMPT:,} characters. `(x:1.5)` weighs a part, `(x)` is 1.1.",
        "a red house and a sailboat at sunset",
        maxLength=MAX_PROMPT,
    )
    prompt_2: Text | None = _of("For SDXL's second text encoder. Default: a copy of `prompt`.", maxLength=MAX_PROMPT)
    negative_prompt: Text | None = _of("What the picture must not show.", "people", maxLength=MAX_PROMPT)
    negative_prompt_2: Text | None = _of(
        "For SDXL's second text encoder. Default: a copy of `negative_prompt`.", maxLength=MAX_PROMPT
    )
    cfg_scale: Float | None = _number(
        "cfg_scale", NUMBERS["cfg_scale"], "How closely the picture follows the prompt.", 7.5
    )
    steps: Int | None = _number("steps", _STEPS, f"Denoising steps, with LCM at most {_LCM_STEPS}.", 30)
    width: Int | None = _of("Pixels. With `height` one of the engine's sizes; default: the engine's own.", 512)
    height: Int | None = _of("Pixels. With `width` one of the engine's sizes; default: the engine's own.", 512)
    num_images: Int | None = _number("num_images", NUMBERS["num_images"], "Pictures to draw.", 1)
    seed: Seed | None = _of(
        f"0 to {SEEDS - 1}. One number: the first picture's; the next ones follow. A list: one a picture, null is "
        "random. Default: random. The seed in a reply alone draws its picture again.",
        7,
        [7, None],
    )
    sampler: Sampler | None = _of("How to denoise. SD3 takes none but the default.", "K_EULER", default="DDIM")
    image_encoding: Encoding | None = _of("File format of the reply.", "png", default="jpeg")

    init_image: Image | None = _of(f"Image to image: the picture to start from. {_PICTURE} It is resized.")
    strength: Float | None = _number("strength", NUMBERS["strength"], "How far to depart from `init_image`.", 0.6)
    mask_image: Image | None = _of(f"Inpainting: white is painted anew. Needs `init_image`. {_PICTURE}")
    outpainting: bool | None = _of(
        "`init_image` lies on a larger canvas and `mask_image` marks the unknown area.", default=False
    )
    inpaint_full_res: bool | None = _of("Inpaint the masked area at full resolution and paste it back.", default=False)
    inpaint_full_res_padding: Int | None = _number(
        "inpaint_full_res_padding",
        NUMBERS["inpaint_full_res_padding"],
        "Pixels around the masked area that the model sees as context.",
    )

    checkpoint: Text | None = _of("Name or id of a checkpoint asset.")
    vae: Text | None = _of("Name or id of an autoencoder asset.")
    loras: dict[Text, Float | None] | None = _of(
        "Names or ids of LoRA assets and their weights, any finite number; null is 1. Up to 16.", {"crayon-style": 0.8}
    )
    textual_inversions: dict[Text, Text | None] | None = _of(
        "Names or ids of textual inversion assets and the words that stand for them; null: its name. Up to 16.",
        {"mine": "my-word"},
    )
    clip_skip: Int | None = _of(
        "Layers of the text encoder to skip at its end. At least 1; how many there are is the engine's.", 1, minimum=1
    )

    controlnet: Text | None = _of("Name or id of a ControlNet asset. Required on the controlnet routes.")
    controlnet_image: Image | None = _of(
        f"The picture that guides the ControlNet. Required on the controlnet routes. {_PICTURE}"
    )
    controlnet_preprocess: bool | None = _of(
        "Make the control map from the picture (true), or take it as the map (false).", default=True
    )
    controlnet_conditioning_scale: Float | None = _of(  # the old document states no upper bound: so the text does
        f"Weight of the ControlNet. {CONTROL_SCALE.least:g} to {CONTROL_SCALE.most:g}.",
        default=DEFAULTS["controlnet_conditioning_scale"],
        minimum=CONTROL_SCALE.least,
    )
    controlnet_early_stop: Float | None = _number(
        "controlnet_early_stop",
        NUMBERS["controlnet_early_stop"],
        "Share of the steps after which the ControlNet stops; 1: it does not.",
    )

    high_noise_frac: Float | None = _number(
        "high_noise_frac",
        NUMBERS["high_noise_frac"],
        "SDXL: share of the timesteps done by the base model, the rest by the refiner.",
    )
    use_refiner: bool | None = _of(
        "SDXL: use the refiner where the deployment has one.", default=DEFAULTS["use_refiner"]
    )
    style_preset: Style | None = _of("SDXL: name of a style.", "Watercolor")

    ip_adapter_image: Image | None = _of(
        f"The picture that an IP-Adapter takes as a prompt. Required on the ip-adapter route. {_PICTURE}"
    )
    ip_adapter_mask_image: Image | None = _of(f"White is where the IP-Adapter applies. {_PICTURE}")
    ip_adapter_method: Method | None = _of("Which attentions the IP-Adapter drives.", default="full")
    ip_adapter_mode: Mode | None = _of("How the IP-Adapter is applied.", default="base")
    ip_adapter_scale: Float | None = _number(
        "ip_adapter_scale", NUMBERS["ip_adapter_scale"], "Weight of the IP-Adapter."
    )
    ip_adapter: Text | None = _of(
        "Name or id of the IP-Adapter asset. Default: the first, by name, that fits the engine."
    )
    transfer_images: dict[Text, list[Image]] | None = _of(
        f"Trigger words and 1 to 4 sample pictures of what each stands for. {_PICTURE}"
    )

    log_prompt: bool | None = _of("Accepted for old callers; nothing is logged.", default=False)


class ImageGeneration(BaseModel):
    """One picture."""

    image_b64: str | None = Field(description="The picture file in base64; null when it was removed for safety.")
    removed_for_safety: bool
    safety_score: float | None = Field(description="0 (harmless) to 1; null when nothing looked at the picture.")
    seed: int = Field(description="Draws this picture again, alone.", ge=0, lt=SEEDS)


class Variant(BaseModel):
    """A network with other weights than the engine's own."""

    model: str
    graph: str = Field(description="The network whose graph it has.")
    source: str = Field(description="Where it was.", json_schema_extra={"enum": ["built", "disk", "memory"]})
    build_ms: float = Field(description="Of merging and writing its weights; 0 unless it was built.")
    load_ms: float = Field(description="0 where it was loaded.")


class ImageGenerationResponse(BaseModel):
    """All pictures of a request."""

    images: list[ImageGeneration]
    prediction_time_ms: float = Field(description="The whole request, in milliseconds.")
    notices: list[str] = Field(description="What was cut or replaced on the way, in sentences.")
    variants: list[Variant] = Field(description="Networks with other weights than the engine's own.")


class ValidationError(BaseModel):
    """One thing wrong with a body."""

    loc: list[str | int] = Field(description='Where: "body", then keys and positions.', examples=[["body", "steps"]])
    msg: str = Field(description="What was given and what is allowed.")
    type: str = Field(description="A stable name for the kind of mistake.")


class HTTPValidationError(BaseModel):
    """Everything wrong with a body."""

    detail: list[ValidationError]


class Failure(BaseModel):
    """Why there is no picture."""

    message: str = Field(description="What happened and what to do.")
    reason: str = Field(description="A stable name for programs.", examples=["OVERLOADED"])


class Submitted(BaseModel):
    """An asynchronous request has its place."""

    response_id: str
    poll_url: str


class Poll(BaseModel):
    """How an asynchronous request is."""

    response_id: str
    status: str = Field(description="pending, running, completed or failed", json_schema_extra={"enum": list(STATES)})
    response_url: str | None = Field(
        default=None, description="Once completed or failed: answers as the request itself would have been answered."
    )
    error: dict[str, object] | None = Field(default=None, description="Once failed: the body of that answer.")


class Health(BaseModel):
    """How the service is."""

    status: str = Field(json_schema_extra={"enum": ["serving", "not serving"]})
