"""A request becomes a plan, once. This is the only file that reads request fields.

Everything wrong with a request is found in one go. Knows nothing of gRPC: a violation is data.
"""

import math
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.descriptor import FieldDescriptor
from mediagen.v1 import image_pb2 as pb

from server.canvas import (
    FromNoise,
    FromPicture,
    Inpainting,
    NothingToPaint,
    continued,
    crop_box,
    from_picture,
    inpainting,
    painted_at,
    whole,
)
from server.catalog import Catalog, Engine
from server.engines.port import Array
from server.families.base import Size
from server.images import BadImage, decode, decode_mask
from server.pictures import JPEG, PNG
from server.plan import UNGUIDED, Plan
from server.prompts.styles import STYLES, nearest
from server.prompts.weights import parse
from server.samplers import SAMPLERS
from server.samplers.base import Sampler
from server.wording import Wording, read_texts

MAX_PROMPT = 10_000  # characters
MAX_NAME = 100  # characters of a name that is repeated to the caller
MAX_IMAGES = 16
SEEDS = 2**32

Number = TypeVar("Number", int, float)

_ENCODINGS = {
    pb.IMAGE_ENCODING_UNSPECIFIED: JPEG,
    pb.IMAGE_ENCODING_JPEG: JPEG,
    pb.IMAGE_ENCODING_PNG: PNG,
}
_DEFAULTS = {
    "cfg_scale": 12.0,
    "steps": 30,
    "num_images": 1,
    "strength": 0.8,
    "inpaint_full_res_padding": 32,
    "high_noise_frac": 0.8,
}
# Fields that are not served, or not by the engine, or that need another one, may be sent with the value that asks for
# nothing.
_NO_OPS: dict[str, tuple[object, ...]] = {
    "sampler": (pb.SAMPLER_DDIM,),  # where there is no choice
    "strength": (_DEFAULTS["strength"],),
    "inpaint_full_res_padding": (_DEFAULTS["inpaint_full_res_padding"],),
    "controlnet_preprocess": (True, False),
    "controlnet_conditioning_scale": (1.0,),
    "high_noise_frac": (_DEFAULTS["high_noise_frac"], 1.0),  # 1 is without a refiner
    "use_refiner": (True, False),
    "ip_adapter_method": (pb.IP_ADAPTER_METHOD_FULL,),
    "ip_adapter_mode": (pb.IP_ADAPTER_MODE_BASE,),
    "ip_adapter_scale": (1.0,),
}
_LATER = frozenset(  # what this version does not do yet on any engine
    name
    for name in pb.GenerateRequest.DESCRIPTOR.fields_by_name
    if name.startswith(("controlnet", "ip_adapter"))
    or name in {"checkpoint", "vae", "loras", "textual_inversions", "transfer_images"}
)
_NEEDS = {  # a field that asks for work on what another one gives
    "strength": "init_image",
    "mask_image": "init_image",
    "outpainting": "mask_image",
    "inpaint_full_res": "mask_image",
    "inpaint_full_res_padding": "inpaint_full_res",
}


@dataclass(frozen=True)
class Violation:
    """One thing wrong with a request: where, and what is allowed there."""

    field: str
    description: str


class InvalidRequest(ValueError):
    """The request cannot be served; `violations` has every reason."""

    def __init__(self, violations: tuple[Violation, ...]) -> None:
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations))
        self.violations = violations


def plan(request: pb.GenerateRequest, catalog: Catalog) -> Plan:
    """Raises `InvalidRequest` with every violation at once. A request with pictures takes as long as they take to
    decode, up to seconds: call it in a thread."""
    violations: list[Violation] = []
    engine = catalog.get(request.engine)
    if engine is None:
        given = f"no engine {request.engine!r}" if request.engine else "which engine?"
        violations.append(Violation("engine", f"{given}; this service has {', '.join(sorted(catalog))}"))
    violations += _unserved(request, engine)
    violations += _unmet(request, engine)
    violations += _texts(request)
    violations += _style(request, engine)
    size, wrong = _size(request, engine)
    violations += wrong
    start, wrong = _start(request, size, engine)
    violations += wrong
    seeds, wrong = _seeds(request)
    violations += wrong
    sampler, wrong = _sampler(request, engine)
    violations += wrong
    violations += _numbers(request, sampler, engine)
    if request.image_encoding not in _ENCODINGS:
        violations.append(Violation("image_encoding", f"{request.image_encoding} is none of JPEG and PNG"))
    if violations or engine is None:
        raise InvalidRequest(tuple(violations))
    wording, guidance_scale = _wording(request), _given(request, "cfg_scale")
    read_as = wording if guidance_scale > UNGUIDED else wording.positive()
    reading = read_texts(read_as, engine.family.texts(engine.card), engine.tokenizers)
    refined = "use_refiner" not in engine.refuses and (request.use_refiner or not request.HasField("use_refiner"))
    return Plan(
        engine=engine,
        prompt=wording.prompt,
        prompt_2=wording.prompt_2,
        negated=request.HasField("negative_prompt") or bool(request.negative_prompt_2 or request.style_preset),
        negative_prompt=wording.negative_prompt,
        negative_prompt_2=wording.negative_prompt_2,
        style_preset=request.style_preset,
        prompts=reading.prompts,
        negative_prompts=reading.negative_prompts,
        clip_skip=request.clip_skip,
        guidance_scale=guidance_scale,
        size=size,
        seeds=seeds,
        start=start,
        outpainting=request.outpainting,
        inpaint_full_res=request.inpaint_full_res,
        inpaint_full_res_padding=int(_given(request, "inpaint_full_res_padding")),
        strength=1.0 if isinstance(start, FromNoise) else _given(request, "strength"),
        sampler=sampler,
        steps=int(_given(request, "steps")),
        high_noise_frac=_given(request, "high_noise_frac") if refined else 1.0,
        encoding=_ENCODINGS[request.image_encoding],
        notices=reading.notices,
    )


