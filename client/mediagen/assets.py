"""`mediagen assets`: list, upload, show and delete what a service keeps for its callers."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from mediagen.client import DEFAULT_ADDRESS, Client, MediagenError
from mediagen.sources import Source, source
from mediagen.terminal import Address, AsJson, Tenant, errors, people
from mediagen.v1 import asset_pb2 as pb

app = typer.Typer(no_args_is_help=True, help="What a service keeps for its callers: LoRAs, checkpoints and the like.")
TYPES = tuple(name.removeprefix("ASSET_TYPE_").lower() for name, number in pb.AssetType.items() if number)
ATTEMPTS = 6  # without a byte more
# A stream that broke, one that nobody listened to, one whose predecessor is not known to be gone.
_MAY_GO_ON = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, grpc.StatusCode.DEADLINE_EXCEEDED})
_COMING = frozenset({pb.ASSET_STATE_READY_TO_UPLOAD, pb.ASSET_STATE_UPLOADING, pb.ASSET_STATE_UPLOADED})

Named = Annotated[str, typer.Argument(help="its name, or its id", metavar="ASSET")]


@app.command("list")
def list_assets(
    type: Annotated[str | None, typer.Option(help=f"only one of {', '.join(TYPES)}")] = None,
    family: Annotated[str, typer.Option(help="only for this engine family, such as sdxl")] = "",
    prefix: Annotated[str, typer.Option(help="only names with this beginning")] = "",
    tenant: Tenant = None,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """What you may use, newest first."""
    request = pb.ListAssetsRequest(type=_type(type), family=family, name_prefix=prefix)
    with errors(), Client(address, tenant) as client:
        found = list(client.assets(request, timeout=60))
    if as_json:
        print(json.dumps([_as_dict(asset) for asset in found], ensure_ascii=False))  # noqa: T201
        return
    table = Table("name", "type", "engines", "size", "state", "whose")
    for asset in found:
        whose = ("yours, public" if asset.public else "yours") if asset.owned else "public"
        told = f"{_state(asset)}: {asset.reason}" if asset.reason else _state(asset)
        table.add_row(asset.name, _kind(asset), " ".join(asset.engines), _size(asset.size_bytes), told, whose)
    Console(markup=False, emoji=False, highlight=False).print(table)


@app.command()
def upload(
    path: Annotated[Path, typer.Argument(exists=True, help="a safetensors file, or a diffusers folder with such")],
    type: Annotated[str | None, typer.Option(help=f"one of {', '.join(TYPES)} (a folder: checkpoint)")] = None,
    name: Annotated[str | None, typer.Option(help="what it is to be called (default: the file's name)")] = None,
    public: Annotated[bool, typer.Option("--public", help="every tenant may use it")] = False,
    description: Annotated[str, typer.Option(help="what you want to say about it")] = "",
    preprocessor: Annotated[str, typer.Option(help="of a ControlNet: canny, depth ... (default: by its name)")] = "",
    tenant: Tenant = None,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Bring an asset; a broken upload goes on where it ended, also in the next call of this command."""
    with errors():
        what = source(path)
        if type is None and not what.packed:
            raise typer.BadParameter(f"say what it is: one of {', '.join(TYPES)}", param_hint="--type")
        described = pb.AssetDescription(
            name=what.name if name is None else name,
            type=_type("checkpoint" if type is None else type),
            size_bytes=what.size,
            public=public,
            description=description,
            preprocessor=preprocessor,
        )
        with Client(address, tenant) as client:
            asset = _with_a_bar(client, described, what)
    _tell(asset, as_json)


