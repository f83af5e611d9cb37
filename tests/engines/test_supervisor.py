"""The embedded Triton, killed, and its engines and its gateway too: nothing is left over and service goes on."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from engines import toy

from server.engines import leftovers, supervisor, triton
from server.engines.kept import KeptEngines
from server.engines.port import EngineTimeout, EngineUnavailable
from server.engines.supervisor import EmbeddedTriton
from server.engines.triton import TritonEngines
from server.engines.wheel import Host, TritonStartError

pytestmark = pytest.mark.asyncio(loop_scope="session")

REMOVE = leftovers.remove
FOREVER = {"turns": np.array([10_000_000])}  # minutes


@dataclass
class Service:
    """A Triton of its own with two engines that are kept."""

    supervisor: EmbeddedTriton
    engines: KeptEngines

    @property
    def mark(self) -> str:
        return self.supervisor.log_file.parent.name

    def triton(self) -> int:
        return next(pid for pid, line in processes(self.mark) if "/tritonserver\0" in line)

    def stub(self, engine: str) -> int:
        return next(pid for pid, line in processes(self.mark) if f"{engine}_0_0" in line)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def service(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    async with EmbeddedTriton(repository, tmp_path_factory.mktemp("cache")) as embedded:
        engines = KeptEngines(TritonEngines(embedded.address, toy.SPECS), repository, toy.SPECS)
        await asyncio.gather(*(engines.load(spec.name) for spec in (toy.WORDS, toy.SPIN)))
        service = Service(embedded, engines)
        yield service
        await engines.close()
    assert processes(service.mark) == []
    assert regions(service.mark) == []


async def test_killed_while_executing_it_fails_the_call_within_1_s_and_serves_again_within_10(service: Service) -> None:
    call = await executing(service)
    old = {pid for pid, _ in processes(service.mark)}
    killed = time.monotonic()
    os.kill(service.triton(), signal.SIGKILL)
    with pytest.raises(EngineUnavailable):
        await call
    assert time.monotonic() - killed < 1
    async with asyncio.timeout(10):
        await serving(service)
    assert old.isdisjoint(pid for pid, _ in processes(service.mark))
    assert len(processes(service.mark)) == 3  # Triton and two stubs
    assert len(regions(service.mark)) == 2
    assert set(await service.engines.ready()) == {toy.WORDS.name, toy.SPIN.name}


async def test_a_killed_engine_process_fails_its_calls_and_is_replaced_once(service: Service) -> None:
    first = await executing(service)
    calls = [first, *(asyncio.create_task(service.engines.run(toy.SPIN.name, FOREVER)) for _ in range(3))]
    await asyncio.wait(calls, timeout=0.1)
    os.kill(service.stub(toy.SPIN.name), signal.SIGKILL)
    async with asyncio.timeout(5):
        assert isinstance((await asyncio.wait((first,)))[0].pop().exception(), EngineUnavailable)
    await serving(service)  # Triton takes a second for each call that waits at the dead process
    successor = service.stub(toy.SPIN.name)
    async with asyncio.timeout(10):
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(result) for result in results} == {EngineUnavailable}
    await serving(service)
    assert service.stub(toy.SPIN.name) == successor  # one death, one successor, however late its callers hear of it


async def test_a_restart_that_fails_is_tried_again(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    removals = []

    def remove(mark: str) -> None:
        removals.append(mark)
        if len(removals) == 1:
            raise OSError("a test wants this restart to fail")
        REMOVE(mark)

    monkeypatch.setattr(leftovers, "remove", remove)
    os.kill(service.triton(), signal.SIGKILL)
    await until(lambda: len(removals) == 2)
    async with asyncio.timeout(15):
        await serving(service)
    assert len(processes(service.mark)) == 3


async def test_an_engine_process_that_hangs_is_replaced(service: Service) -> None:
    hanging = service.stub(toy.WORDS.name)
    os.kill(hanging, signal.SIGSTOP)
    with pytest.raises((EngineUnavailable, EngineTimeout)):
        await service.engines.run(toy.WORDS.name, toy.example(toy.WORDS), timeout=5)
    assert toy.WORDS.name not in await service.engines.ready()
    async with asyncio.timeout(10):
        await serving(service)
    os.kill(hanging, signal.SIGKILL)


async def test_a_triton_that_hangs_is_not_ready_and_is_started_again(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(supervisor, "_ANSWER_SECONDS", 0.7)
    monkeypatch.setattr(triton, "_READY_SECONDS", 0.5)
    async with EmbeddedTriton(repository, tmp_path) as embedded:
        engines = KeptEngines(TritonEngines(embedded.address, toy.SPECS), repository, toy.SPECS)
        await asyncio.gather(*(engines.load(spec.name) for spec in (toy.WORDS, toy.SPIN)))
        service = Service(embedded, engines)
        hanging = service.triton()
        os.kill(hanging, signal.SIGSTOP)
        async with asyncio.timeout(1.5):  # three looks take longer
            while await engines.ready():  # it still answers for a moment
                pass
        with pytest.raises(EngineUnavailable):
            await engines.run(toy.WORDS.name, toy.example(toy.WORDS), timeout=10)
        async with asyncio.timeout(15):
            await serving(service)
        assert service.triton() != hanging
        await engines.close()


async def test_a_triton_that_works_is_not_taken_for_one_that_hangs(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_LOOK_SECONDS", 0.05)
    call = await executing(service)
    hangs = asyncio.create_task(supervisor._hangs(service.supervisor.address))
    done, _ = await asyncio.wait((hangs, call), timeout=1)
    assert done == set()
    for task in (hangs, call):
        task.cancel()
    os.kill(service.stub(toy.SPIN.name), signal.SIGKILL)  # its execution would go on for minutes
    with pytest.raises(EngineUnavailable):
        await service.engines.run(toy.SPIN.name, toy.example(toy.SPIN))
    await serving(service)


async def test_a_killed_gateway_takes_triton_its_engines_and_their_memory_along(
    repository: Path, tmp_path: Path
) -> None:
    gateway, mark = await running_gateway(repository, tmp_path)
    assert await gateway.stdout.readline() == b"loaded\n"
    (stub,) = (pid for pid, line in processes(mark) if "triton_python_backend_stub" in line)
    before = processor_time(stub)
    await until(lambda: processor_time(stub) > before + 10)  # it executes
    assert len(processes(mark)) == 2
    assert len(regions(mark)) == 1
    gateway.kill()
    await gateway.wait()
    await until(lambda: processes(mark) == [] and regions(mark) == [])


async def test_a_gateway_killed_while_it_loads_leaves_nothing_after_the_next_start(
    repository: Path, tmp_path: Path
) -> None:
    gateway, mark = await running_gateway(repository, tmp_path)
    await until(lambda: any("triton_python_backend_stub" in line for _, line in processes(mark)))
    gateway.kill()
    await gateway.wait()
    await until(lambda: processes(mark) == [])
    leftovers.sweep(tmp_path)
    assert regions(mark) == []
    assert not (tmp_path / mark).exists()


async def running_gateway(repository: Path, cache: Path) -> tuple[Any, str]:
    """A process of its own with a Triton that is about to load an engine, and its mark."""
    gateway = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", GATEWAY, str(repository), str(cache)),
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=asyncio.subprocess.PIPE,
    )
    assert gateway.stdout is not None
    return gateway, (await gateway.stdout.readline()).decode().strip()


GATEWAY = """
import asyncio, sys
from pathlib import Path
import numpy as np
from engines import toy
from server.engines.supervisor import EmbeddedTriton
from server.engines.triton import TritonEngines

