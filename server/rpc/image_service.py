"""ImageService: messages to plans, events to messages. The work itself is the pipeline's."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, nullcontext

from mediagen.v1 import image_pb2 as pb
from mediagen.v1 import image_pb2_grpc

from server.admission import Admission
from server.catalog import Catalog
from server.explain import Seconds, explain
from server.families.base import Run
from server.pipeline import Evaluated, Finished, Picture, generate
from server.plan import Plan
from server.prompt_filter import REFUSAL, PromptBlocked, PromptFilter
from server.request import NO_ASSETS, carries_pictures, nearest_supported
from server.request_adapters import Shelf
from server.rpc.effective import effective
from server.rpc.errors import NotBuilt
from server.rpc.interceptor import Context, request_id
from server.rpc.reader import Reader
from server.safety import NotChecked, Passed, Removed, Verdict
from server.violations import InvalidRequest, Violation

ROW = 32  # requests with pictures that are read or wait for it, whoever asks: half the default permits stay for others


class ImageService(image_pb2_grpc.ImageServiceServicer):
    """Who wants a picture now is admitted before the request is read; what is only checked, or drawn later, is read
    without a permit. `close` it at the end."""

    def __init__(
        self,
        catalog: Catalog,
        run: Run,
        admission: Admission,
        prompt_filter: PromptFilter,
        seconds: Seconds,
        shelf: Callable[[], Shelf] = lambda: NO_ASSETS,
    ) -> None:
        """`seconds` tells how long a network's calls take, `shelf` which assets the current call may use."""
        self._catalog = catalog
        self._reader = Reader(catalog, shelf)
        self._run = run
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
        drawing = time.perf_counter()
        pictures: list[Picture] = []
        milliseconds: dict[str, float] = {}
        async with aclosing(generate(what, self._run)) as events:
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
            timings=_timings(milliseconds, begin, drawing),
            notices=what.notices,
        )

    async def GenerateStream(
        self, request: pb.GenerateStreamRequest, context: Context
    ) -> AsyncIterator[pb.GenerateStreamResponse]:
        begin = time.perf_counter()
        with self._admission.permit():
            what = await self._stream_plan(request)
            del request  # see `generate`
            drawing = time.perf_counter()
            accepted = pb.Accepted(request_id=request_id.get(), effective=effective(what), notices=what.notices)
            yield pb.GenerateStreamResponse(accepted=accepted)
            async with aclosing(generate(what, self._run)) as events:
                async for event in events:
                    yield _stream_event(what, event, begin, drawing)

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


def _stream_event(
    what: Plan, event: Evaluated | Picture | Finished, begin: float, drawing: float
) -> pb.GenerateStreamResponse:
    match event:
        case Evaluated():
            progress = pb.Progress(index=event.index, evaluation=event.evaluation, evaluations=what.evaluations)
            return pb.GenerateStreamResponse(progress=progress)
        case Picture():
            return pb.GenerateStreamResponse(image=_image(what, event))
        case Finished():
            return pb.GenerateStreamResponse(summary=pb.Summary(timings=_timings(event.milliseconds, begin, drawing)))


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


def _timings(milliseconds: dict[str, float], begin: float, drawing: float) -> pb.Timings:
    """Of a call that came at `begin`, was read and let in by `drawing` (both by `perf_counter`), and is over."""
    return pb.Timings(
        queue_ms=(drawing - begin) * 1e3,
        conditioning_ms=milliseconds["conditioning"],
        denoising_ms=milliseconds["denoising"],
        decoding_ms=milliseconds["decoding"],
        encoding_ms=milliseconds["encoding"],
        total_ms=(time.perf_counter() - begin) * 1e3,
    )
