"""`python -m bench.caller ADDRESS STEPS`: the client's side of bench.overhead, in a process of its own as callers are.

Each line on its input is a kind of call; its answer is one line of JSON with milliseconds.
"""

import json
import sys
import time

from mediagen.client import Client
from mediagen.v1 import image_pb2 as pb

UNARY = "Generate"
STREAM = "GenerateStream"


def measured_request(steps: int) -> pb.GenerateRequest:
    """The picture that every measurement of a whole call draws."""
    return pb.GenerateRequest(
        engine="sd15",
        prompt="a red house and a sailboat at sunset",
        steps=steps,
        seed=1,
        width=512,
        height=512,
        image_encoding=pb.IMAGE_ENCODING_PNG,
    )


def unary(client: Client, request: pb.GenerateRequest) -> pb.Timings:
    """The service's own timings."""
    return client.generate(request).timings


def stream(client: Client, request: pb.GenerateRequest) -> pb.Timings:
    """The same from the last event of a stream."""
    *_, last = client.stream(request)
    return last.summary.timings


_CALLS = {UNARY: unary, STREAM: stream}


def main() -> None:
    """Answer until the input ends."""
    address, steps = sys.argv[1], int(sys.argv[2])
    request = measured_request(steps)
    with Client(address) as client:
        for line in sys.stdin:
            begin = time.perf_counter()
            timings = _CALLS[line.strip()](client, request)
            wall = (time.perf_counter() - begin) * 1e3
            print(
                json.dumps({"wall": wall, **{field.name: value for field, value in timings.ListFields()}}), flush=True
            )


if __name__ == "__main__":
    main()