async def main():
    supervisor = EmbeddedTriton(Path(sys.argv[1]), Path(sys.argv[2]))
    engines = TritonEngines(await supervisor.start(), toy.SPECS)
    print(supervisor.log_file.parent.name, flush=True)
    await engines.load(toy.SPIN.name)
    print("loaded", flush=True)
    await engines.run(toy.SPIN.name, {"turns": np.array([10_000_000])})

asyncio.run(main())
"""


async def test_a_taken_port_is_named(repository: Path, tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        embedded = EmbeddedTriton(repository, tmp_path, port)
        with pytest.raises(TritonStartError, match=rf"port {port} on 127.0.0.1 .*choose another port"):
            await embedded.start()


async def test_a_triton_that_ends_at_its_start_is_quoted_with_the_path_of_its_log(
    repository: Path, tmp_path: Path
) -> None:
    host = Host.here()
    real = host.packages["pytriton"] / "pytriton" / "tritonserver"
    broken = tmp_path / "site" / "pytriton" / "tritonserver"
    (broken / "bin").mkdir(parents=True)
    for folder in ("backends", "python_backend_stubs"):
        (broken / folder).symlink_to(real / folder)
    (broken / "bin" / "tritonserver").write_text("#!/bin/sh\necho starting\necho 'E1122 no such thing' >&2\nexit 3\n")
    (broken / "bin" / "tritonserver").chmod(0o755)
    embedded = EmbeddedTriton(
        repository, tmp_path / "cache", host=replace(host, packages={**host.packages, "pytriton": tmp_path / "site"})
    )
    with pytest.raises(TritonStartError, match=r"ended at its start with code 3; its log .* ends: E1122 no such thing"):
        await embedded.start()
    assert "starting" in embedded.log_file.read_text()
    await embedded.stop()


async def test_a_cache_that_cannot_be_used_is_named_with_its_setting(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TritonStartError, match=r"needs .*/file.* and cannot use it \(.*set MEDIAGEN_CACHE to a folder"):
        await EmbeddedTriton(repository, tmp_path / "file").start()


async def test_a_repository_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TritonStartError, match="nowhere is not a folder"):
        await EmbeddedTriton(tmp_path / "nowhere", tmp_path).start()


async def executing(service: Service) -> "asyncio.Task[dict[str, object]]":
    """A call that would last for minutes, once its engine is seen to compute."""
    stub = service.stub(toy.SPIN.name)
    before = processor_time(stub)
    call = asyncio.create_task(service.engines.run(toy.SPIN.name, FOREVER))
    await until(lambda: processor_time(stub) > before + 10)
    assert not call.done()
    return call


async def serving(service: Service) -> None:
    """Returns when both engines are ready again; they then answer rightly."""
    async with asyncio.timeout(15):
        while len(await service.engines.ready()) < 2:  # noqa: ASYNC110  (of another process, there is no event)
            await asyncio.sleep(0.02)
    for spec in (toy.WORDS, toy.SPIN):
        inputs = toy.example(spec)
        for name, expected in toy.COMPUTE[spec.name](inputs).items():
            assert np.allclose((await service.engines.run(spec.name, inputs))[name], expected)


async def until(true: Callable[[], bool]) -> None:
    """What other processes do cannot be awaited, only looked at."""
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110  (of another process, there is no event)
            await asyncio.sleep(0.02)


def processes(mark: str) -> list[tuple[int, str]]:
    return [(pid, line) for pid, line in leftovers.command_lines() if mark in line]


def regions(mark: str) -> list[Path]:
    return list(Path("/dev/shm").glob(f"{mark}*"))


def processor_time(pid: int) -> int:
    """User time in clock ticks of 10 ms."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])
