"""A request becomes a plan, once. This is the only file that reads request fields.

`Plan` is frozen and total: nothing in it is optional, nothing is left to look up or to default. Everything wrong with a
request is found in one go. Knows nothing of gRPC: a violation is data.
"""

import math
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from google.protobuf.descriptor import FieldDescriptor
from mediagen.v1 import image_pb2 as pb

from server.catalog import Catalog, Engine
from server.families.base import Size, Text
from server.pictures import JPEG, PNG, Encoding
from server.samplers import SAMPLERS
from server.samplers.base import Sampler, Trajectory
from server.tokenizer import Tokens

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
        "prompt_2",
        "negative_prompt",
        "negative_prompt_2",
        "cfg_scale",
        "steps",
        "width",
        "height",
        "num_images",
        "seed",
        "seeds",
        "sampler",
        "image_encoding",
        "high_noise_frac",
        "use_refiner",
    }
)
_HIGH_NOISE_FRAC = 0.8
# Fields that are not served, or not by the engine, may be sent with the value that asks for nothing.
_NO_OPS: dict[str, tuple[object, ...]] = {
    "sampler": (pb.SAMPLER_DDIM,),  # where there is no choice
    "strength": (0.8,),
    "inpaint_full_res_padding": (32,),
    "controlnet_preprocess": (True, False),
    "controlnet_conditioning_scale": (1.0,),
    "high_noise_frac": (_HIGH_NOISE_FRAC, 1.0),  # 1 is without a refiner
    "use_refiner": (True, False),
    "ip_adapter_method": (pb.IP_ADAPTER_METHOD_FULL,),
    "ip_adapter_mode": (pb.IP_ADAPTER_MODE_BASE,),
    "ip_adapter_scale": (1.0,),
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
    prompt_2: str  # a copy of `prompt` where the request has none
    negated: bool  # whether the request has a negative prompt, be it empty: SDXL tells none from an empty one
    negative_prompt: str
    negative_prompt_2: str  # a copy of `negative_prompt` where the request has none
    prompt_ids: Mapping[Text, tuple[int, ...]]  # of each text that the engine reads
    negative_prompt_ids: Mapping[Text, tuple[int, ...]]
    guidance_scale: float
    size: Size
    seeds: tuple[int, ...]  # one a picture
    sampler: Sampler
    steps: int
    high_noise_frac: float  # share of the timesteps before the refiner's; 1 where none takes part
    encoding: Encoding
    notices: tuple[str, ...]  # what was cut on the way, in sentences

    @property
    def guided(self) -> bool:
        """Whether the negative half takes part: at 1 it cancels out, below diffusers leaves it out as well."""
        return self.guidance_scale > 1

    @property
    def evaluations(self) -> int:
        """Of the denoising networks, for one picture: the base's part and the refiner's are runs of their own."""
        steps, cut = self.trajectory.steps, self.steps_before(self.high_noise_frac)
        return sum(self.sampler.evaluations(part) for part in (steps[:cut], steps[cut:]) if part)

    @cached_property
    def trajectory(self) -> Trajectory:
        """The steps of a picture's denoising."""
        return self.sampler.trajectory(self.engine.schedule, self.steps)

    def steps_before(self, share: float) -> int:
        """How many of the steps begin in a share of the timesteps that begins at the noisy end.
        The cut is that of diffusers' `denoising_end` and `denoising_start`."""
        timesteps = self.engine.card.scheduler.num_train_timesteps
        cutoff = round(timesteps - share * timesteps)
        return sum(step.here.time >= cutoff for step in self.trajectory.steps)

    def token_ids(self, text: Text) -> tuple[tuple[int, ...], ...]:
        """The rows of a text: (negative, positive) where guidance is on, else (positive,)."""
        positive = self.prompt_ids[text]
        return (self.negative_prompt_ids[text], positive) if self.guided else (positive,)


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
    sampler, wrong = _sampler(request, engine)
    violations += wrong
    violations += _numbers(request, sampler, frozenset() if engine is None else engine.refuses)
    if request.image_encoding not in _ENCODINGS:
        violations.append(Violation("image_encoding", f"{request.image_encoding} is none of JPEG and PNG"))
    if violations or engine is None:
        raise InvalidRequest(tuple(violations))
    fields = {  # whose text stands for each
        "prompt": "prompt",
        "prompt_2": "prompt_2" if request.prompt_2 else "prompt",
        "negative_prompt": "negative_prompt",
        "negative_prompt_2": "negative_prompt_2" if request.negative_prompt_2 else "negative_prompt",
    }
    texts = engine.family.texts(engine.card)
    readings = dict.fromkeys(
        (text.engine, fields[field]) for text in texts for field in (text.field, f"negative_{text.field}")
    )
    tokens = {(name, field): engine.tokenizers[name].tokens(getattr(request, field)) for name, field in readings}
    refined = "use_refiner" not in engine.refuses and (request.use_refiner or not request.HasField("use_refiner"))
    return Plan(
        engine=engine,
        prompt=request.prompt,
        prompt_2=getattr(request, fields["prompt_2"]),
        negated=request.HasField("negative_prompt") or bool(request.negative_prompt_2),
        negative_prompt=request.negative_prompt,
        negative_prompt_2=getattr(request, fields["negative_prompt_2"]),
        prompt_ids={text: tokens[text.engine, fields[text.field]].ids for text in texts},
        negative_prompt_ids={text: tokens[text.engine, fields[f"negative_{text.field}"]].ids for text in texts},
        guidance_scale=_given(request, "cfg_scale", 12.0),
        size=size,
        seeds=seeds,
        sampler=sampler,
        steps=_given(request, "steps", 30),
        high_noise_frac=_given(request, "high_noise_frac", _HIGH_NOISE_FRAC) if refined else 1.0,
        encoding=_ENCODINGS[request.image_encoding],
        notices=_cuts(tokens),
    )


def _cuts(tokens: Mapping[tuple[str, str], Tokens]) -> tuple[str, ...]:
    """What text engines leave out of a request's fields, in sentences; the tokens are by engine and field."""
    readers: dict[tuple[str, str, int], list[str]] = {}
    for (engine, field), found in tokens.items():
        if found.cut:
            readers.setdefault((field, found.cut, len(found.ids)), []).append(engine)
    return tuple(
        f"{field} is longer than {' and '.join(engines)} can read ({count} tokens); not used was: {cut!r}"
        for (field, cut, count), engines in readers.items()
    )


def _given(request: pb.GenerateRequest, field: str, default: Number) -> Number:
    value: Number = getattr(request, field) if request.HasField(field) else default
    return value


def _unserved(request: pb.GenerateRequest, engine: Engine | None) -> Iterator[Violation]:
    """Fields that ask for what the engine does not have, or for what this version does not do on any."""
    refused = frozenset() if engine is None else engine.refuses
    for field, value in request.ListFields():
        if field.name in _READ - refused or _asks_nothing(field, value):
            continue
        if engine is not None and field.name in refused:
            yield Violation(field.name, f"{engine.card.name} does not have it; leave it out")
        else:
            yield Violation(field.name, "not available in this version; leave it out")


def _asks_nothing(field: FieldDescriptor, value: object) -> bool:
    return value in _NO_OPS.get(field.name, (False, "", b""))


def _texts(request: pb.GenerateRequest) -> Iterator[Violation]:
    if not request.prompt:
        yield Violation("prompt", f"empty; say in 1 to {MAX_PROMPT:,} characters what the picture shows")
    for field in ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2"):
        length = len(getattr(request, field))
        if length > MAX_PROMPT:
            yield Violation(field, f"{length:,} characters; at most {MAX_PROMPT:,} are allowed")


def _numbers(request: pb.GenerateRequest, sampler: Sampler, refused: frozenset[str]) -> Iterator[Violation]:
    guidance_scale = _given(request, "cfg_scale", 12.0)
    if not (math.isfinite(guidance_scale) and 0 < guidance_scale <= MAX_GUIDANCE_SCALE):
        yield Violation("cfg_scale", f"{guidance_scale:g} is not above 0 and at most {MAX_GUIDANCE_SCALE:g}")
    steps = _given(request, "steps", 30)
    if not 1 <= steps <= sampler.max_steps:
        yield Violation("steps", f"{steps} is not in 1..{sampler.max_steps}")
    images = _given(request, "num_images", 1)
    if not 1 <= images <= MAX_IMAGES:
        yield Violation("num_images", f"{images} is not in 1..{MAX_IMAGES}")
    high_noise_frac = _given(request, "high_noise_frac", _HIGH_NOISE_FRAC)
    if "high_noise_frac" not in refused and not 0 <= high_noise_frac <= 1:
        yield Violation("high_noise_frac", f"{high_noise_frac:g} is not in 0..1")


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
