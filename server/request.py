"""A request becomes a plan, once. This is the only file that reads request fields.

Everything wrong with a request is found in one go, one thing a field. What is allowed is in `fields.py`,
`bounds.py` and `sizes.py`. Knows nothing of gRPC: a violation is data.
"""

import secrets
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

from mediagen.v1 import image_pb2 as pb

from server.asked import NO_ADAPTERS, read_adapters
from server.asked import carries_pictures as guided_by_pictures
from server.asked.reading import number
from server.asked.shelf import NO_ASSETS, Shelf
from server.bounds import MAX_IMAGES, NUMBERS, SEEDS, Within, check_seed
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
from server.families.sdxl_networks import SdxlCard
from server.fields import unmet, unserved
from server.images import BadImage, decode, decode_mask
from server.pictures import JPEG, PNG
from server.plan import UNGUIDED, Plan
from server.prompts.styles import STYLES, nearest
from server.prompts.weights import parse
from server.samplers import SAMPLERS
from server.samplers.base import Sampler
from server.sizes import nearest_size, wrong_size
from server.violations import InvalidRequest, Violation, one_a_field, quoted
from server.wording import Wording, read_texts

MAX_PROMPT = 10_000  # characters

_ENCODINGS = {
    pb.IMAGE_ENCODING_UNSPECIFIED: JPEG,
    pb.IMAGE_ENCODING_JPEG: JPEG,
    pb.IMAGE_ENCODING_PNG: PNG,
}


_PICTURES = {"mask_image": decode_mask, "init_image": decode}  # the lighter first: it is held beside the other


def carries_pictures(request: pb.GenerateRequest) -> bool:
    """Whether files are decoded for it. One of 2 KB may hold 48 megapixels: how large a request is says nothing."""
    return any(getattr(request, field) for field in _PICTURES) or guided_by_pictures(request)


def plan(request: pb.GenerateRequest, catalog: Catalog, shelf: Shelf = NO_ASSETS) -> Plan:
    """`shelf` has the assets that the caller may use. Raises `InvalidRequest` with every violation at once. A request
    with pictures takes as long as they take to decode, up to seconds: call it in a thread."""
    violations: list[Violation] = []
    engine = catalog.get(request.engine)
    if engine is None:
        asked = f"no engine {quoted(request.engine)}" if request.engine else "which engine?"
        violations.append(Violation("engine", f"{asked}; this service has {', '.join(sorted(catalog))}"))
    sent = {field.name: value for field, value in request.ListFields()}
    refused = frozenset() if engine is None else engine.refuses
    violations += unserved(sent, refused, request.engine)
    violations += unmet(sent, refused)
    violations += _texts(request)
    violations += _style(request, engine)
    size, wrong = _size(request, engine)
    violations += wrong
    start, wrong = _start(request, size, engine)
    violations += wrong
    adapters = NO_ADAPTERS
    if engine is not None:  # what is wrong with assets is told beside what is wrong with the size
        drawn = size if size in engine.family.sizes else engine.family.default_size
        adapters, wrong = read_adapters(request, engine, drawn, start, shelf)
        violations += wrong
    seeds, wrong = _seeds(request)
    violations += wrong
    sampler, wrong = _sampler(request, engine)
    violations += wrong
    violations += _numbers(request, sampler, engine)
    if request.image_encoding not in _ENCODINGS:
        violations.append(Violation("image_encoding", f"{request.image_encoding} is none of JPEG and PNG"))
    if violations or engine is None:
        raise InvalidRequest(one_a_field(violations))
    wording, guidance_scale = _wording(request), number(request, "cfg_scale")
    read_as = wording if guidance_scale > UNGUIDED else wording.positive()
    reading = read_texts(
        read_as,
        engine.family.texts(engine.card),
        engine.tokenizers,
        adapters.inversions,
        adapters.transfers,
    )
    refined = "use_refiner" not in engine.refuses and bool(number(request, "use_refiner"))
    made = Plan(
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
        inpaint_full_res_padding=int(number(request, "inpaint_full_res_padding")),
        strength=1.0 if isinstance(start, FromNoise) else number(request, "strength"),
        sampler=sampler,
        steps=int(number(request, "steps")),
        high_noise_frac=number(request, "high_noise_frac") if refined else 1.0,
        encoding=_ENCODINGS[request.image_encoding],
        parts=adapters.parts,
        marked=reading.marked,
        vectors=reading.vectors,
        control=adapters.control,
        image_prompt=adapters.image_prompt,
        transfers=adapters.transfers,
        adapters=adapters.names,
        notices=(*reading.notices, *_unused(request, guidance_scale)),
    )
    return replace(made, notices=(*made.notices, *_idle(made))) if made.parts or made.transfers else made


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
    where = f"ListEngines and /openapi.json name all {len(STYLES)}"
    yield Violation("style_preset", f"no style {quoted(name)}; {meant}{where}")


def _wording(request: pb.GenerateRequest) -> Wording:
    wording = Wording(
        prompt=request.prompt,
        prompt_2=request.prompt_2 or request.prompt,
        negative_prompt=request.negative_prompt,
        negative_prompt_2=request.negative_prompt_2 or request.negative_prompt,
    )
    return wording.styled(STYLES[request.style_preset]) if request.style_preset else wording


