"""The options of `mediagen` that put assets on top of an engine, against a service that only listens and tells."""

import io
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from mediagen import command
from mediagen.v1 import image_pb2 as pb
from mediagen.v1 import image_pb2_grpc
from rich.console import Console
from typer.testing import CliRunner, Result

UNET, TEXT, DECODER = "sd15_unet--0123456789abcdef", "sd15_text_encoder--0123456789abcdef", "sd15_vae_decoder--02"


class Listening(image_pb2_grpc.ImageServiceServicer):
    """Keeps what it is asked for, and tells the events of a request whose networks come from everywhere."""

    def __init__(self) -> None:
        self.asked: list[pb.GenerateRequest] = []
        self.tenants: list[str] = []
        self.variants: list[pb.Variant] = []
        self.prepare: Callable[[], object] = bool

    def GenerateStream(
        self, request: pb.GenerateStreamRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GenerateStreamResponse]:
        self.asked.append(request.request)
        self.tenants += [value for key, value in context.invocation_metadata() if key == "x-mediagen-tenant"]
        yield pb.GenerateStreamResponse(accepted=pb.Accepted(effective=pb.EffectiveParameters(evaluations=1)))
        absent = [variant.model for variant in self.variants if variant.source != pb.VARIANT_SOURCE_MEMORY]
        if absent:
            yield pb.GenerateStreamResponse(preparing=pb.Preparing(models=absent))
            self.prepare()
        yield pb.GenerateStreamResponse(progress=pb.Progress(evaluation=1, evaluations=1))
        yield pb.GenerateStreamResponse(image=pb.Image(data=b"a picture", seed=7))
        timings = pb.Timings(adapters_ms=1500 if absent else 0, total_ms=2000)
        yield pb.GenerateStreamResponse(summary=pb.Summary(timings=timings, variants=self.variants))

    def Explain(self, request: pb.ExplainRequest, context: grpc.ServicerContext) -> pb.ExplainResponse:
        self.asked.append(request.request)
        self.tenants += [value for key, value in context.invocation_metadata() if key == "x-mediagen-tenant"]
        loras = dict(request.request.loras)
        told = pb.EffectiveParameters(engine="sd15", models=[UNET], loras=loras)
        return pb.ExplainResponse(effective=told, executions={UNET: 30}, estimated_ms=1000)


@pytest.fixture
def service() -> Listening:
    return Listening()


@pytest.fixture
def mediagen(service: Listening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    monkeypatch.chdir(tmp_path)
    server = grpc.server(ThreadPoolExecutor(2))
    image_pb2_grpc.add_ImageServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()

    def run(name: str, *arguments: str) -> Result:
        address = ("--address", f"127.0.0.1:{port}")
        return CliRunner().invoke(command.app, [name, "a man luis", *arguments, *address])

    yield run
    server.stop(None).wait()


def test_every_option_asks_for_its_field(mediagen, service: Listening, tmp_path: Path) -> None:
    for name in ("map", "look", "where", "front", "side", "cat"):
        (tmp_path / f"{name}.png").write_bytes(name.encode())
    result = mediagen(
        "generate",
        *("--checkpoint", "clay", "--vae", "warm", "--lora", "neon=0.5", "--lora", "toy", "--lora", "ink=-1.5"),
        *("--inversion", "a.cat=<cat>", "--inversion", "odd=a=b", "--transfer", "luis=front.png"),
        *("--transfer", "tom=cat.png", "--transfer", "luis=side.png", "--no-preprocess"),
        *("--controlnet", "canny", "--control-image", "map.png", "--control-scale", "0.7", "--control-stop", "0.6"),
        *("--ip-adapter", "ip", "--ip-image", "look.png", "--ip-mask", "where.png"),
        *("--ip-method", "STYLE", "--ip-scale", "0.25"),
    )
    assert result.exit_code == 0, result.stderr
    (asked,) = service.asked
    assert asked == pb.GenerateRequest(
        prompt="a man luis",
        engine="sd15",
        image_encoding=pb.IMAGE_ENCODING_PNG,
        checkpoint="clay",
        vae="warm",
        loras={"neon": 0.5, "toy": 1.0, "ink": -1.5},
        textual_inversions={"a.cat": "<cat>", "odd": "a=b"},
        controlnet="canny",
        controlnet_image=b"map",
        controlnet_preprocess=False,
        controlnet_conditioning_scale=0.7,
        controlnet_early_stop=0.6,
        ip_adapter="ip",
        ip_adapter_image=b"look",
        ip_adapter_mask_image=b"where",
        ip_adapter_method=pb.IP_ADAPTER_METHOD_STYLE,
        ip_adapter_scale=0.25,
        transfer_images={
            "luis": pb.TransferImages(images=[b"front", b"side"]),
            "tom": pb.TransferImages(images=[b"cat"]),
        },
    )


def test_without_options_nothing_is_put_on_top(mediagen, service: Listening) -> None:
    assert mediagen("generate").exit_code == 0
    assert service.asked == [
        pb.GenerateRequest(prompt="a man luis", engine="sd15", image_encoding=pb.IMAGE_ENCODING_PNG)
    ]


@pytest.mark.parametrize("name", ["generate", "explain"])
def test_a_tenant_asks_for_its_own_assets(
    mediagen, service: Listening, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("MEDIAGEN_TENANT", raising=False)
    mediagen(name)
    assert service.tenants == []
    mediagen(name, "--tenant", "acme")
    monkeypatch.setenv("MEDIAGEN_TENANT", "else")
    mediagen(name)
    assert service.tenants == ["acme", "else"]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("--lora", "=0.5"), "crayon=0.8"),
        (("--lora", "neon="), "crayon=0.8"),
        (("--lora", ""), "crayon=0.8"),
        (("--lora", "neon=strong"), "strong is no weight"),
        (("--lora", "neon=1=2"), "1=2 is no weight"),
        (("--lora", "neon", "--lora", "neon=0.5"), "neon is given twice"),
        (("--lora", "\udcff"), "not UTF-8"),
        (("--inversion", "cat"), "NAME=WORD"),
        (("--inversion", "cat="), "NAME=WORD"),
        (("--inversion", "=<cat>"), "NAME=WORD"),
        (("--inversion", "cat=a", "--inversion", "cat=b"), "cat is given twice"),
        (("--inversion", "cat=\udcff"), "not UTF-8"),
        (("--transfer", "luis"), "WORD=FILE"),
        (("--transfer", "=luis.png"), "WORD=FILE"),
        (("--transfer", "luis=none.png"), "none.png"),
        (("--transfer", "luis=."), "Is a directory"),
        (("--checkpoint", "\udcff"), "not UTF-8"),
        (("--ip-method", "colours"), "style"),
        (("--control-image", "none.png"), "--control-image"),
        (("--ip-image", "none.png"), "--ip-image"),
        (("--ip-mask", "none.png"), "--ip-mask"),
    ],
)
def test_a_wrong_option_says_what_is_right_and_asks_for_nothing(
    mediagen, service: Listening, arguments: tuple[str, ...], hint: str
) -> None:
    result = mediagen("generate", *arguments)
    assert result.exit_code == 2
    words = " ".join(result.stderr.replace("│", " ").split())  # it is told in a box, which breaks lines
    assert hint in words
    assert arguments[0] in words
    assert service.asked == []


