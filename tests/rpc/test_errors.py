"""Every fault has its code, its reason and what a caller can do about it."""

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from server.admission import Overloaded
from server.assets import faults as assets
from server.builder.faults import BuilderAway, BuildFailed, NoDisk, PartMissing, PartUnfit, TooManyAtOnce
from server.engines.port import (
    EngineFault,
    EngineInputError,
    EngineNoRoom,
    EngineOverloaded,
    EngineTimeout,
    EngineUnavailable,
    EngineUnfit,
)
from server.rpc.errors import ASSET_FAULTS, NotBuilt, fault_of, trailers
from server.violations import InvalidRequest, Violation

Code = grpc.StatusCode


def retry(nanoseconds: int) -> Message:
    """How long to wait."""
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromNanoseconds(nanoseconds)
    return info


def bad_request(**violations: str) -> Message:
    """What to change."""
    fields = error_details_pb2.BadRequest.FieldViolation
    return error_details_pb2.BadRequest(
        field_violations=[fields(field=field, description=text) for field, text in violations.items()]
    )


INVALID = InvalidRequest((Violation("steps", "0 is not in 1..200"), Violation("prompt", "empty")))
TOLD = [
    (INVALID, Code.INVALID_ARGUMENT, "INVALID_REQUEST", bad_request(steps="0 is not in 1..200", prompt="empty")),
    (Overloaded(3, 2.5), Code.RESOURCE_EXHAUSTED, "OVERLOADED", retry(2_500_000_000)),
    (EngineOverloaded("full"), Code.RESOURCE_EXHAUSTED, "ENGINE_OVERLOADED", retry(1_000_000_000)),
    (EngineUnavailable("gone"), Code.UNAVAILABLE, "ENGINE_UNAVAILABLE", retry(2_000_000_000)),
    (EngineUnavailable("broken", 15.0), Code.UNAVAILABLE, "ENGINE_UNAVAILABLE", retry(15_000_000_000)),
    (EngineNoRoom("too large", 60.0), Code.RESOURCE_EXHAUSTED, "ENGINE_MEMORY", retry(60_000_000_000)),
    (EngineTimeout("late"), Code.DEADLINE_EXCEEDED, "ENGINE_TIMEOUT", None),
    (TimeoutError(), Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", None),
    (PartMissing("deleted"), Code.NOT_FOUND, "ASSET_GONE", None),
    (PartUnfit("of another family"), Code.INVALID_ARGUMENT, "ASSET_UNFIT", None),
    (EngineUnfit("not finite"), Code.INVALID_ARGUMENT, "ASSET_UNFIT", None),
    (NoDisk("full"), Code.RESOURCE_EXHAUSTED, "VARIANT_DISK", retry(60_000_000_000)),
    (TooManyAtOnce("64"), Code.RESOURCE_EXHAUSTED, "TOO_MANY_VARIANTS", retry(10_000_000_000)),
    (BuilderAway("killed"), Code.UNAVAILABLE, "BUILDER_UNAVAILABLE", retry(2_000_000_000)),
    (BuildFailed("read-only"), Code.INTERNAL, "BUILD_FAILED", None),
    (NotBuilt("later"), Code.UNIMPLEMENTED, "NOT_BUILT", None),
]


@pytest.mark.parametrize(("error", "code", "reason", "detail"), TOLD, ids=lambda value: type(value).__name__)
def test_a_fault_is_told_by_code_reason_and_detail(
    error: Exception, code: Code, reason: str, detail: Message | None
) -> None:
    fault = fault_of(error)
    assert fault is not None
    assert (fault.code, fault.reason) == (code, reason)
    assert fault.message == (str(error) or "the call's deadline has passed")
    status = status_pb2.Status.FromString(dict(trailers(fault))["grpc-status-details-bin"])
    assert (status.code, status.message) == (code.value[0], fault.message)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == (reason, "mediagen")
    assert len(status.details) == (1 if detail is None else 2)
    if detail is not None:
        told = type(detail)()
        assert status.details[1].Unpack(told)
        assert told == detail


@pytest.mark.parametrize("bug", [EngineFault("boom"), EngineInputError("x is missing"), KeyError("x"), ValueError("x")])
def test_what_no_caller_can_help_is_a_bug(bug: Exception) -> None:
    assert fault_of(bug) is None


def test_every_fault_of_the_asset_library_is_in_the_table() -> None:
    named = {value for value in vars(assets).values() if isinstance(value, type)} - {assets.AssetFault}
    assert named == {value for value in named if issubclass(value, assets.AssetFault)} == ASSET_FAULTS.keys()
    reasons = [reason for _, _, reason in ASSET_FAULTS.values()]
    assert len(reasons) == len(set(reasons))


def test_who_meets_a_running_upload_is_told_when_to_retry() -> None:
    fault = fault_of(assets.UploadRunning("its bytes are being sent"))
    assert fault is not None
    assert (fault.code, fault.details) == (Code.ABORTED, (retry(1_000_000_000),))


def test_who_brings_one_upload_too_many_is_told_when_to_retry_and_who_fills_the_disk_is_not() -> None:
    crowded, full = fault_of(assets.TooManyUploads("16 are under way")), fault_of(assets.LibraryFull("no room"))
    assert crowded is not None
    assert full is not None
    assert (crowded.code, crowded.http, crowded.details) == (Code.RESOURCE_EXHAUSTED, 429, (retry(5_000_000_000),))
    assert (full.code, full.http, full.details) == (Code.RESOURCE_EXHAUSTED, 507, ())
