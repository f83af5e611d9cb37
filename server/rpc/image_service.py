"""ImageService: messages to plans, events to messages. The work itself is the pipeline's."""

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, nullcontext
from typing import NamedTuple

from mediagen.v1 import image_pb2 as pb
from mediagen.v1 import image_pb2_grpc

from server.adapters.weights import Variant
from server.admission import Admission
from server.asked.shelf import NO_ASSETS, Shelf
from server.catalog import Catalog
from server.explain import Seconds, explain
from server.pipeline import Evaluated, Finished, Picture, generate
from server.plan import Plan
from server.prompt_filter import REFUSAL, PromptBlocked, PromptFilter
from server.request import carries_pictures, nearest_supported
from server.rpc.effective import effective
from server.rpc.errors import NotBuilt
from server.rpc.interceptor import Context, request_id
from server.rpc.reader import Reader
from server.safety import NotChecked, Passed, Removed, Verdict
from server.variants import Held, Hold
from server.violations import InvalidRequest, Violation

ROW = 32  # requests with pictures that are read or wait for it, whoever asks: half the default permits stay for others


class ImageService(image_pb2_grpc.ImageServiceServicer):
    """Who wants a picture now is admitted before the request is read; what is only checked, or drawn later, is read
    without a permit. `close` it at the end."""

    def __init__(
        self,
        catalog: Catalog,
        hold: Hold,
        admission: Admission,
        prompt_filter: PromptFilter,
        seconds: Seconds,
        shelf: Callable[[], Shelf] = lambda: NO_ASSETS,
        absent: Callable[[Mapping[str, Variant]], Sequence[str]] = lambda _: (),
    ) -> None:
        """`hold` gives a request its networks, `seconds` tells how long a network's calls take, `shelf` which assets
        call may use, `absent` which networks are not loaded yet."""
        self._catalog = catalog
        self._reader = Reader(catalog, shelf)
        self._hold = hold
        self._absent = absent
        self._admission = admission
        self._row = Admission(ROW)
        self._prompt_filter = prompt_filter
        self._seconds = seconds

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        drawn = self.generate(request)
        del request  # see `generate`
        return await drawn

    async def generate(self, request: pb.GenerateRequest) -> pb.GenerateResponse:
        """`Generate` for callers within the process; `request_id` must be set. Raises what `fault_of` knows."""
        begin = time.perf_counter()
        with self._admission.permit():
            what = await self.check(request)
            del request  # its files, which may weigh as much as all the rest of the call, are read
            return await self._drawn(what, begin)

    async def check(self, request: pb.GenerateRequest) -> Plan:
        """What `draw` draws, for callers that wait between the two. Raises what `generate` raises for the request
        alone, and `Overloaded`: too many pictures are being read."""
        with self._row.permit() if carries_pictures(request) else nullcontext():
            what = await self._reader.plan(request)
        if blocked := await self._blocked(request):
            raise PromptBlocked(blocked)
        return what

    async def draw(self, what: Plan) -> pb.GenerateResponse:
        """`generate` behind a `check`, as often as one likes."""
        begin = time.perf_counter()
        with self._admission.permit():
            return await self._drawn(what, begin)

    async def _drawn(self, what: Plan, begin: float) -> pb.GenerateResponse:
        preparing = time.perf_counter()
        pictures: list[Picture] = []
        milliseconds: dict[str, float] = {}
        async with self._hold(what.variants) as held:
            drawing = time.perf_counter()
            async with aclosing(generate(what, held.run)) as events:
                async for event in events:
                    match event:
                        case Picture():
                            pictures.append(event)
                        case Finished():
                            milliseconds = event.milliseconds
        return pb.GenerateResponse(
            request_id=request_id.get(),
            images=[_image(what, picture) for picture in sorted(pictures, key=lambda picture: picture.index)],
            effective=effective(what),
            timings=_timings(milliseconds, _Moments(begin, preparing, drawing)),
            notices=what.notices,
            variants=_variants(held),
        )

    async def GenerateStream(
        self, request: pb.GenerateStreamRequest, context: Context
    ) -> AsyncIterator[pb.GenerateStreamResponse]:
        begin = time.perf_counter()
        with self._admission.permit():
            what = await self._stream_plan(request)
            del request  # see `generate`
            preparing = time.perf_counter()
            accepted = pb.Accepted(request_id=request_id.get(), effective=effective(what), notices=what.notices)
            yield pb.GenerateStreamResponse(accepted=accepted)
            if absent := self._absent(what.variants):
                yield pb.GenerateStreamResponse(preparing=pb.Preparing(models=absent))
            async with self._hold(what.variants) as held:
                moments = _Moments(begin, preparing, time.perf_counter())
                async with aclosing(generate(what, held.run)) as events:
                    async for event in events:
                        yield _stream_event(what, event, held, moments)

    async def GenerateBatch(
        self, requests: AsyncIterator[pb.GenerateBatchRequest], context: Context
    ) -> AsyncIterator[pb.GenerateBatchResponse]:
        raise NotBuilt("GenerateBatch is not available in this version; call GenerateStream once a request")
        yield pb.GenerateBatchResponse()  # makes this a stream

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplainResponse:
        wanted = request.request
        nearest = nearest_supported(wanted, self._catalog)
        size = None if nearest is None else pb.Size(width=nearest.width, height=nearest.height)
        try:
            what = await self.check(wanted)
        except InvalidRequest as invalid:
            return _refused(size, invalid.violations, await self._blocked(wanted))
        except PromptBlocked as refused:
            return _refused(size, (), refused.fields)
        explanation = explain(what, self._seconds)
        return pb.ExplainResponse(
            effective=effective(what),
            executions=explanation.executions,
            estimated_ms=None if explanation.unmeasured else explanation.seconds * 1e3,
            nearest_size=size,
            unmeasured=explanation.unmeasured,
            notices=what.notices,
        )

    async def _stream_plan(self, request: pb.GenerateStreamRequest) -> Plan:
        wrong: tuple[Violation, ...] = ()
        if request.preview_interval != 0:
            given = f"{request.preview_interval} is not 0"
            why = f"{given}: previews are not available in this version; leave it out"
            wrong = (Violation("preview_interval", why),)
        try:
            what = await self.check(request.request)
        except InvalidRequest as invalid:
            nested = (Violation(f"request.{v.field}", v.description) for v in invalid.violations)
            raise InvalidRequest((*nested, *wrong)) from None
        except PromptBlocked as blocked:
            raise PromptBlocked([f"request.{field}" for field in blocked.fields]) from None
        if wrong:
            raise InvalidRequest(wrong)
        return what

    async def _blocked(self, request: pb.GenerateRequest) -> list[str]:
        """The fields whose text the prompt filter refuses."""
        texts = await self._reader.texts(request)
        return [field for field, text in texts.items() if await self._prompt_filter(text)]

    def close(self) -> None:
        """No further request is read."""
        self._reader.close()