@app.command()
def show(asset: Named, tenant: Tenant = None, address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """One asset."""
    with errors(), Client(address, tenant) as client:
        found = client.asset(asset, timeout=60)
    _tell(found, as_json)


@app.command()
def delete(asset: Named, tenant: Tenant = None, address: Address = DEFAULT_ADDRESS) -> None:
    """Remove an asset of yours."""
    with errors(), Client(address, tenant) as client:
        client.delete_asset(asset, timeout=60)
    people.print(f"{asset} is gone", soft_wrap=True)


def bring(
    client: Client,
    described: pb.AssetDescription,
    what: Source,
    progress: Callable[[int], None],
    wait: Callable[[float], None] = time.sleep,
) -> pb.Asset:
    """Send a source, and go on by itself where a stream breaks; `progress` is told how many bytes are there.

    Raises `MediagenError`, also after as many attempts as make sense, and `OSError`.
    """
    left = ATTEMPTS
    reached = -1
    while True:
        there = _there(client, described)
        if there is not None and _is_it(there, described):
            return there  # its reply was lost
        offset = there.received_bytes if there is not None and there.sha256 == described.sha256 else 0
        left = ATTEMPTS if offset > reached else left - 1
        reached = max(reached, offset)
        described.offset = offset
        progress(offset)
        try:
            return client.upload(described, what.read(offset), progress)
        except MediagenError as error:
            crowded = error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and error.retry_seconds is not None
            if not (crowded or error.code in _MAY_GO_ON) or left <= 0:
                raise
            wait(min(2.0 ** (ATTEMPTS - left), 30.0) if error.retry_seconds is None else error.retry_seconds)


def _is_it(there: pb.Asset, described: pb.AssetDescription) -> bool:
    """Whether a ready asset is what is being brought: not only its bytes."""
    return (
        there.state == pb.ASSET_STATE_READY
        and described.preprocessor in ("", there.preprocessor)  # by default the service finds one
        and (there.sha256, there.type, there.public, there.description)
        == (described.sha256, described.type, described.public, described.description)
    )


def _there(client: Client, described: pb.AssetDescription) -> pb.Asset | None:
    """What the service has of it: an upload that has not ended, or all of it."""
    try:
        found = client.asset(described.name, timeout=60)
    except MediagenError as error:
        if error.code in (grpc.StatusCode.NOT_FOUND, *_MAY_GO_ON):  # the upload itself will tell
            return None
        raise
    return found if found.owned and found.state in (*_COMING, pb.ASSET_STATE_READY) else None


def _with_a_bar(client: Client, described: pb.AssetDescription, what: Source) -> pb.Asset:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=people, transient=True, disable=not people.is_interactive)
    with bar:
        hashing = bar.add_task("reading", total=what.size)
        described.sha256 = what.sha256(lambda more: bar.advance(hashing, more))
        bar.remove_task(hashing)
        sending = bar.add_task("sending", total=what.size)

        def sent(count: int) -> None:
            told = "looked at" if count == what.size else "sending"
            bar.update(sending, completed=count, description=told)

        return bring(client, described, what, sent)


def _type(name: str | None) -> str:
    """By its name in the API. None: any."""
    if name is None:
        return "ASSET_TYPE_UNSPECIFIED"
    if name.lower() not in TYPES:
        raise typer.BadParameter(f"{name!r} is none; allowed are {', '.join(TYPES)}", param_hint="--type")
    return f"ASSET_TYPE_{name.upper()}"


def _tell(asset: pb.Asset, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_as_dict(asset), ensure_ascii=False))  # noqa: T201
        return
    table = Table("", "", show_header=False)
    for key, value in _as_dict(asset).items():
        if value not in ("", [], False):
            table.add_row(key, ", ".join(value) if isinstance(value, list) else str(value))
    Console(markup=False, emoji=False, highlight=False).print(table)


def _as_dict(asset: pb.Asset) -> dict[str, Any]:
    """By the names of the API; a type and a state in one word, bytes as a number."""
    told: dict[str, Any] = MessageToDict(
        asset, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    numbers = {"size_bytes": asset.size_bytes, "received_bytes": asset.received_bytes}
    return {**told, "type": _kind(asset), "state": _state(asset), **numbers}


def _kind(asset: pb.Asset) -> str:
    return pb.AssetType.Name(asset.type).removeprefix("ASSET_TYPE_").lower()


def _state(asset: pb.Asset) -> str:
    return pb.AssetState.Name(asset.state).removeprefix("ASSET_STATE_").lower()


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
