"""`python -m bench.start`: how soon a gateway serves, what memory it holds, how long a warm picture takes."""

import argparse
import tempfile
import time
from pathlib import Path

from mediagen.client import Client

from bench.caller import measured_request
from bench.gateway import Gateway, gateway, load, maps, resident_mib

_MEMORY_MIB = 250 * 1e6 / 2**20  # the goal is in MB
_START, _PICTURE = 10.0, 5.0  # seconds


def _verdict(met: bool) -> str:
    return "met" if met else "MISSED"


def _report(running: Gateway, steps: int, repeats: int) -> None:
    request = measured_request(steps)
    print(f"memory at SERVING: {resident_mib(running.pid):.0f} MiB")
    with Client(running.address) as client:
        client.generate(request)  # warms everything up
        taken = []
        for _ in range(repeats):
            begin = time.perf_counter()
            timings = client.generate(request).timings
            taken.append((time.perf_counter() - begin, timings))
    seconds, timings = min(taken, key=lambda one: one[0])
    print(f"512x512, {steps} steps, warm, the quickest of {repeats}: {seconds:.2f} s", end="")
    print(f" (goal {_PICTURE:.0f}: {_verdict(seconds < _PICTURE)})")
    for field, milliseconds in timings.ListFields():
        print(f"  {field.name:18}{milliseconds:10.1f}")
    memory = resident_mib(running.pid)
    print(f"memory at most: {memory:.0f} MiB (goal {_MEMORY_MIB:.0f}: {_verdict(memory < _MEMORY_MIB)})", end="")
    print(", " + ("with torch: MISSED" if maps(running.pid, "torch/") else "without torch"))


def main() -> None:
    """A cold start, then a warm one that draws."""
    parser = argparse.ArgumentParser(prog="python -m bench.start", description="Start, memory and a warm picture.")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache = {"MEDIAGEN_CACHE": str(Path(folder, "cache"))}
        for name in ("cold", "warm"):
            head = load()
            with gateway(cache) as running:
                seconds = running.start_seconds
                print(f"{head}\nstart with a {name} cache: {seconds:.1f} s", end="")
                print(f" (goal {_START:.0f}: {_verdict(seconds < _START)})")
                if name == "warm":
                    _report(running, arguments.steps, arguments.repeats)


if __name__ == "__main__":
    main()
