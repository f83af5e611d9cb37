"""The `mediagen` command: generate, explain, engines, serve."""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mediagen.client import DEFAULT_ADDRESS, Client, MediagenError
from mediagen.local_service import ServiceFailed, local_service, require_service
from mediagen.v1 import image_pb2 as pb
from mediagen.v1.engine_pb2 import EngineState

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
# Standard output is for programs. What is told may hold brackets and colons of a prompt: no markup is read from it.
people = Console(stderr=True, highlight=False, markup=False, emoji=False)
_SUFFIXES = {".png": pb.IMAGE_ENCODING_PNG, ".jpg": pb.IMAGE_ENCODING_JPEG, ".jpeg": pb.IMAGE_ENCODING_JPEG}
_SAMPLERS = tuple(name.removeprefix("SAMPLER_") for name, number in pb.Sampler.items() if number)
_PHASES = ("queue", "conditioning", "denoising", "decoding", "encoding", "total")

Address = Annotated[str, typer.Option(envvar="MEDIAGEN_GRPC_ADDRESS", help="host:port of the service")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object on standard output")]


def _request(
    prompt: Annotated[str, typer.Argument(help="what the picture shows")],
    engine: Annotated[str, typer.Option(help="engine name, see `mediagen engines`")] = "sd15",
    prompt_2: Annotated[str | None, typer.Option(help="SDXL: for its second text encoder (default: PROMPT)")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="what it must not show")] = None,
    negative_prompt_2: Annotated[
        str | None, typer.Option(help="SDXL: for its second text encoder (default: --negative-prompt)")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="denoising steps, 1 to 200 (default: 30)")] = None,
    cfg_scale: Annotated[float | None, typer.Option(help="guidance scale, above 0 to 50 (default: 12)")] = None,
    sampler: Annotated[str | None, typer.Option(help=f"one of {', '.join(_SAMPLERS)} (default: DDIM)")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT, see `mediagen engines` (default: its own)")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="0 to 4294967295, once for all or once a picture")] = None,
    high_noise_frac: Annotated[
        float | None, typer.Option(help="SDXL: share before the refiner's, 0 to 1 (default: 0.8)")
    ] = None,
    refiner: Annotated[
        bool | None,
        typer.Option("--refiner/--no-refiner", help="SDXL: use a refiner where there is one (default: yes)"),
    ] = None,
    num_images: Annotated[int | None, typer.Option("--num-images", "-n", help="pictures, 1 to 16 (default: 1)")] = None,
) -> pb.GenerateRequest:
    """What the options of a command ask for."""
    request = pb.GenerateRequest()
    _set(request, "engine", engine, "--engine")
    _set(request, "prompt", prompt, "PROMPT")
    if prompt_2 is not None:
        _set(request, "prompt_2", prompt_2, "--prompt-2")
    if negative_prompt is not None:
        _set(request, "negative_prompt", negative_prompt, "--negative-prompt")
    if negative_prompt_2 is not None:
        _set(request, "negative_prompt_2", negative_prompt_2, "--negative-prompt-2")
    if steps is not None:
        _set(request, "steps", steps, "--steps")
    if cfg_scale is not None:
        request.cfg_scale = cfg_scale
    if high_noise_frac is not None:
        request.high_noise_frac = high_noise_frac
    if refiner is not None:
        request.use_refiner = refiner
    if num_images is not None:
        _set(request, "num_images", num_images, "--num-images")
    if sampler is not None:
        request.sampler = _sampler(sampler)
    if size is not None:
        request.width, request.height = _size(size)
    if seed is not None and len(seed) == 1:
        _set(request, "seed", seed[0], "--seed")
    else:
        for value in seed or ():
            _set(request.seeds.add(), "value", value, "--seed")
    return request


def _asking(command: Callable[..., None]) -> Callable[..., None]:
    """`command`, whose first parameter is a request, with the options that make one in its place."""
    own = signature(command)
    options = signature(_request).parameters
    parameters = (*options.values(), *list(own.parameters.values())[1:])

    @wraps(command)
    def run(**given: Any) -> None:  # every option by its name, as typer reads them from the signature
        command(_request(**{name: given.pop(name) for name in options}), **given)

    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    vars(run)["__signature__"] = own.replace(parameters=parameters)
    return run