def _unused(request: pb.GenerateRequest, guidance_scale: float) -> Iterator[str]:
    for field in ("negative_prompt", "negative_prompt_2"):
        if guidance_scale <= UNGUIDED and getattr(request, field):
            yield f"{field} was not used: it has no part at a cfg_scale of {UNGUIDED:g} or below"


_FIELDS = {  # by the kind of a part
    "checkpoint": "checkpoint",
    "vae": "vae",
    "lora": "loras",
    "controlnet": "controlnet",
    "ip_adapter": "ip_adapter_image",
}


def _idle(made: Plan) -> Iterator[str]:
    """What was asked for and is for networks that do not run: see `Plan.idle_parts` and `idle_components`."""
    card = made.engine.card
    brought = card.transfer_lora if isinstance(card, SdxlCard) else ""  # by transfer images, not by name
    named = [part for part in made.parts if part.kind != "lora" or part.sha256 != brought]
    idle = [_FIELDS[part.kind] for part in named if part in made.idle_parts]
    for field, count in Counter(idle).items():
        which = f"{count} of them" if field == "loras" else "it"
        yield f"{field}: {which} did nothing: no network that has a part in this picture is changed"
    partly = [(_FIELDS[part.kind], made.idle_components(part)) for part in named if part not in made.idle_parts]
    for (field, unused), count in Counter(each for each in partly if each[1]).items():
        which = f"{count} of them" if field == "loras" else "it"
        yield f"{field}: what {which} changed of {' and '.join(sorted(unused))} did nothing: that takes no part here"
    if made.transfers and not made.shows_transfers:
        yield "transfer_images did nothing: the base model's evaluations are too few, the first ones go by text alone"


def positive_texts(request: pb.GenerateRequest) -> Mapping[str, str]:
    """What a request wants to see, by field, without brackets and weights; what is too long to be read left out."""
    texts = {"prompt": request.prompt, "prompt_2": request.prompt_2}
    return {field: parse(text).text for field, text in texts.items() if len(text) <= MAX_PROMPT}


def _numbers(request: pb.GenerateRequest, sampler: Sampler, engine: Engine | None) -> Iterator[Violation]:
    refused = frozenset() if engine is None else engine.refuses
    checks = {**NUMBERS, "steps": Within(1, sampler.max_steps)}
    if engine is not None:
        checks["clip_skip"] = Within(1, engine.family.most_skipped(engine.card))
    for field, check in checks.items():
        if request.HasField(field) and field not in refused and (wrong := check(getattr(request, field))):
            yield Violation(field, wrong)


def _size(request: pb.GenerateRequest, engine: Engine | None) -> tuple[Size, list[Violation]]:
    if engine is None:  # sizes are the engine's; one violation says so already
        return Size(0, 0), []
    size = _asked_size(request, engine)
    wrong = wrong_size(size, engine.family.sizes, engine.card.name)
    sides = (("width", "height"), ("height", "width"))
    return size, [
        Violation(side, wrong, judged_by=frozenset({other}))
        for side, other in sides
        if wrong and request.HasField(side)
    ]


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


def _start(
    request: pb.GenerateRequest, size: Size, engine: Engine | None
) -> tuple[FromNoise | FromPicture | Inpainting, list[Violation]]:
    """What the denoising begins with."""
    refused = frozenset() if engine is None else engine.refuses
    violations: list[Violation] = []
    pictures: dict[str, Array] = {}
    for field, read in _PICTURES.items():
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
    padding = max(int(number(request, "inpaint_full_res_padding")), 0)  # one below 0 is told with the numbers
    try:
        box = crop_box(painted_at(mask, size), padding) if request.inpaint_full_res else whole(size)
        shown = continued(image, mask, size) if request.outpainting else image
        return inpainting(shown, mask, size, box), violations
    except NothingToPaint as error:
        return FromNoise(), [Violation("mask_image", str(error), judged_by=frozenset({"width", "height"}))]


def _seeds(request: pb.GenerateRequest) -> tuple[tuple[int, ...], list[Violation]]:
    """A list that is too long for any request is not looked into."""
    asked = int(number(request, "num_images"))
    images = min(max(asked, 1), MAX_IMAGES)
    allowed = images if asked == images else MAX_IMAGES  # a wrong number of pictures makes no list wrong
    violations = []
    given: dict[int, int] = {}
    if request.HasField("seed") and request.seeds:
        violations.append(Violation("seeds", "give either seed or seeds, not both", judged_by=frozenset({"seed"})))
    if len(request.seeds) > allowed:
        why = f"{len(request.seeds)} seeds, of which num_images allows {allowed}; give at most one a picture"
        violations.append(Violation("seeds", why, judged_by=frozenset({"num_images"})))
    if len(request.seeds) <= MAX_IMAGES:
        given = {i: seed.value for i, seed in enumerate(request.seeds) if seed.HasField("value")}
    violations += [Violation(f"seeds[{i}]", wrong) for i, seed in given.items() if (wrong := check_seed(seed))]
    if request.HasField("seed"):
        return tuple((request.seed + i) % SEEDS for i in range(images)), violations
    return tuple(given.get(i, secrets.randbelow(SEEDS)) for i in range(images)), violations


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