def test_the_end_tells_where_each_network_came_from_and_how_long_it_took(mediagen, service: Listening) -> None:
    service.variants = [
        pb.Variant(model=UNET, graph="sd15_unet", source=pb.VARIANT_SOURCE_BUILT, build_ms=1200, load_ms=300),
        pb.Variant(model=TEXT, graph="sd15_text_encoder", source=pb.VARIANT_SOURCE_DISK, load_ms=80),
        pb.Variant(model=DECODER, graph="sd15_vae_decoder", source=pb.VARIANT_SOURCE_MEMORY),
    ]
    lines = mediagen("generate", "--lora", "neon").stderr.splitlines()
    assert lines[:4] == [
        "picture.png  seed 7",
        f"{UNET}  built in 1200 ms, loaded in 300 ms",
        f"{TEXT}  from disk, loaded in 80 ms",
        f"{DECODER}  in memory",
    ]
    assert "adapters 1500 ms" in lines[4]
    report = json.loads(mediagen("generate", "--lora", "neon", "--json").stdout)
    assert report["variants"][0] == {
        "model": UNET,
        "graph": "sd15_unet",
        "source": "built",
        "build_ms": 1200,
        "load_ms": 300,
    }
    assert [variant["source"] for variant in report["variants"]] == ["built", "disk", "memory"]
    assert report["milliseconds"]["adapters"] == 1500


def test_without_other_networks_nothing_is_told_of_them(mediagen) -> None:
    assert "adapters" not in mediagen("generate").stderr
    report = json.loads(mediagen("generate", "--json").stdout)
    assert (report["variants"], report["milliseconds"]["adapters"]) == ([], 0)


class Screen(io.StringIO):
    """Sets an event once it shows a text."""

    def __init__(self, awaited: str) -> None:
        super().__init__()
        self.awaited, self.shown = awaited, threading.Event()

    def write(self, text: str) -> int:
        if self.awaited in text:
            self.shown.set()
        return super().write(text)


def test_who_watches_sees_which_networks_are_waited_for(
    mediagen, service: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Screen(f"preparing {UNET} and 1 more")
    monkeypatch.setattr(command, "people", Console(file=screen, force_terminal=True, width=200, _environ={}))
    service.variants = [
        pb.Variant(model=UNET, source=pb.VARIANT_SOURCE_BUILT),
        pb.Variant(model=TEXT, source=pb.VARIANT_SOURCE_DISK),
    ]
    service.prepare = lambda: screen.shown.wait(20)
    assert mediagen("generate", "--lora", "neon").exit_code == 0
    assert screen.shown.is_set()


def test_explain_takes_them_too_and_leaves_out_what_is_not_asked_for(mediagen, service: Listening) -> None:
    result = mediagen("explain", "--lora", "neon=0.5", "--lora", "toy")
    assert result.exit_code == 0, result.stderr
    assert service.asked[0].loras == {"neon": 0.5, "toy": 1.0}
    rows = {
        row[1].strip(): row[2].strip()
        for row in (line.split("│") for line in result.stdout.splitlines())
        if len(row) > 2
    }
    assert sorted(rows["loras"].split(", ")) == ["neon=0.5", "toy=1.0"]
    assert rows[UNET] == "30 executions"
    assert not {"checkpoint", "vae", "textual_inversions", "transfer_images"} & rows.keys()
