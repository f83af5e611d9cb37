"""The builder as a process: what it builds once, what it keeps, what it says, and how it ends and comes back."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import grpc.aio
import numpy as np
import pytest
import pytest_asyncio
from mediagen.builder.v1 import builder_pb2_grpc
from safetensors.numpy import save_file

from bench.loras import lora
from server.adapters.weights import Part, Variant
from server.assets.asset import blob
from server.builder.client import Builder, Command, EmbeddedBuilder
from server.builder.faults import BuilderAway, NoDisk, PartMissing, PartUnfit
from server.builder.service import BuilderService, Volumes
from server.catalog import read_catalog

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = ROOT / "model_repository"
SPEC = next(spec for spec in read_catalog(REPOSITORY)["sd15"].specs if spec.name == "sd15_text_encoder")


class Process:
    """A builder over folders of its own, and who asks it."""

    def __init__(self, folder: Path, disk: int = 2**30) -> None:
        self.assets, self.variants, self.cache = folder / "assets", folder / "variants", folder / "cache"
        self.command = Command(REPOSITORY, self.assets, self.variants, disk)

    async def __aenter__(self) -> "Process":
        self.embedded = await EmbeddedBuilder(self.command, self.cache).__aenter__()
        self.builder = Builder(self.embedded.address)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.builder.close()
        await self.embedded.__aexit__(None, None, None)

    def variant(self, *seeds: int) -> Variant:
        """With LoRAs over the text encoder."""
        return Variant(SPEC, tuple(lora(REPOSITORY, self.assets, "sd15", "text_encoder", seed) for seed in seeds))

    def files(self) -> set[str]:
        """In the variants' folder, the builder's own lock apart."""
        return {path.name for path in self.variants.iterdir()} - {".lock"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def process(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Process]:
    """For tests that leave it as it was."""
    async with Process(tmp_path_factory.mktemp("builder")) as process:
        yield process


@pytest.mark.asyncio(loop_scope="module")
async def test_a_variant_is_built_once_however_many_ask_and_then_lies_on_disk(process: Process) -> None:
    variant = process.variant(1)
    found = await asyncio.gather(*(process.builder.ensure(variant, ()) for _ in range(5)))
    assert len({id(one) for one in found}) == 5
    assert len({one.seconds for one in found}) == 1  # one build's
    assert all(one.built for one in found)
    again = await process.builder.ensure(variant, ())
    assert (again.built, again.seconds) == (False, 0)
    assert (process.variants / variant.spec.name / "1" / "model.onnx").is_file()


@pytest.mark.asyncio(loop_scope="module")
async def test_a_part_that_was_deleted_meanwhile_is_named_and_leaves_nothing(process: Process) -> None:
    before = process.files()
    variant = process.variant(2)
    blob(process.assets, variant.parts[0].sha256).unlink()
    with pytest.raises(PartMissing, match=f"lora {variant.parts[0].sha256[:16]}.* deleted"):
        await process.builder.ensure(variant, ())
    assert process.files() == before


@pytest.mark.asyncio(loop_scope="module")
async def test_a_part_that_does_not_fit_is_refused_and_leaves_nothing(process: Process) -> None:
    before = process.files()
    digest = "ab" * 32
    path = blob(process.assets, digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"text_encoder.nowhere.lora_A.weight": np.zeros((1, 2), np.float32)}, path)
    with pytest.raises(PartUnfit, match="lora abab"):
        await process.builder.ensure(Variant(SPEC, (Part("lora", digest, frozenset({"text_encoder"})),)), ())
    assert process.files() == before


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", ["../x", "/tmp/x", "", ".hidden", "a/b", "sd15_text_encoder\n"])
async def test_a_name_is_never_a_path(process: Process, name: str) -> None:
    before = process.files()
    with pytest.raises(PartUnfit, match="no name of an engine"):
        await process.builder.ensure(replace(process.variant(1), graph=replace(SPEC, name=name)), ())
    with pytest.raises(PartUnfit, match="is none"):
        await process.builder.ensure(Variant(SPEC, (Part("lora", f"../{name}", frozenset({"text_encoder"})),)), ())
    assert process.files() == before


async def test_an_engine_s_name_may_have_a_dot(tmp_path: Path) -> None:
    """`python -m export --name sd1.5`."""
    repository = tmp_path / "repository"
    shutil.copytree(REPOSITORY / SPEC.name, repository / "sd1.5_text_encoder")
    shutil.copy(REPOSITORY / "sd15.json", repository / "sd1.5.json")
    process = Process(tmp_path)
    process.command = replace(process.command, repository=repository)
    async with process:
        variant = replace(process.variant(1), graph=replace(SPEC, name="sd1.5_text_encoder"))
        assert (await process.builder.ensure(variant, ())).built
        assert process.files() == {variant.spec.name}


@pytest_asyncio.fixture
async def busy(tmp_path: Path) -> AsyncIterator[tuple[BuilderService, Builder, Process]]:
    """A builder in this process, both of whose turns are taken."""
    process = Process(tmp_path)
    service = BuilderService(Volumes(REPOSITORY, process.assets, process.variants), 2**30)
    for _ in range(2):
        await service._turns.acquire()
    server = grpc.aio.server()
    builder_pb2_grpc.add_BuilderServiceServicer_to_server(service, server)
    server.add_insecure_port(f"unix:{tmp_path}/socket")
    await server.start()
    builder = Builder(f"unix:{tmp_path}/socket")
    yield service, builder, process
    await builder.close()
    service.close()
    await server.stop(None)


async def test_a_build_that_nobody_waits_for_any_more_never_begins_and_what_others_wait_for_does(
    busy: tuple[BuilderService, Builder, Process],
) -> None:
    service, builder, process = busy
    dropped, wanted = process.variant(1), process.variant(2)
    calls = [asyncio.create_task(builder.ensure(variant, ())) for variant in (dropped, dropped, wanted, wanted)]
    await until(lambda: [building.waiting for building in service._building.values()] == [2, 2])
    for call in calls[:3]:
        call.cancel()
    await until(lambda: [building.waiting for building in service._building.values()] == [1])
    service._turns.release()
    assert (await calls[3]).built
    assert process.files() == {wanted.spec.name}
    assert (await builder.ensure(dropped, ())).built  # who asks later is served
    assert not service._building


async def test_a_build_that_has_begun_ends_for_who_asks_next(busy: tuple[BuilderService, Builder, Process]) -> None:
    service, builder, process = busy
    variant = process.variant(*range(10, 26))  # takes a while
    call = asyncio.create_task(builder.ensure(variant, ()))
    service._turns.release()
    await until(lambda: any(building.begun for building in service._building.values()))
    (building,) = service._building.values()
    call.cancel()
    await until(lambda: not building.waiting)
    await builder.ensure(variant, ())
    assert building.task.result().built
    assert process.files() == {variant.spec.name}


@pytest.mark.asyncio(loop_scope="module")
async def test_killed_in_the_middle_it_fails_the_call_with_its_type_and_serves_the_next_one(process: Process) -> None:
    await process.builder.ensure(process.variant(1), ())
    before = process.files()
    parts = process.variant(*range(10, 26)).parts  # takes a while
    variant = Variant(SPEC, parts)
    call = asyncio.create_task(process.builder.ensure(variant, ()))
    await until(lambda: any(name.startswith(".building-") for name in process.files()))
    pid = process.embedded.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(BuilderAway, match="the builder ended or hangs") as raised:
        await call
    assert raised.value.retry_seconds > 0
    assert (await process.builder.ensure(variant, ())).built
    assert process.embedded.pid != pid
    assert process.files() == {*before, variant.spec.name}


async def test_a_restart_finds_what_is_on_disk_unless_the_engine_was_exported_again(tmp_path: Path) -> None:
    async with Process(tmp_path) as process:
        variant = process.variant(1)
        assert (await process.builder.ensure(variant, ())).built
    async with Process(tmp_path) as process:
        assert not (await process.builder.ensure(variant, ())).built
        manifest = process.variants / variant.spec.name / "variant.json"
        manifest.write_text(manifest.read_text().replace('"base": "', '"base": "0'))
        assert (await process.builder.ensure(variant, ())).built
        assert not (await process.builder.ensure(variant, ())).built


async def test_the_least_recently_used_makes_room_on_disk_and_what_is_needed_stays(tmp_path: Path) -> None:
    async with Process(tmp_path) as process:
        variants = [process.variant(seed) for seed in range(4)]
        names = [variant.spec.name for variant in variants]
        await process.builder.ensure(variants[0], ())
        size = sum(
            path.stat().st_size for path in (process.variants / names[0]).rglob("*") if path.stat().st_nlink == 1
        )
    process.command = replace(process.command, disk=int(size * 2.5))
    async with process:
        for variant in (variants[1], variants[0], variants[2]):
            await process.builder.ensure(variant, ())
        assert process.files() == {names[0], names[2]}
        await process.builder.ensure(variants[3], (names[0],))
        assert process.files() == {names[0], names[3]}
        found = await process.builder.ensure(variants[1], (names[0], names[3]))
        assert found.leave in ((names[0],), (names[3],))  # one may have become idle while it was built
        with pytest.raises(NoDisk, match="MEDIAGEN_VARIANT_DISK"):
            await process.builder.ensure(variants[1], (names[0], names[3]))
        assert process.files() == {names[0], names[3]}
        assert (await process.builder.ensure(variants[1], (names[0], names[3]))).built
        found = await process.builder.ensure(variants[1], (names[0],), (names[3],))
        assert (found.built, found.leave) == (False, (names[3],))
        assert not (await process.builder.ensure(variants[1], (names[0],))).leave
        assert process.files() == {names[0], names[1]}


async def test_what_is_loaded_and_idle_is_to_be_unloaded_before_it_is_removed(tmp_path: Path) -> None:
    async with Process(tmp_path) as process:
        variants = [process.variant(seed) for seed in range(3)]
        first, second, third = (variant.spec.name for variant in variants)
        await process.builder.ensure(variants[0], ())
        size = sum(path.stat().st_size for path in (process.variants / first).rglob("*") if path.stat().st_nlink == 1)
    process.command = replace(process.command, disk=int(size * 2.5))
    async with process:
        await process.builder.ensure(variants[1], ())
        found = await process.builder.ensure(variants[2], (third,), (second, first))
        assert (found.built, found.leave) == (True, (second,))
        assert process.files() == {first, second, third}
        found = await process.builder.ensure(variants[2], (third,), (second, first))
        assert (found.built, found.leave) == (False, (second,))
        found = await process.builder.ensure(variants[2], (third,), (first,))
        assert (found.built, found.leave) == (False, ())
        assert process.files() == {first, third}


async def test_what_could_never_have_room_is_refused_before_it_is_made(tmp_path: Path) -> None:
    async with Process(tmp_path, disk=10_000) as process:
        variant = process.variant(*range(10, 26))  # takes a while
        with pytest.raises(NoDisk, match=r"may take \d{5,} bytes of disk, and .* 10000 together: set MEDIAGEN_VARIANT"):
            await process.builder.ensure(variant, ())
        assert process.files() == set()


async def test_what_is_loaded_for_long_is_not_the_oldest_on_disk(tmp_path: Path) -> None:
    async with Process(tmp_path) as process:
        variants = [process.variant(seed) for seed in range(3)]
        first, _, third = (variant.spec.name for variant in variants)
        for variant in variants[:2]:
            await process.builder.ensure(variant, ())
        size = sum(path.stat().st_size for path in (process.variants / first).rglob("*") if path.stat().st_nlink == 1)
    process.command = replace(process.command, disk=int(size * 2.5))
    async with process:
        gone = Part("lora", "ab" * 32, frozenset({"text_encoder"}))
        with pytest.raises(PartMissing):  # it was used from memory until now
            await process.builder.ensure(Variant(SPEC, (gone,)), (), (first,))
        await process.builder.ensure(variants[2], ())
        assert process.files() == {first, third}


async def test_two_builders_never_write_into_one_folder(tmp_path: Path) -> None:
    async with Process(tmp_path) as process:
        await process.builder.ensure(process.variant(1), ())
        command = (sys.executable, *process.command.arguments(f"unix:{tmp_path}/other.socket"))
        environment = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'client'}"}
        done = await asyncio.to_thread(
            subprocess.run, command, env=environment, capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 1
        assert "another builder writes into" in done.stderr
        assert "MEDIAGEN_VARIANTS" in done.stderr


async def test_it_ends_with_its_gateway_however_that_ends(tmp_path: Path) -> None:
    """A gateway that is killed runs no code of its own any more."""
    program = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom server.builder.client import *\n"
        "async def main():\n"
        "    command = Command(*map(Path, sys.argv[1:4]), 10**9)\n"
        "    async with EmbeddedBuilder(command, Path(sys.argv[4])) as embedded:\n"
        "        await Builder(embedded.address)._channel.channel_ready()\n"
        "        print(embedded.pid, flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    folders = [str(tmp_path / name) for name in ("assets", "variants", "cache")]
    gateway = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, str(REPOSITORY), *folders),
        env={"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'client'}"},
        stdout=asyncio.subprocess.PIPE,
    )
    assert gateway.stdout is not None
    pid = int(await asyncio.wait_for(gateway.stdout.readline(), 30))
    gateway.kill()
    await gateway.wait()
    await until(lambda: has_ended(pid))
    (left,) = (tmp_path / "cache").glob("builder-*")
    async with Process(tmp_path) as process:
        await process.builder.ensure(process.variant(1), ())
        assert not left.exists()
    assert not list((tmp_path / "cache").glob("builder-*"))


def has_ended(pid: int) -> bool:
    """With all its threads, so its sockets are closed, too; perhaps nobody has asked yet how it ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state in "ZX" and len(list(Path(f"/proc/{pid}/task").iterdir())) <= 1
    except (FileNotFoundError, ProcessLookupError):
        return True


async def until(true: Callable[[], bool]) -> None:
    """What happens in another process, which tells nobody."""
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        await asyncio.sleep(0.002)
