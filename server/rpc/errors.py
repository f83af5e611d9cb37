"""One table of faults to status codes, for both interfaces; and how gRPC's trailers carry a fault.

Details follow google.rpc: BadRequest for what the caller must change, RetryInfo where the same call may work later,
ErrorInfo with a stable reason for programs. A fault that is not in the table is INTERNAL, and a bug.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from server.admission import Overloaded
from server.assets import faults as assets
from server.builder import faults as builder
from server.engines.port import EngineNoRoom, EngineOverloaded, EngineTimeout, EngineUnavailable, EngineUnfit
from server.prompt_filter import REFUSAL, PromptBlocked
from server.rpc.shortening import cut, fitted, sent_bytes, summed_up
from server.violations import InvalidRequest

DOMAIN = "mediagen"
# Trailers are metadata, of which clients take 8 KiB in all. The message is there twice, since the details repeat it,
# and the details are in base64: 600 + (600 + 3600 + 200) * 4 / 3 bytes, beside a request id of up to 128.
MESSAGE_BYTES = 600  # as sent
VIOLATIONS_BYTES = 3600


_Told = tuple[grpc.StatusCode, int, str]
ASSET_FAULTS: Mapping[type[assets.AssetFault], _Told] = {
    assets.NoSuchAsset: (grpc.StatusCode.NOT_FOUND, 404, "NO_SUCH_ASSET"),
    assets.NameTaken: (grpc.StatusCode.ALREADY_EXISTS, 409, "NAME_TAKEN"),
    assets.NotOwner: (grpc.StatusCode.PERMISSION_DENIED, 403, "NOT_OWNER"),
    assets.LibraryFull: (grpc.StatusCode.RESOURCE_EXHAUSTED, 507, "LIBRARY_FULL"),
    assets.UploadRunning: (grpc.StatusCode.ABORTED, 409, "UPLOAD_RUNNING"),
    assets.TooManyUploads: (grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "TOO_MANY_UPLOADS"),
    assets.NotUploading: (grpc.StatusCode.FAILED_PRECONDITION, 409, "NOT_UPLOADING"),
    assets.WrongOffset: (grpc.StatusCode.OUT_OF_RANGE, 416, "WRONG_OFFSET"),
    assets.Incomplete: (grpc.StatusCode.FAILED_PRECONDITION, 409, "INCOMPLETE"),
    assets.Stalled: (grpc.StatusCode.DEADLINE_EXCEEDED, 408, "STALLED"),
    assets.BadUpload: (grpc.StatusCode.INVALID_ARGUMENT, 400, "BAD_UPLOAD"),
    assets.Rejected: (grpc.StatusCode.INVALID_ARGUMENT, 400, "ASSET_REJECTED"),
}


_ASSET_SECONDS: Mapping[type[assets.AssetFault], float] = {assets.UploadRunning: 1.0, assets.TooManyUploads: 5.0}


class NotBuilt(Exception):
    """The method is part of the API and this version does not do it yet."""


@dataclass(frozen=True)
class Fault:
    """How a fault is told to a caller."""

    code: grpc.StatusCode
    http: int  # status
    reason: str  # stable, for programs
    message: str  # for people
    details: tuple[Message, ...] = ()


def fault_of(error: Exception) -> Fault | None:
    """The fault an exception stands for; None for a bug of ours. Its message is short, its details are whole."""
    fault = _fault_of(error)
    return None if fault is None else replace(fault, message=cut(fault.message, MESSAGE_BYTES, sent_bytes))


def _fault_of(error: Exception) -> Fault | None:
    match error:
        case InvalidRequest():
            violations = [
                error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description)
                for v in error.violations
            ]
            bad_request = error_details_pb2.BadRequest(field_violations=violations)
            message = summed_up([f"{v.field}: {v.description}" for v in error.violations], MESSAGE_BYTES)
            return Fault(grpc.StatusCode.INVALID_ARGUMENT, 422, "INVALID_REQUEST", message, (bad_request,))
        case PromptBlocked():
            refusals = [
                error_details_pb2.BadRequest.FieldViolation(field=field, description=REFUSAL) for field in error.fields
            ]
            bad_request = error_details_pb2.BadRequest(field_violations=refusals)
            return Fault(grpc.StatusCode.INVALID_ARGUMENT, 400, "PROMPT_BLOCKED", str(error), (bad_request,))
        case Overloaded():
            return Fault(
                grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "OVERLOADED", str(error), (_retry(error.retry_seconds),)
            )
        case EngineOverloaded():
            return Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "ENGINE_OVERLOADED", str(error), (_retry(1.0),))
        case EngineNoRoom():
            details = (_retry(error.retry_seconds),)
            return Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "ENGINE_MEMORY", str(error), details)
        case EngineUnavailable():
            details = (_retry(error.retry_seconds),)
            return Fault(grpc.StatusCode.UNAVAILABLE, 503, "ENGINE_UNAVAILABLE", str(error), details)
        case EngineTimeout():
            return Fault(grpc.StatusCode.DEADLINE_EXCEEDED, 504, "ENGINE_TIMEOUT", str(error))
        case TimeoutError():
            return Fault(grpc.StatusCode.DEADLINE_EXCEEDED, 504, "DEADLINE_EXCEEDED", "the call's deadline has passed")
        case builder.PartMissing():
            return Fault(grpc.StatusCode.NOT_FOUND, 404, "ASSET_GONE", str(error))
        case builder.PartUnfit() | EngineUnfit():
            return Fault(grpc.StatusCode.INVALID_ARGUMENT, 422, "ASSET_UNFIT", str(error))
        case builder.NoDisk():
            details = (_retry(error.retry_seconds),)
            return Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, 507, "VARIANT_DISK", str(error), details)
        case builder.TooManyAtOnce():
            details = (_retry(error.retry_seconds),)
            return Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "TOO_MANY_VARIANTS", str(error), details)
        case builder.BuilderAway():
            details = (_retry(error.retry_seconds),)
            return Fault(grpc.StatusCode.UNAVAILABLE, 503, "BUILDER_UNAVAILABLE", str(error), details)
        case builder.BuildFailed():
            return Fault(grpc.StatusCode.INTERNAL, 500, "BUILD_FAILED", str(error))
        case assets.AssetFault():
            code, http, reason = ASSET_FAULTS[type(error)]
            wait = _ASSET_SECONDS.get(type(error))
            later = () if wait is None else (_retry(wait),)
            return Fault(code, http, reason, str(error), later)
        case NotBuilt():
            return Fault(grpc.StatusCode.UNIMPLEMENTED, 501, "NOT_BUILT", str(error))
        case _:
            return None


def trailers(fault: Fault) -> Sequence[tuple[str, bytes]]:
    """The trailing metadata that carries a fault's details, less of them where there is too much to tell."""
    info = error_details_pb2.ErrorInfo(reason=fault.reason, domain=DOMAIN)
    status = status_pb2.Status(code=fault.code.value[0], message=fault.message)
    for detail in (info, *fault.details):
        whole = not isinstance(detail, error_details_pb2.BadRequest)
        status.details.add().Pack(detail if whole else fitted(detail, VIOLATIONS_BYTES))
    return (("grpc-status-details-bin", status.SerializeToString()),)


def _retry(seconds: float) -> Message:
    delay = Duration()
    delay.FromNanoseconds(int(seconds * 1e9))
    info: Message = error_details_pb2.RetryInfo(retry_delay=delay)
    return info
