"""`python -m bench.png`: our PNG encoder against Pillow's default, on pictures that the default checkpoint draws.

Time is the encoding thread's own (CPU time), the least of several runs: other programs change that little.
"""

import argparse
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from mediagen.client import Client
from mediagen.v1 import image_pb2 as pb
from PIL import Image

from bench.gateway import gateway, load
from server.engines.port import Array
from server.pictures import JPEG, PNG

FASTER, LARGER = 10.0, 1.2  # the goal: at least, at most
_RUNS = 7
_TEXT = '{"prompt": "as in a real file"}'
_PROMPTS = (
    "a red house and a sailboat at sunset",
    "a snowman and a blue house in the snow",
    "a red mushroom and a white flower in a field",
    "an orange cat on the left and a green tree on the right",
)


def drawn(steps: int, size: int) -> list[Array]:
    """One picture a prompt from a gateway of our own: height width 3, uint8."""
    with gateway({}) as running, Client(running.address) as client:
        return [
            _pixels(client.generate(_request(prompt, seed, steps, size)).images[0].data)
            for seed, prompt in enumerate(_PROMPTS)
        ]


def _request(prompt: str, seed: int, steps: int, size: int) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        engine="sd15",
        prompt=prompt,
        cfg_scale=5,
        steps=steps,
        seed=seed,
        width=size,
        height=size,
        sampler=pb.SAMPLER_DPM_PLUS_PLUS_2M_KARRAS,
        image_encoding=pb.IMAGE_ENCODING_PNG,
    )


def _pixels(file: bytes | Path) -> Array:
    return np.asarray(Image.open(BytesIO(file) if isinstance(file, bytes) else file).convert("RGB"))


def _pillow(pixels: Array, _: str) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _encoded(encode: Callable[[Array, str], bytes], pixels: Array) -> tuple[float, int]:
    """Milliseconds and bytes."""
    times = []
    for _ in range(_RUNS):
        begin = time.thread_time()
        data = encode(pixels, _TEXT)
        times.append(time.thread_time() - begin)
    return min(times) * 1e3, len(data)


def main() -> None:
    """One line a picture, then whether the goal is met."""
    parser = argparse.ArgumentParser(prog="python -m bench.png", description="PNG encoding against Pillow's default.")
    parser.add_argument("pictures", type=Path, nargs="*", help="picture files instead of new ones")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--size", type=int, default=512, help="of a side, in pixels")
    arguments = parser.parse_args()
    pictures = [_pixels(path) for path in arguments.pictures] or drawn(arguments.steps, arguments.size)
    print(f"{load()}\n{'':12}{'Pillow':>9}{'ours':>9}{'faster':>9}{'bytes':>9}{'JPEG':>9}")
    totals = np.zeros(4)
    for pixels in pictures:
        (slow, small), (quick, large), (jpeg, _) = (_encoded(e, pixels) for e in (_pillow, PNG.encode, JPEG.encode))
        totals += slow, quick, small, large
        shape = f"{pixels.shape[1]}x{pixels.shape[0]}"
        print(f"{shape:12}{slow:6.1f} ms{quick:6.2f} ms{slow / quick:8.1f}x{large / small:8.3f}x{jpeg:6.2f} ms")
    slow, quick, small, large = totals
    met = slow / quick >= FASTER and large / small <= LARGER
    print(f"together {slow / quick:.1f} times as fast at {large / small:.3f} times the bytes; ", end="")
    print(f"goal {FASTER:.0f} and {LARGER}: {'met' if met else 'missed'}")


if __name__ == "__main__":
    main()
