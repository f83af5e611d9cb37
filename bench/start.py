"""`python -m bench.start`: how soon a gateway serves and draws, what memory it holds, how long a warm picture takes.

Networks are loaded at their first use: the time to the first picture has what the start no longer has.
"""

import argparse
import tempfile
import time
from pathlib import Path

from mediagen.client import Client

from bench.caller import measured_request
from bench.gateway import Gateway, gateway, load, maps, resident_mib

_MEMORY_MIB = 250 * 1e6 / 2**20  # the goal is in MB
_START, _PICTURE = 10.0, 5.0  # seconds; a start is over when the networks are loaded as well


def _verdict(met: bool) -> str:
    return "met" if met else "MISSED"


def _start(running: Gateway, name: str) -> None:
    """Until SERVING, and until the networks are loaded: a picture of one step less what it takes the second time."""
    request = measured_request(1)
    with Client(running.address) as client:
        first, second = (client.generate(request).timings.total_ms / 1e3 for _ in range(2))
    loaded = running.start_seconds + max(0.0, first - second)
    print(
        f"start with a {name} cache: serving after {running.start_seconds:.1f} s, first picture {first:.1f} s later, ",
        end="",
    )
    print(f"again {second:.1f} s; all loaded after {loaded:.1f} s (goal {_START:.0f}: {_verdict(loaded < _START)})")


def _report(running: Gateway, steps: int, repeats: int) -> None:
    request = measured_request(steps)
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
            print(load())
            with gateway(cache) as running:
                if name == "warm":
                    print(f"memory at SERVING: {resident_mib(running.pid):.0f} MiB")
                _start(running, name)
                if name == "warm":
                    _report(running, arguments.steps, arguments.repeats)


if __name__ == "__main__":
    main()
