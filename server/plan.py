"""A request becomes a plan, once. This is the only file that reads request fields.

`Plan` is frozen and total: nothing in it is optional, nothing is left to look up or to default. Everything wrong with a
request is found in one go. Knows nothing of gRPC: a violation is data.
"""

import math
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.descriptor import FieldDescriptor
from mediagen.v1 import image_pb2 as pb

from server.catalog import Catalog, Engine
from server.families.base import Size
from server.pictures import JPEG, PNG, Encoding
from server.samplers import SAMPLERS
from server.samplers.base import Sampler

MAX_PROMPT = 10_000  # characters
MAX_GUIDANCE_SCALE = 50.0
MAX_IMAGES = 16
SEEDS = 2**32

Number = TypeVar("Number", int, float)

_ENCODINGS = {
    pb.IMAGE_ENCODING_UNSPECIFIED: JPEG,
    pb.IMAGE_ENCODING_JPEG: JPEG,
    pb.IMAGE_ENCODING_PNG: PNG,
}
_READ = frozenset(
    {
        "engine",
        "prompt",
        "negative_prompt",
        "cfg_scale",
        "steps",
        "width",
        "height",
        "num_images",
        "seed",
        "seeds",
        "sampler",
        "image_encoding",
    }
)
# Fields outside `_READ` may be sent with the value that asks for nothing.
_NO_OPS: dict[str, object] = {
    "strength": 0.8,
    "inpaint_full_res_padding": 32,
    "controlnet_preprocess": True,
    "controlnet_conditioning_scale": 1.0,
    "high_noise_frac": 0.8,
    "use_refiner": True,
    "ip_adapter_method": pb.IP_ADAPTER_METHOD_FULL,
    "ip_adapter_mode": pb.IP_ADAPTER_MODE_BASE,
    "ip_adapter_scale": 1.0,
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


@dataclass(frozen=True)
class Plan:
    """Everything that decides a request's pictures."""

    engine: Engine
    prompt: str
    negative_prompt: str
    prompt_ids: tuple[int, ...]  # 77 token ids
    negative_prompt_ids: tuple[int, ...]  # 77 token ids
    guidance_scale: float
    size: Size
    seeds: tuple[int, ...]  # one a picture
    sampler: Sampler
    steps: int
    encoding: Encoding
    notices: tuple[str, ...]  # what was cut on the way, in sentences

    @property
    def guided(self) -> bool:
        """Whether the negative half takes part: at 1 it cancels out, below diffusers leaves it out as well."""
        return self.guidance_scale > 1

    @property
    def evaluations(self) -> int:
        """Of the denoising network, for one picture."""
        return self.sampler.evaluations(self.steps)


def plan(request: pb.GenerateRequest, catalog: Catalog) -> Plan:
    """Raises `InvalidRequest` with every violation at once."""
    violations: list[Violation] = []
    engine = catalog.get(request.engine)
    if engine is None:
        given = f"no engine {request.engine!r}" if request.engine else "which engine?"
        violations.append(Violation("engine", f"{given}; this service has {', '.join(sorted(catalog))}"))
    violations += _unserved(request, engine)
    violations += _texts(request)
    size, wrong = _size(request, engine)
    violations += wrong
    seeds, wrong = _seeds(request)
    violations += wrong
    sampler, wrong = _sampler(request)
    violations += wrong
    violations += _numbers(request, sampler)
    if request.image_encoding not in _ENCODINGS:
        violations.append(Violation("image_encoding", f"{request.image_encoding} is none of JPEG and PNG"))
    if violations or engine is None:
        raise InvalidRequest(tuple(violations))
    prompt, negative_prompt = (engine.tokenizer.tokens(text) for text in (request.prompt, request.negative_prompt))
    cuts = {"prompt": prompt.cut, "negative_prompt": negative_prompt.cut}
    return Plan(
        engine=engine,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        prompt_ids=prompt.ids,
        negative_prompt_ids=negative_prompt.ids,
        guidance_scale=_given(request, "cfg_scale", 12.0),
        size=size,
        seeds=seeds,
        sampler=sampler,
        steps=_given(request, "steps", 30),
        encoding=_ENCODINGS[request.image_encoding],
        notices=tuple(
            f"{field} is longer than {engine.card.name} reads (77 tokens); not used was: {cut!r}"
            for field, cut in cuts.items()
            if cut
        ),
    )


def _given(request: pb.GenerateRequest, field: str, default: Number) -> Number:
    value: Number = getattr(request, field) if request.HasField(field) else default
    return value


def _unserved(request: pb.GenerateRequest, engine: Engine | None) -> Iterator[Violation]:
    """Fields that ask for what the engine does not have, or for what this version does not do on any."""
    for field, value in request.ListFields():
        if field.name in _READ or _asks_nothing(field, value):
            continue
        if engine is not None and field.name in engine.family.refuses:
            yield Violation(field.name, f"{engine.card.name} does not have it; leave it out")
        else:
            yield Violation(field.name, "not available in this version; leave it out")


def _asks_nothing(field: FieldDescriptor, value: object) -> bool:
    if field.name in _NO_OPS:
        return value == _NO_OPS[field.name] or value is False
    return value in (False, "", b"")


def _texts(request: pb.GenerateRequest) -> Iterator[Violation]:
    if not request.prompt:
        yield Violation("prompt", f"empty; say in 1 to {MAX_PROMPT:,} characters what the picture shows")
    for field in ("prompt", "negative_prompt"):
        length = len(getattr(request, field))
        if length > MAX_PROMPT:
            yield Violation(field, f"{length:,} characters; at most {MAX_PROMPT:,} are allowed")


def _numbers(request: pb.GenerateRequest, sampler: Sampler) -> Iterator[Violation]:
    guidance_scale = _given(request, "cfg_scale", 12.0)
    if not (math.isfinite(guidance_scale) and 0 < guidance_scale <= MAX_GUIDANCE_SCALE):
        yield Violation("cfg_scale", f"{guidance_scale:g} is not above 0 and at most {MAX_GUIDANCE_SCALE:g}")
    steps = _given(request, "steps", 30)
    if not 1 <= steps <= sampler.max_steps:
        yield Violation("steps", f"{steps} is not in 1..{sampler.max_steps}")
    images = _given(request, "num_images", 1)
    if not 1 <= images <= MAX_IMAGES:
        yield Violation("num_images", f"{images} is not in 1..{MAX_IMAGES}")


def _size(request: pb.GenerateRequest, engine: Engine | None) -> tuple[Size, list[Violation]]:
    if engine is None:  # sizes are the engine's; one violation says so already
        return Size(0, 0), []
    family = engine.family
    default = family.default_size
    size = Size(_given(request, "width", default.width), _given(request, "height", default.height))
    if size in family.sizes:
        return size, []
    fields = [field for field in ("width", "height") if request.HasField(field)]
    nearest = f"; the nearest is {nearest_size(size, family.sizes)}" if min(size) > 0 else ""
    sizes = ", ".join(map(str, family.sizes))
    description = f"{size} is not a size of {engine.card.name}{nearest}; allowed are {sizes}"
    return size, [Violation(field, description) for field in fields]


def nearest_size(size: Size, sizes: tuple[Size, ...]) -> Size:
    """The one that needs the least stretching: the smallest sum of the sides' log ratios. Both sides above 0."""
    return min(sizes, key=lambda s: abs(math.log(s.width / size.width)) + abs(math.log(s.height / size.height)))


def _seeds(request: pb.GenerateRequest) -> tuple[tuple[int, ...], list[Violation]]:
    images = min(max(_given(request, "num_images", 1), 1), MAX_IMAGES)
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


def _sampler(request: pb.GenerateRequest) -> tuple[Sampler, list[Violation]]:
    default = SAMPLERS["DDIM"]
    if request.sampler == pb.SAMPLER_UNSPECIFIED:
        return default, []
    known = pb.Sampler.values()
    name = (
        pb.Sampler.Name(request.sampler).removeprefix("SAMPLER_") if request.sampler in known else str(request.sampler)
    )
    if name in SAMPLERS:
        return SAMPLERS[name], []
    return default, [
        Violation("sampler", f"{name} is not available in this version; allowed are {', '.join(SAMPLERS)}")
    ]
