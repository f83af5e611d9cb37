"""`python -m bench.variants`: what a set of weights costs at its first use, at its next, after a restart, and a step.

Draws with the demo assets on the default checkpoint; every set of them is used for the first time once. Pictures are
compared on the way: a set should draw what it drew before, and none what none did; a line tells where not.
"""

import argparse
import statistics
import tempfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
from mediagen.client import Client
from mediagen.v1 import image_pb2 as pb
from PIL import Image

from bench.caller import measured_request
from bench.gateway import gateway, load

_GOAL = 2.0  # seconds of a first use
_SETS: Mapping[str, pb.GenerateRequest] = {
    "LoRA": pb.GenerateRequest(loras={"blueprint-sd15": 0.8}),
    "two LoRAs": pb.GenerateRequest(loras={"blueprint-sd15": 0.4, "blueprint-kohya-sd15": 0.5}),
    "checkpoint": pb.GenerateRequest(checkpoint="papercut-sd15"),
    "VAE": pb.GenerateRequest(vae="print-vae-sd15"),
}
_SOURCES = {pb.VARIANT_SOURCE_BUILT: "built", pb.VARIANT_SOURCE_DISK: "disk", pb.VARIANT_SOURCE_MEMORY: "memory"}


class _Album:
    """What each set drew first."""

    def __init__(self) -> None:
        self._pictures: dict[str, bytes] = {}

    def draw(self, client: Client, name: str, steps: int) -> pb.GenerateResponse:
        """Tells by how many levels a picture differs from what it was before."""
        request = measured_request(steps)
        request.MergeFrom(_SETS.get(name, pb.GenerateRequest()))
        reply = client.generate(request)
        first = self._pictures.setdefault(f"{name} {steps}", reply.images[0].data)
        if reply.images[0].data != first:
            before, now = (np.asarray(Image.open(BytesIO(file)), np.int16) for file in (first, reply.images[0].data))
            levels = abs(before - now)
            print(f"{name} draws otherwise: {(levels > 0).mean():.2%} of the values, by {levels.max()} levels at most")
        return reply


def _told(name: str, reply: pb.GenerateResponse) -> None:
    sources = ", ".join(sorted({_SOURCES[variant.source] for variant in reply.variants}))
    build = max(variant.build_ms for variant in reply.variants) / 1e3
    loading = max(variant.load_ms for variant in reply.variants) / 1e3
    seconds = reply.timings.adapters_ms / 1e3
    verdict = f"{'met' if seconds < _GOAL else 'MISSED'}" if sources != "memory" else ""
    columns = (name, len(reply.variants), sources, f"{build:.2f}", f"{loading:.2f}", f"{seconds:.2f}", verdict)
    print(f"| {' | '.join(map(str, columns))} |", flush=True)


def _steps(client: Client, album: _Album, steps: int, repeats: int) -> None:
    """In turns, so that what else the machine does falls on both."""
    taken: dict[str, list[float]] = {"none": [], "LoRA": []}
    for _ in range(repeats):
        for name, found in taken.items():
            found.append(album.draw(client, name, steps).timings.denoising_ms / steps)
    for name, found in taken.items():
        print(f"a step with {name}: {statistics.median(found):.1f} ms, the least {min(found):.1f}")


def main() -> None:
    """One table and two lines."""
    parser = argparse.ArgumentParser(prog="python -m bench.variants", description="What a set of weights costs.")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    album = _Album()
    with tempfile.TemporaryDirectory() as folder:
        settings = {"MEDIAGEN_CACHE": str(Path(folder, "cache")), "MEDIAGEN_ASSETS": str(Path(folder, "assets"))}
        print(load())
        print(f"| set | networks | from | slowest build s | slowest load s | together s | goal {_GOAL:.0f} |")
        print("|---" * 7 + "|")
        with gateway(settings) as running, Client(running.address) as client:
            album.draw(client, "none", 1)  # loads what no set has
            for name in _SETS:
                for _ in range(2):
                    _told(name, album.draw(client, name, 1))
            album.draw(client, "none", 1)
            _steps(client, album, arguments.steps, arguments.repeats)
        with gateway(settings) as running, Client(running.address) as client:
            album.draw(client, "none", 1)
            for name in _SETS:
                _told(f"{name}, after a restart", album.draw(client, name, 1))
        print(load())


if __name__ == "__main__":
    main()