def _given(request: pb.GenerateRequest, field: str) -> float:
    value: float = getattr(request, field) if request.HasField(field) else _DEFAULTS[field]
    return value


def _unserved(request: pb.GenerateRequest, engine: Engine | None) -> Iterator[Violation]:
    """Fields that ask for what the engine does not have, or for what this version does not do on any."""
    refused = frozenset() if engine is None else engine.refuses
    for field, value in request.ListFields():
        if field.name not in refused | _LATER or _asks_nothing(field, value):
            continue
        if engine is not None and field.name in refused:
            yield Violation(field.name, f"{engine.card.name} does not have it; leave it out")
        else:
            yield Violation(field.name, "not available in this version; leave it out")


def _unmet(request: pb.GenerateRequest, engine: Engine | None) -> Iterator[Violation]:
    """Fields that ask for work on something that the request does not have."""
    refused = frozenset() if engine is None else engine.refuses
    present = {field.name for field, value in request.ListFields() if value not in (False, b"")}
    for field, value in request.ListFields():
        needed = _NEEDS.get(field.name)
        if needed is None or needed in present or field.name in refused:
            continue
        if not _asks_nothing(field, value):
            yield Violation(
                field.name, f"without {needed} there is nothing for it to do; send {needed}, or leave it out"
            )


def _asks_nothing(field: FieldDescriptor, value: object) -> bool:
    return value in _NO_OPS.get(field.name, (False, "", b""))


def _texts(request: pb.GenerateRequest) -> Iterator[Violation]:
    if not request.prompt:
        yield Violation("prompt", f"empty; say in 1 to {MAX_PROMPT:,} characters what the picture shows")
    for field in ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2"):
        length = len(getattr(request, field))
        if length > MAX_PROMPT:
            yield Violation(field, f"{length:,} characters; at most {MAX_PROMPT:,} are allowed")


def _style(request: pb.GenerateRequest, engine: Engine | None) -> Iterator[Violation]:
    name = request.style_preset
    if not name or name in STYLES or (engine is not None and "style_preset" in engine.refuses):
        return
    likest = nearest(name)
    meant = f"the nearest are {', '.join(likest)}; " if likest else ""
    yield Violation("style_preset", f"no style {name[:MAX_NAME]!r}; {meant}ListEngines names all {len(STYLES)}")


def _wording(request: pb.GenerateRequest) -> Wording:
    wording = Wording(
        prompt=request.prompt,
        prompt_2=request.prompt_2 or request.prompt,
        negative_prompt=request.negative_prompt,
        negative_prompt_2=request.negative_prompt_2 or request.negative_prompt,
    )
    return wording.styled(STYLES[request.style_preset]) if request.style_preset else wording


def positive_texts(request: pb.GenerateRequest) -> Mapping[str, str]:
    """What a request wants to see, by field, without brackets and weights; what is too long to be read left out."""
    texts = {"prompt": request.prompt, "prompt_2": request.prompt_2}
    return {field: parse(text).text for field, text in texts.items() if len(text) <= MAX_PROMPT}


def _within(least: float, most: float) -> "_Check":
    return lambda value: "" if least <= value <= most else f"{value:.15g} is not in {least:.15g}..{most:.15g}"


def _above(bottom: float, most: float) -> "_Check":
    return lambda value: "" if bottom < value <= most else f"{value:.15g} is not above {bottom:g} and at most {most:g}"


_Check = Callable[[float], str]  # what is wrong with a number; NaN lies in no bounds
_NUMBERS: Mapping[str, _Check] = {
    "cfg_scale": _above(0, 50),
    "num_images": _within(1, MAX_IMAGES),
    "strength": _above(0, 1),
    "inpaint_full_res_padding": _within(0, 2**31 - 1),
    "high_noise_frac": _within(0, 1),
}


