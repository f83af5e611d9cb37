"""`python -m server.builder`: writes variants for one gateway, beside the Triton that loads them.

The gateway starts one itself (`client.py`) unless it is told where one runs.
"""

import argparse
import asyncio
import fcntl
import logging
import os
import signal
import sys
from pathlib import Path

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from mediagen.builder.v1 import builder_pb2_grpc

from server.builder.service import BuilderService, Volumes

log = logging.getLogger("server.builder")


def main() -> int:
    """The exit status: 0 after a stop that was asked for, 1 where it cannot work."""
    parser = argparse.ArgumentParser(prog="python -m server.builder", description=__doc__)
    parser.add_argument("--listen", required=True, help="unix:/path/to/socket, or host:port within a trusted network")
    parser.add_argument("--repository", required=True, type=Path, help="the model repository")
    parser.add_argument("--assets", required=True, type=Path, help="folder of the asset library")
    parser.add_argument(
        "--variants", required=True, type=Path, help="folder to write variants into, for this one alone"
    )
    parser.add_argument("--disk", required=True, type=int, help="bytes that all variants together may take")
    parser.add_argument("--until-stdin-ends", action="store_true", help="end with who holds the other end of stdin")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    given.variants.mkdir(parents=True, exist_ok=True)
    with (given.variants / ".lock").open("w") as lock:  # freed by the kernel, however this process ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.stderr.write(
                f"another builder writes into {given.variants}: end the service that it belongs to, or give this one a "
                "folder of its own by MEDIAGEN_VARIANTS\n"
            )
            return 1
        asyncio.run(_serve(given))
    return 0


async def _serve(given: argparse.Namespace) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if given.until_stdin_ends:
        loop.add_reader(sys.stdin.fileno(), os._exit, 0)  # nothing is ever sent: it is readable at its end
    service = BuilderService(Volumes(given.repository, given.assets, given.variants), given.disk)
    status = health.aio.HealthServicer()
    await status.set("", health_pb2.HealthCheckResponse.SERVING)
    server = grpc.aio.server()
    builder_pb2_grpc.add_BuilderServiceServicer_to_server(service, server)
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    mask = os.umask(0o077)  # a socket is for this user alone; variants are for whoever runs Triton, too
    server.add_insecure_port(given.listen)
    os.umask(mask)
    await server.start()
    log.info("builds variants into %s", given.variants)
    await stop.wait()
    service.close()
    await server.stop(None)
    os._exit(0)  # a build under way would be waited for; the next start removes what it leaves


if __name__ == "__main__":
    sys.exit(main())
