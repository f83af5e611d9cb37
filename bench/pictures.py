"""`python -m bench.pictures`: how long a warm picture of every engine takes, at its own default size."""

import argparse
import tempfile
import time
from pathlib import Path

from mediagen.client import Client
from mediagen.v1 import image_pb2 as pb

from bench.gateway import gateway, load

_GOALS = {"sd15": 5.0, "sdxl": 30.0}  # seconds for 20 steps, with SDXL's refiner
_PHASES = ("conditioning", "denoising", "decoding", "encoding")
_PROMPT = "a red house and a sailboat at sunset"


def _row(client: Client, engine: str, width: int, height: int, steps: int, repeats: int) -> str:
    request = pb.GenerateRequest(
        engine=engine, prompt=_PROMPT, steps=steps, seed=7, width=width, height=height,
        image_encoding=pb.IMAGE_ENCODING_PNG,
    )  # fmt: skip
    taken = []
    for _ in range(repeats + 1):  # the first loads the networks
        begin = time.perf_counter()
        timings = client.generate(request).timings
        taken.append((time.perf_counter() - begin, timings))
    first, (seconds, timings) = taken[0][0], min(taken[1:], key=lambda one: one[0])
    phases = " | ".join(f"{getattr(timings, f'{phase}_ms') / 1e3:.2f}" for phase in _PHASES)
    goal = _GOALS.get(engine)
    verdict = "" if goal is None else f"{goal:.0f}: {'met' if seconds < goal else 'MISSED'}"
    return f"| {engine} | {width}x{height} | {first:.1f} | {seconds:.2f} | {phases} | {verdict} |"


def main() -> None:
    """One table."""
    parser = argparse.ArgumentParser(prog="python -m bench.pictures", description="A warm picture of every engine.")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(load())
        print(
            f"{arguments.steps} steps, guidance 12, DDIM (SD3: Euler), seconds, the quickest of {arguments.repeats}:\n"
        )
        print(f"| engine | size | first | warm | {' | '.join(_PHASES)} | goal |")
        print("|---" * (5 + len(_PHASES)) + "|")
        with gateway({"MEDIAGEN_CACHE": str(Path(folder, "cache"))}) as running, Client(running.address) as client:
            for engine in client.engines():
                size = engine.default_size
                print(
                    _row(client, engine.name, size.width, size.height, arguments.steps, arguments.repeats), flush=True
                )


if __name__ == "__main__":
    main()