def _numbers(request: pb.GenerateRequest, sampler: Sampler, engine: Engine | None) -> Iterator[Violation]:
    refused = frozenset() if engine is None else engine.refuses
    checks = {**_NUMBERS, "steps": _within(1, sampler.max_steps)}
    if engine is not None:
        checks["clip_skip"] = _within(1, engine.family.most_skipped(engine.card))
    for field, check in checks.items():
        if request.HasField(field) and field not in refused and (wrong := check(getattr(request, field))):
            yield Violation(field, wrong)


def _size(request: pb.GenerateRequest, engine: Engine | None) -> tuple[Size, list[Violation]]:
    if engine is None:  # sizes are the engine's; one violation says so already
        return Size(0, 0), []
    family = engine.family
    size = _asked_size(request, engine)
    if size in family.sizes:
        return size, []
    fields = [field for field in ("width", "height") if request.HasField(field)]
    nearest = f"; the nearest is {nearest_size(size, family.sizes)}" if min(size) > 0 else ""
    sizes = ", ".join(map(str, family.sizes))
    description = f"{size} is not a size of {engine.card.name}{nearest}; allowed are {sizes}"
    return size, [Violation(field, description) for field in fields]


def _asked_size(request: pb.GenerateRequest, engine: Engine) -> Size:
    default = engine.family.default_size
    return Size(
        request.width if request.HasField("width") else default.width,
        request.height if request.HasField("height") else default.height,
    )


def nearest_supported(request: pb.GenerateRequest, catalog: Catalog) -> Size | None:
    """The size nearest to the one a request asks for; None for an unknown engine and for a side that is not above 0."""
    engine = catalog.get(request.engine)
    size = None if engine is None else _asked_size(request, engine)
    return None if engine is None or size is None or min(size) <= 0 else nearest_size(size, engine.family.sizes)


def nearest_size(size: Size, sizes: tuple[Size, ...]) -> Size:
    """The one that needs the least stretching: the smallest sum of the sides' log ratios. Both sides above 0."""
    return min(sizes, key=lambda s: abs(math.log(s.width / size.width)) + abs(math.log(s.height / size.height)))


def _start(
    request: pb.GenerateRequest, size: Size, engine: Engine | None
) -> tuple[FromNoise | FromPicture | Inpainting, list[Violation]]:
    """What the denoising begins with."""
    refused = frozenset() if engine is None else engine.refuses
    violations: list[Violation] = []
    pictures: dict[str, Array] = {}
    for field, read in (("init_image", decode), ("mask_image", decode_mask)):
        if getattr(request, field) and field not in refused:
            try:
                pictures[field] = read(getattr(request, field))
            except BadImage as error:
                violations.append(Violation(field, str(error)))
    if violations or engine is None or size not in engine.family.sizes or "init_image" not in pictures:
        return FromNoise(), violations
    if "mask_image" not in pictures:
        return from_picture(pictures["init_image"], size), violations
    image, mask = pictures["init_image"], pictures["mask_image"]
    padding = max(int(_given(request, "inpaint_full_res_padding")), 0)  # one below 0 is told with the numbers
    try:
        box = crop_box(painted_at(mask, size), padding) if request.inpaint_full_res else whole(size)
        shown = continued(image, mask, size) if request.outpainting else image
        return inpainting(shown, mask, size, box), violations
    except NothingToPaint as error:
        return FromNoise(), [Violation("mask_image", str(error))]


def _seeds(request: pb.GenerateRequest) -> tuple[tuple[int, ...], list[Violation]]:
    images = min(max(int(_given(request, "num_images")), 1), MAX_IMAGES)
    violations = []
    if request.HasField("seed") and request.seeds:
        violations.append(Violation("seeds", "give either seed or seeds, not both"))
    if len(request.seeds) > images:
        violations.append(
            Violation("seeds", f"{len(request.seeds)} seeds for {images} pictures; give at most one each")
        )
    given = {f"seeds[{i}]": seed.value for i, seed in enumerate(request.seeds) if seed.HasField("value")}
    if request.HasField("seed"):
        given["seed"] = request.seed
    violations += [
        Violation(field, f"{value} is not in 0..{SEEDS - 1}")
        for field, value in given.items()
        if not 0 <= value < SEEDS
    ]
    if request.HasField("seed"):
        return tuple((request.seed + i) % SEEDS for i in range(images)), violations
    return tuple(given.get(f"seeds[{i}]", secrets.randbelow(SEEDS)) for i in range(images)), violations


def _sampler(request: pb.GenerateRequest, engine: Engine | None) -> tuple[Sampler, list[Violation]]:
    samplers = SAMPLERS if engine is None else engine.family.samplers
    default = next(iter(samplers.values()))
    if request.sampler == pb.SAMPLER_UNSPECIFIED or (engine is not None and "sampler" in engine.refuses):
        return default, []
    known = pb.Sampler.values()
    name = (
        pb.Sampler.Name(request.sampler).removeprefix("SAMPLER_") if request.sampler in known else str(request.sampler)
    )
    if name in samplers:
        return samplers[name], []
    return default, [
        Violation("sampler", f"{name} is not available in this version; allowed are {', '.join(samplers)}")
    ]
