"""Health says what the engines' state is, and goes on saying it; the memory for engines is looked at first."""

import asyncio
from dataclasses import replace

import pytest
from grpc_health.v1 import health, health_pb2

from server.app import (
    _preload,
    _row_seconds,
    _set_health,
    _warn_of_little_room,
    _warn_of_open_doors,
    _watch_health,
)
from server.catalog import Catalog
from server.settings import read


async def test_health_is_watched_on_after_an_error() -> None:
    asked = 0

    async def healthy() -> bool:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise OSError("a bug")
        return True

    status = health.aio.HealthServicer()
    await _set_health(status, serving=False)
    watcher = asyncio.create_task(_watch_health(status, healthy))
    async with asyncio.timeout(10):
        while (await status.Check(health_pb2.HealthCheckRequest(), None)).status != SERVING:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    watcher.cancel()
    await asyncio.gather(watcher, return_exceptions=True)
    assert asked == 2


def test_what_is_preloaded_is_all_networks_of_the_engines_named(catalog: Catalog) -> None:
    networks = tuple(spec.name for spec in catalog["sd15"].specs)
    settings = replace(read({}), preload=("sd15",), engine_memory=50)
    assert tuple(_preload(settings, catalog, dict.fromkeys(networks, 10))) == networks
    assert _preload(read({}), catalog, {}) == []


def test_a_preload_that_cannot_be_is_refused_before_anything_starts(catalog: Catalog) -> None:
    sizes = dict.fromkeys((spec.name for spec in catalog["sd15"].specs), 2**30)
    with pytest.raises(ValueError, match=r"names nothing; this repository has .*sd15"):
        _preload(replace(read({}), preload=("sd15", "nothing")), catalog, sizes)
    with pytest.raises(ValueError, match=r"asks for 5.00 GiB of engines and MEDIAGEN_ENGINE_MEMORY allows 2.00 GiB"):
        _preload(replace(read({}), preload=("sd15",), engine_memory=2 * 2**30), catalog, sizes)


def test_an_engine_whose_networks_have_no_room_beside_each_other_is_warned_of_at_the_start(
    catalog: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    sd15 = {"sd15": catalog["sd15"]}
    sizes = dict.fromkeys((spec.name for spec in sd15["sd15"].specs), 2**30)
    _warn_of_little_room(replace(read({}), engine_memory=5 * 2**30), sd15, sizes)
    assert not caplog.records
    _warn_of_little_room(replace(read({}), engine_memory=2 * 2**30), sd15, sizes)
    assert "sd15 take 5.00 GiB and MEDIAGEN_ENGINE_MEMORY allows 2.00 GiB" in caplog.text


def test_a_network_of_a_large_engine_has_longer_before_it_counts_as_hanging(catalog: Catalog) -> None:
    text_encoder, image_encoder, vae_encoder, unet, vae_decoder = (spec.name for spec in catalog["sd15"].specs)
    sizes = {text_encoder: 2**30, image_encoder: 0, vae_encoder: 2**28, unet: 7 * 2**30, vae_decoder: 2**28}
    seconds = _row_seconds({"sd15": catalog["sd15"]}, sizes)
    assert {seconds(name) for name in sizes} == {60 * 9.5}
    assert seconds("sd15_unet_control") == 60 * 9.5  # a graph that only variants have


def test_a_graph_that_only_variants_have_takes_the_time_of_its_own_engine(catalog: Catalog) -> None:
    both = {name: catalog[name] for name in ("sd15", "sdxl")}
    sizes = {spec.name: 10 * 2**30 if name == "sdxl" else 0 for name in both for spec in both[name].specs}
    shared = replace(catalog["sd15"].specs[0], name="preprocessor_depth")
    both = {name: replace(engine, specs=(shared, *engine.specs)) for name, engine in both.items()}
    seconds = _row_seconds(both, {**sizes, shared.name: 0})
    assert seconds("sd15_unet_control") == seconds("sd15_unet") == 60
    assert seconds("sdxl_unet_control") == seconds("sdxl_unet") > 600
    reverse = _row_seconds(dict(reversed(both.items())), {**sizes, shared.name: 0})
    assert seconds(shared.name) == reverse(shared.name) > 600  # of the slower one that shares it


SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.1.2.3:1", "[::1]:1", "localhost:1"])
def test_what_only_this_machine_reaches_is_warned_of_to_nobody(caplog: pytest.LogCaptureFixture, address: str) -> None:
    _warn_of_open_doors(replace(read({}), grpc_address=address, http_address=address))
    _warn_of_open_doors(replace(read({}), http_address="none"))
    assert not caplog.records


@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "no-such-host.invalid:1"])
def test_an_address_that_others_reach_is_warned_of_at_the_start_since_nobody_is_asked_for_a_key(
    caplog: pytest.LogCaptureFixture, address: str
) -> None:
    for settings in (replace(read({}), grpc_address=address), replace(read({}), http_address=address)):
        caplog.clear()
        _warn_of_open_doors(settings)
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert f"{address} is open to other machines" in record.getMessage()
        assert "whoever reaches it may draw" in record.getMessage()
