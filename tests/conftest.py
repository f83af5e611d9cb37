"""What several test folders need: the default engines, real and in a test's hand; a request; a real service."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import grpc
import numpy as np
import pytest
from engines.fake import FakeEngines
from grpc_health.v1 import health_pb2, health_pb2_grpc
from mediagen.v1 import image_pb2 as pb

from server.catalog import Catalog, read_catalog
from server.engines.port import Spec
from server.families.sdxl_networks import SdxlCard
from server.levels import Scheduler
from server.scheduler import StepScheduler

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 90  # of a service on a busy machine that compiles its networks for the first time
HANG_SECONDS = 20  # after which something that ought to happen in milliseconds is taken for hanging


@pytest.fixture(scope="session")
def repository() -> Path:
    """The model repository of the default checkpoint."""
    return ROOT / "model_repository"


@pytest.fixture(scope="session")
def catalog(repository: Path) -> Catalog:
    """The default engines."""
    return read_catalog(repository)


@pytest.fixture(scope="session")
def sdxl_catalog(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """SDXL with its refiner and SSD-1B without one, as data: cards and tokenizers, no networks. The second tokenizers
    pad with another token than the first, as the published ones do."""
    folder = tmp_path_factory.mktemp("sdxl")
    tokenizer = json.loads((repository / "sd15_text_encoder" / "tokenizer.json").read_text())
    padding = tokenizer["padding"] | {"pad_id": 0, "pad_token": "!"}
    scheduler = Scheduler(1000, 0.00085, 0.012, "scaled_linear", "epsilon", 1, False, "leading")
    for name, refiner in (("sdxl", True), ("ssd", False)):
        card = SdxlCard(
            name=name,
            family="sdxl",
            title=name,
            source="nowhere",
            latent_channels=4,
            pixels_per_latent=8,
            scheduler=scheduler,
            inpainting=False,
            safety_checker=False,
            control=False,
            image_side=0,
            image_width=0,
            vision_width=0,
            image_patches=0,
            ip_blocks=(),
            ip_plus=False,
            text_width=6,
            text_2_width=10,
            pooled_width=12,
            text_layers=4,
            zeros_for_no_negative=True,
            refiner=refiner,
            transfer_side=0,
            transfer_lora="",
        )
        folder.joinpath(f"{name}.json").write_text(json.dumps(asdict(card)))
        for engine, content in (("text_encoder", tokenizer), ("text_encoder_2", tokenizer | {"padding": padding})):
            path = folder / f"{name}_{engine}" / "tokenizer.json"
            path.parent.mkdir()
            path.write_text(json.dumps(content))
    return read_catalog(folder)


@pytest.fixture
def request_message() -> pb.GenerateRequest:
    """The smallest request that is served."""
    return pb.GenerateRequest(engine="sd15", prompt="a red house")


@pytest.fixture
async def fake_engines(catalog: Catalog) -> FakeEngines:
    """The default engines, loaded, with zeros for an answer."""
    card = catalog["sd15"].card
    text_encoder, image_encoder, vae_encoder, unet, vae_decoder = catalog["sd15"].specs

    def pixels(latents: np.ndarray) -> np.ndarray:
        rows, _, height, width = latents.shape
        return np.zeros((rows, height * card.pixels_per_latent, width * card.pixels_per_latent, 3), np.uint8)

    def posterior(pixels: np.ndarray) -> dict[str, np.ndarray]:
        rows, height, width, _ = pixels.shape
        mean = np.zeros(
            (rows, card.latent_channels, height // card.pixels_per_latent, width // card.pixels_per_latent), np.float32
        )
        return {"mean": mean, "std": mean}

    fake = FakeEngines(
        catalog["sd15"].specs,
        {
            text_encoder.name: lambda inputs: {
                "hidden_states": np.zeros((*inputs["input_ids"].shape, card.text_width), np.float32)
            },
            image_encoder.name: lambda inputs: {
                port.name: np.zeros((len(inputs["pixel_values"]), *port.shape[1:]), np.float32)
                for port in image_encoder.outputs
            },
            vae_encoder.name: lambda inputs: posterior(inputs["pixels"]),
            unet.name: lambda inputs: {"prediction": np.zeros_like(inputs["sample"])},
            vae_decoder.name: lambda inputs: {"pixels": pixels(inputs["latents"])},
        },
    )
    for spec in catalog["sd15"].specs:
        await fake.load(spec.name)
    return fake


async def hold_a_step(engines: FakeEngines, unet: Spec) -> None:
    """Returns when a denoising step is under way that does not end before `engines.go` is set."""
    async with asyncio.timeout(HANG_SECONDS):
        while not engines.calls or engines.calls[-1][0] != unet.name:
            engines.began.clear()
            await engines.began.wait()
        engines.go.clear()
        engines.began.clear()
        await engines.began.wait()


async def steps_after_release(engines: FakeEngines, scheduler: StepScheduler, unet: Spec) -> int:
    """How many steps begin once the held one may end, besides three of our own: whoever went on had a turn between."""
    begun = len(engines.calls)
    engines.go.set()
    channels, states = unet.inputs[0].shape[1], unet.inputs[2].shape[2]
    ours = {
        "sample": np.zeros((1, channels, 1, 1), np.float32),  # nobody else's size
        "timestep": np.zeros(1, np.float32),
        "encoder_hidden_states": np.zeros((1, 77, states), np.float32),
    }
    async with asyncio.timeout(HANG_SECONDS):
        for _ in range(3):
            await scheduler.run(unet, ours)
    assert len(engines.calls) >= begun + 3
    return len(engines.calls) - begun - 3


@dataclass(frozen=True)
class RunningService:
    """`python -m server` in a process of its own."""

    address: str
    http_address: str  # of the JSON routes
    process: subprocess.Popen[bytes]
    log: Path
    begun: float = field(default_factory=time.monotonic)  # it is one object a process, made at its start

    def wait_until_serving(self, seconds: float) -> None:
        """Ask for its health until it serves. Raises `AssertionError` with its log when it ends or stays away."""
        end = time.monotonic() + seconds
        with grpc.insecure_channel(self.address, options=(("grpc.max_reconnect_backoff_ms", 200),)) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            while time.monotonic() < end and self.process.poll() is None:
                with contextlib.suppress(grpc.RpcError):
                    reply = health.Check(health_pb2.HealthCheckRequest(), timeout=1)
                    if reply.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                time.sleep(0.1)  # a server that is not there yet has no event to wait for
        raise AssertionError(f"the service does not serve: {self.log.read_text()}")


def start_service(folder: Path, **settings: str) -> RunningService:
    """A service on a free port, once it serves. Its log and compiled networks are in `folder`."""
    with socket.socket() as probe, socket.socket() as http_probe:
        probe.bind(("127.0.0.1", 0))
        http_probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        http_address = f"127.0.0.1:{http_probe.getsockname()[1]}"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MEDIAGEN_")},
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'client'}",
        "MEDIAGEN_GRPC_ADDRESS": address,
        "MEDIAGEN_HTTP_ADDRESS": http_address,
        "MEDIAGEN_CACHE": str(folder / "cache"),
        "MEDIAGEN_ASSETS": str(folder / "assets"),
        **settings,
    }
    log = folder / "service.log"
    with log.open("ab") as output:
        process = subprocess.Popen([sys.executable, "-m", "server"], env=environment, cwd=folder, stderr=output)
    service = RunningService(address, http_address, process, log)
    service.wait_until_serving(START_SECONDS)
    return service


def stop_service(service: RunningService) -> int:
    """SIGTERM; returns the exit status."""
    service.process.send_signal(signal.SIGTERM)
    return service.process.wait(timeout=60)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """One service for all tests that leave it as it was."""
    running = start_service(tmp_path_factory.mktemp("service"))
    yield running
    stop_service(running)


@pytest.fixture(scope="session")
def service_address(service: RunningService) -> str:
    """host:port of the shared service."""
    return service.address