@app.command()
@_asking
def generate(
    request: pb.GenerateRequest,
    output: Annotated[Path, typer.Option("--output", "-o", help="file to write, .png or .jpg")] = Path("picture.png"),
    timeout: Annotated[float | None, typer.Option(help="seconds for the whole call")] = None,
    address: Address = DEFAULT_ADDRESS,
    start_service: Annotated[bool, typer.Option(help="start a service for this call and stop it afterwards")] = False,
    as_json: AsJson = False,
) -> None:
    """Draw pictures. Several get their number in the file name: picture-0.png, picture-1.png."""
    if output.suffix.lower() not in _SUFFIXES:
        raise typer.BadParameter(f"{output} must end in {', '.join(_SUFFIXES)}", param_hint="--output")
    request.image_encoding = _SUFFIXES[output.suffix.lower()]
    with _errors(), _service(address) if start_service else nullcontext(), Client(address) as client:
        report = _draw(client, request, output, timeout)
    if as_json:
        print(json.dumps(report, ensure_ascii=False))  # noqa: T201
        return
    for notice in report["notices"]:
        people.print(Text.assemble(("note:", "yellow"), f" {notice}"), soft_wrap=True)
    for image in report["images"]:
        where = "removed by the safety stage" if image["file"] is None else image["file"]
        people.print(f"{where}  seed {image['seed']}", soft_wrap=True)
    milliseconds = report["milliseconds"]
    people.print("  ".join(f"{phase} {milliseconds[phase]:.0f} ms" for phase in _PHASES), style="dim", soft_wrap=True)


@app.command()
@_asking
def explain(request: pb.GenerateRequest, address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """Tell what a request would run and how long it would take, or what is wrong with it; nothing is drawn."""
    with _errors(), Client(address) as client:
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
    with _errors(), Client(address) as client:
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
def serve() -> None:
    """Run the service until Ctrl-C. Settings come from MEDIAGEN_* variables."""
    with _errors():
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
        if name != "models":
            table.add_row(name, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
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
    report: dict[str, Any] = {"images": [], "notices": [], "milliseconds": {}}
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
                case "progress":
                    done += 1
                    progress.update(task, completed=done)
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
    report["milliseconds"]["call"] = round((time.perf_counter() - begin) * 1e3, 1)
    report["images"].sort(key=lambda image: image["index"])
    return report


def _numbered(output: Path, count: int, index: int) -> Path:
    return output if count == 1 else output.with_stem(f"{output.stem}-{index}")


def _as_dict(message: Message) -> dict[str, Any]:
    """By the names of the API, zeros and empty lists included."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def _sampler(name: str) -> pb.Sampler:
    if name.upper() not in _SAMPLERS:
        raise typer.BadParameter(f"{name} is none of {', '.join(_SAMPLERS)}", param_hint="--sampler")
    return cast(pb.Sampler, pb.Sampler.Value(f"SAMPLER_{name.upper()}"))  # the generated stub says int


def _size(text: str) -> tuple[int, int]:
    sides = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text.lower())
    if sides is None:
        raise typer.BadParameter(f"{text} must look like 512x512", param_hint="--size")
    return int(sides[1]), int(sides[2])


def _set(message: pb.GenerateRequest | pb.Seed, field: str, value: str | int, option: str) -> None:
    """Set a field. The service says what it allows; here fails only what a message cannot carry."""
    try:
        setattr(message, field, value)
    except UnicodeEncodeError as error:
        raise typer.BadParameter(f"{value!r} is not UTF-8 text", param_hint=option) from error
    except ValueError as error:
        reason = f"{value} is out of range; `mediagen generate --help` has the bounds"
        raise typer.BadParameter(reason, param_hint=option) from error


@contextmanager
def _service(address: str) -> Iterator[None]:
    with ExitStack() as stack:
        with people.status(Text(f"starting a service on {address}")):
            stack.enter_context(local_service(address))
        yield


@contextmanager
def _errors() -> Iterator[None]:
    """Failures as sentences, and exit status 1."""
    try:
        yield
    except (MediagenError, ServiceFailed, OSError) as error:
        violations = error.violations if isinstance(error, MediagenError) else ()
        for field, description in violations:
            people.print(Text.assemble((field, "red"), f": {description}"), soft_wrap=True)
        if not violations:
            code = f"{error.code.name}: " if isinstance(error, MediagenError) else ""
            people.print(Text.assemble((code, "red"), str(error)), soft_wrap=True)
        raise typer.Exit(1) from error


def main() -> None:
    """The entry point."""
    app()


if __name__ == "__main__":
    main()