def _refused(nearest: pb.Size | None, violations: Sequence[Violation], blocked: Sequence[str]) -> pb.ExplainResponse:
    all_of_them = (*violations, *(Violation(field, REFUSAL) for field in blocked))
    told = [pb.Violation(field=violation.field, description=violation.description) for violation in all_of_them]
    return pb.ExplainResponse(nearest_size=nearest, violations=told)


class _Moments(NamedTuple):
    """Of a call, by `perf_counter`."""

    begin: float  # it came
    preparing: float  # it was read and let in
    drawing: float  # its networks were there


def _stream_event(
    what: Plan, event: Evaluated | Picture | Finished, held: Held, moments: _Moments
) -> pb.GenerateStreamResponse:
    match event:
        case Evaluated():
            progress = pb.Progress(index=event.index, evaluation=event.evaluation, evaluations=what.evaluations)
            return pb.GenerateStreamResponse(progress=progress)
        case Picture():
            return pb.GenerateStreamResponse(image=_image(what, event))
        case Finished():
            timings = _timings(event.milliseconds, moments)
            return pb.GenerateStreamResponse(summary=pb.Summary(timings=timings, variants=_variants(held)))


def _image(what: Plan, picture: Picture) -> pb.Image:
    safety_check, safety_score = _safety(picture.verdict)
    return pb.Image(
        data=picture.data,
        encoding=f"IMAGE_ENCODING_{what.encoding.name}",
        width=what.size.width,
        height=what.size.height,
        index=picture.index,
        seed=picture.seed,
        safety_check=safety_check,
        safety_score=safety_score,
    )


def _safety(verdict: Verdict) -> tuple[pb.SafetyCheck, float | None]:
    match verdict:
        case NotChecked():
            return pb.SAFETY_CHECK_NOT_CHECKED, None
        case Passed(score):
            return pb.SAFETY_CHECK_PASSED, score
        case Removed(score):
            return pb.SAFETY_CHECK_REMOVED, score


_SOURCES: Mapping[str, pb.VariantSource] = {
    "built": pb.VARIANT_SOURCE_BUILT,
    "disk": pb.VARIANT_SOURCE_DISK,
    "memory": pb.VARIANT_SOURCE_MEMORY,
}


def _variants(held: Held) -> list[pb.Variant]:
    return [
        pb.Variant(
            model=made.model,
            graph=made.graph,
            source=_SOURCES[made.source],
            build_ms=made.build_seconds * 1e3,
            load_ms=made.load_seconds * 1e3,
        )
        for made in held.made
    ]


def _timings(milliseconds: dict[str, float], moments: _Moments) -> pb.Timings:
    """Of a call that is over."""
    return pb.Timings(
        queue_ms=(moments.preparing - moments.begin) * 1e3,
        adapters_ms=(moments.drawing - moments.preparing) * 1e3,
        conditioning_ms=milliseconds["conditioning"],
        denoising_ms=milliseconds["denoising"],
        decoding_ms=milliseconds["decoding"],
        encoding_ms=milliseconds["encoding"],
        total_ms=(time.perf_counter() - moments.begin) * 1e3,
    )
