"""`python -m server`: the service until SIGTERM or Ctrl-C. Settings come from the environment (server/settings.py)."""

import asyncio
import logging
import signal
import sys
from contextlib import suppress

from server.app import AddressTaken, service
from server.engines.port import EngineFault
from server.engines.wheel import TritonStartError
from server.settings import Settings, SettingsError, read

log = logging.getLogger("server")


def main() -> int:
    """The exit status: 0 after a stop that was asked for, 1 after a failed start."""
    try:
        settings = read()
        logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        asyncio.run(_run(settings))
    except (SettingsError, AddressTaken, TritonStartError, EngineFault, ValueError) as error:
        sys.stderr.write(f"mediagen cannot start: {error}\n")
        return 1
    return 0


async def _run(settings: Settings) -> None:
    """Until a signal: a start that is under way then is given up, a service that runs drains."""
    started, stop = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    serving = asyncio.create_task(_serve(settings, started, stop))
    asked = asyncio.create_task(stop.wait())
    await asyncio.wait((serving, asked), return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if not started.is_set():
        serving.cancel()
    with suppress(asyncio.CancelledError):
        await serving


async def _serve(settings: Settings, started: asyncio.Event, stop: asyncio.Event) -> None:
    async with service(settings) as ports:
        started.set()
        log.info("mediagen listens on %s (port %d)", settings.grpc_address, ports.grpc)
        if ports.http is not None:
            log.info("JSON routes on http://%s (port %d), tried at /docs", settings.http_address, ports.http)
        await stop.wait()


if __name__ == "__main__":
    sys.exit(main())
