"""An image's whole story: condition, denoise, decode, judge, encode. All is in the plan; it asks engines by `run`.

Knows no transport. Pictures of one request run side by side, and the step scheduler joins their steps.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from server.adapters.control import Control, NoControl
from server.adapters.ip_adapter import ImagePrompt, NoImagePrompt
from server.beginning import Encoded, encode
from server.canvas import FromNoise, Inpainting, paste
from server.denoising import denoise
from server.families.base import Run, Stage, together
from server.plan import Plan
from server.safety import NotChecked, Passed, Removed, Verdict


@dataclass(frozen=True)
class Evaluated:
    """The denoising network has answered once more for one picture."""

    index: int  # of the picture
    evaluation: int  # from 1


@dataclass(frozen=True)
class Picture:
    """One finished picture."""

    index: int
    seed: int
    data: bytes  # an encoded file; empty where the safety stage has removed the picture
    verdict: Verdict


@dataclass(frozen=True)
class Finished:
    """All pictures are out. Milliseconds by phase, each from its first picture's begin to its last one's end."""

    milliseconds: dict[str, float]


Event = Evaluated | Picture | Finished


async def generate(plan: Plan, run: Run) -> AsyncGenerator[Event, None]:
    """Every event of a request, in the order in which things happen. Closing it stops the work before its next step.

    Raises the fault of the first picture that fails.
    """
    stopwatch = _Stopwatch()
    with stopwatch.phase("conditioning"):
        texts = asyncio.ensure_future(plan.engine.family.condition(plan, plan.engine.card, run))
        pictures_in = asyncio.ensure_future(encode(plan, run))
        await together(texts, pictures_in)
        stages, encoded = texts.result(), pictures_in.result()
    events: asyncio.Queue[Event | None] = asyncio.Queue()  # bounded by the request: evaluations and pictures are
    pictures = [
        asyncio.create_task(_picture(plan, index, stages, encoded, run, stopwatch, events.put_nowait))
        for index in range(len(plan.seeds))
    ]
    all_pictures = asyncio.gather(*pictures)
    all_pictures.add_done_callback(lambda _: events.put_nowait(None))
    try:
        while (event := await events.get()) is not None:
            yield event
        await all_pictures
        yield Finished(stopwatch.milliseconds())
    finally:
        for picture in pictures:
            picture.cancel()
        await asyncio.gather(*pictures, all_pictures, return_exceptions=True)


async def _picture(
    plan: Plan,
    index: int,
    stages: Sequence[Stage],
    encoded: Encoded,
    run: Run,
    stopwatch: "_Stopwatch",
    emit: Callable[[Event], None],
) -> None:
    seed = plan.seeds[index]
    evaluation = 0

    def evaluated() -> None:
        nonlocal evaluation
        evaluation += 1
        emit(Evaluated(index, evaluation))

    with stopwatch.phase("denoising"):
        latents = await denoise(plan, stages, encoded, seed, run, evaluated)
    with stopwatch.phase("decoding"):
        pixels = await plan.engine.family.decode(latents, plan.engine.card, run)
        if isinstance(plan.start, Inpainting):
            pixels = await asyncio.to_thread(paste, pixels, plan.start)
        verdict = await plan.engine.safety.judge(pixels, plan.engine.card, run)
    with stopwatch.phase("encoding"):
        match verdict:
            case Removed():
                data = b""
            case Passed() | NotChecked():
                data = await asyncio.to_thread(plan.encoding.encode, pixels, parameters(plan, seed))
    emit(Picture(index, seed, data, verdict))


def parameters(plan: Plan, seed: int) -> str:
    """What a picture's file says of how it was made, as the JSON of the `GenerateRequest` that makes it again once the
    pictures that it began with are added. Texts are told in their style: one may have become too long to be sent."""
    fields: dict[str, object] = {
        "engine": plan.engine.card.name,
        "prompt": plan.prompt,
        "prompt_2": plan.prompt_2,
        "cfg_scale": plan.guidance_scale,
        "steps": plan.steps,
        "sampler": f"SAMPLER_{plan.sampler.name}",
        "width": plan.size.width,
        "height": plan.size.height,
        "seed": seed,
        "image_encoding": f"IMAGE_ENCODING_{plan.encoding.name}",
        "high_noise_frac": plan.high_noise_frac,
    }
    if plan.negated:
        fields |= {"negative_prompt": plan.negative_prompt, "negative_prompt_2": plan.negative_prompt_2}
    if plan.clip_skip > 0:
        fields["clip_skip"] = plan.clip_skip
    if not isinstance(plan.start, FromNoise):
        fields["strength"] = plan.strength
    if plan.outpainting:
        fields["outpainting"] = True
    if plan.inpaint_full_res:
        fields |= {"inpaint_full_res": True, "inpaint_full_res_padding": plan.inpaint_full_res_padding}
    fields |= _adapters(plan)
    told = {name: value for name, value in fields.items() if name not in plan.engine.refuses}
    return json.dumps(told, ensure_ascii=False)


def _adapters(plan: Plan) -> dict[str, object]:
    """Of those, what the request put on top of its engine."""
    names = plan.adapters
    fields: dict[str, object] = {
        "checkpoint": names.checkpoint,
        "vae": names.vae,
        "loras": names.loras,
        "textual_inversions": names.textual_inversions,
        "controlnet": names.controlnet,
        "ip_adapter": names.ip_adapter,
    }
    match plan.control:
        case Control(preprocessor=preprocessor, scale=scale, early_stop=early_stop):
            fields["controlnet_preprocess"] = bool(preprocessor)
            fields |= {"controlnet_conditioning_scale": scale, "controlnet_early_stop": early_stop}
        case NoControl():
            pass
    match plan.image_prompt:
        case ImagePrompt(method=method, scale=scale):
            fields |= {"ip_adapter_method": f"IP_ADAPTER_METHOD_{method.upper()}", "ip_adapter_scale": scale}
        case NoImagePrompt():
            pass
    return {name: value for name, value in fields.items() if value not in ("", {})}


class _Stopwatch:
    """Wall-clock spans of phases that several pictures go through side by side."""

    def __init__(self) -> None:
        self._spans: dict[str, tuple[float, float]] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        end = time.perf_counter()
        first, last = self._spans.get(name, (begin, end))
        self._spans[name] = min(first, begin), max(last, end)

    def milliseconds(self) -> dict[str, float]:
        return {name: (last - first) * 1e3 for name, (first, last) in self._spans.items()}
