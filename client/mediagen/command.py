"""The `mediagen` command: generate, explain, engines, styles, assets, serve."""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mediagen import assets, variants
from mediagen.client import DEFAULT_ADDRESS, Client
from mediagen.local_service import local_service, require_service
from mediagen.options import asking
from mediagen.terminal import Address, AsJson, Tenant, errors, people
from mediagen.v1 import image_pb2 as pb
from mediagen.v1.engine_pb2 import EngineState

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(assets.app, name="assets")
_SUFFIXES = {".png": pb.IMAGE_ENCODING_PNG, ".jpg": pb.IMAGE_ENCODING_JPEG, ".jpeg": pb.IMAGE_ENCODING_JPEG}
_PHASES = ("queue", "adapters", "conditioning", "denoising", "decoding", "encoding", "total")


@app.command()
@asking
def generate(
    request: pb.GenerateRequest,
    output: Annotated[Path, typer.Option("--output", "-o", help="file to write, .png or .jpg")] = Path("picture.png"),
    timeout: Annotated[float | None, typer.Option(help="seconds for the whole call")] = None,
    tenant: Tenant = None,
    address: Address = DEFAULT_ADDRESS,
    start_service: Annotated[bool, typer.Option(help="start a service for this call and stop it afterwards")] = False,
    as_json: AsJson = False,
) -> None:
    """Draw pictures. Several get their number in the file name: picture-0.png, picture-1.png."""
    if output.suffix.lower() not in _SUFFIXES:
        raise typer.BadParameter(f"{output} must end in {', '.join(_SUFFIXES)}", param_hint="--output")
    request.image_encoding = _SUFFIXES[output.suffix.lower()]
    with errors(), _service(address) if start_service else nullcontext(), Client(address, tenant) as client:
        report = _draw(client, request, output, timeout)
    if as_json:
        print(json.dumps(report, ensure_ascii=False))  # noqa: T201
        return
    for notice in report["notices"]:
        people.print(Text.assemble(("note:", "yellow"), f" {notice}"), soft_wrap=True)
    for image in report["images"]:
        where = "removed by the safety stage" if image["file"] is None else image["file"]
        people.print(f"{where}  seed {image['seed']}", soft_wrap=True)
    for variant in report["variants"]:
        people.print(f"{variant['model']}  {variants.origin(variant)}", soft_wrap=True)
    milliseconds = report["milliseconds"]
    phases = [phase for phase in _PHASES if phase != "adapters" or report["variants"]]
    people.print("  ".join(f"{phase} {milliseconds[phase]:.0f} ms" for phase in phases), style="dim", soft_wrap=True)


@app.command()
@asking
def explain(
    request: pb.GenerateRequest, tenant: Tenant = None, address: Address = DEFAULT_ADDRESS, as_json: AsJson = False
) -> None:
    """Tell what a request would run and how long it would take, or what is wrong with it; nothing is drawn."""
    with errors(), Client(address, tenant) as client:
        reply = client.explain(request, timeout=60)
    if as_json:
        print(json.dumps(_as_dict(reply), ensure_ascii=False))  # noqa: T201
    else:
        _tell(reply)
    if reply.violations:
        raise typer.Exit(1)


@app.command()
def engines(address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """List what the service can draw with."""
    with errors(), Client(address) as client:
        found = client.engines(timeout=10)
    if as_json:
        print(json.dumps([MessageToDict(engine, preserving_proto_field_name=True) for engine in found]))  # noqa: T201
        return
    table = Table("engine", "state", "sizes (default first)", "samplers", "what it is")
    for engine in found:
        default = f"{engine.default_size.width}x{engine.default_size.height}"
        others = [f"{size.width}x{size.height}" for size in engine.sizes]
        table.add_row(
            engine.name,
            EngineState.Name(engine.state).removeprefix("ENGINE_STATE_").lower(),
            " ".join(dict.fromkeys([default, *others])),
            " ".join(pb.Sampler.Name(sampler).removeprefix("SAMPLER_") for sampler in engine.samplers),
            engine.title,
        )
    Console(markup=False, emoji=False).print(table)


@app.command()
def styles(address: Address = DEFAULT_ADDRESS) -> None:
    """List the names that --style takes, a line each."""
    with errors(), Client(address) as client:
        found = client.engines(timeout=10)
    for name in dict.fromkeys(style for engine in found for style in engine.style_presets):
        print(name)  # noqa: T201


@app.command()
def serve() -> None:
    """Run the service until Ctrl-C. Settings come from MEDIAGEN_* variables."""
    with errors():
        require_service()
    os.execv(sys.executable, [sys.executable, "-m", "server"])


def _tell(reply: pb.ExplainResponse) -> None:
    """An explanation in a table: the parameters, the networks with their executions, the time."""
    for violation in reply.violations:
        people.print(Text.assemble((violation.field, "red"), f": {violation.description}"), soft_wrap=True)
    if reply.violations:
        return
    table = Table("", "", show_header=False)
    for name, value in _as_dict(reply.effective).items():
        if name != "models" and (value or not isinstance(value, str | dict)):
            table.add_row(name, _told(value))
    table.add_section()
    for model in reply.effective.models:
        count = reply.executions[model]
        table.add_row(model, f"{count} execution{'' if count == 1 else 's'}")
    table.add_section()
    waiting = f"not known before {', '.join(reply.unmeasured)} has run once"
    table.add_row("time", f"{reply.estimated_ms / 1e3:.1f} s" if reply.HasField("estimated_ms") else waiting)
    Console(markup=False, emoji=False, highlight=False).print(table)
    for notice in reply.notices:
        people.print(Text.assemble(("note:", "yellow"), f" {notice}"), soft_wrap=True)


def _draw(client: Client, request: pb.GenerateRequest, output: Path, timeout: float | None) -> dict[str, Any]:
    """Run the request with a progress bar and write its files; returns what to tell."""
    begin = time.perf_counter()
    report: dict[str, Any] = {"images": [], "notices": [], "variants": [], "milliseconds": {}}
    count = request.num_images if request.HasField("num_images") else 1
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    # A file or a pipe gets no bar: Progress would end it with an empty line.
    with Progress(*columns, console=people, transient=True, disable=not people.is_interactive) as progress:
        task = progress.add_task("waiting", total=None)
        done = 0
        for response in client.stream(request, timeout):
            match response.WhichOneof("event"):
                case "accepted":
                    total = response.accepted.effective.evaluations * count
                    progress.update(task, description="denoising", total=total)
                    report["request_id"] = response.accepted.request_id
                    report["notices"] = list(response.accepted.notices)
                    report["effective"] = _as_dict(response.accepted.effective)
                case "preparing":
                    progress.update(task, description=variants.preparing(response.preparing.models))
                case "progress":
                    done += 1
                    progress.update(task, description="denoising", completed=done)
                case "image":
                    image = response.image
                    file = (
                        None if image.safety_check == pb.SAFETY_CHECK_REMOVED else _numbered(output, count, image.index)
                    )
                    if file is not None:
                        file.parent.mkdir(parents=True, exist_ok=True)
                        file.write_bytes(image.data)
                    place = None if file is None else str(file)
                    report["images"].append({"file": place, "index": image.index, "seed": image.seed})
                case "summary":
                    timings = response.summary.timings
                    report["milliseconds"] = {phase: round(getattr(timings, f"{phase}_ms"), 1) for phase in _PHASES}
                    report["variants"] = [variants.as_dict(variant) for variant in response.summary.variants]
    report["milliseconds"]["call"] = round((time.perf_counter() - begin) * 1e3, 1)
    report["images"].sort(key=lambda image: image["index"])
    return report


def _told(value: object) -> str:
    """A value of the API in a table's cell."""
    match value:
        case list():
            return ", ".join(map(str, value))
        case dict():
            return ", ".join(f"{key}={each}" for key, each in value.items())
    return str(value)


def _numbered(output: Path, count: int, index: int) -> Path:
    return output if count == 1 else output.with_stem(f"{output.stem}-{index}")


def _as_dict(message: Message) -> dict[str, Any]:
    """By the names of the API, zeros and empty lists included."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


@contextmanager
def _service(address: str) -> Iterator[None]:
    with ExitStack() as stack:
        with people.status(Text(f"starting a service on {address}")):
            stack.enter_context(local_service(address))
        yield


def main() -> None:
    """The entry point."""
    app()


if __name__ == "__main__":
    main()
