"""The environment is read in one place, and says what is wrong with it."""

import os
from pathlib import Path

import pytest

import server.settings
from server.settings import SettingsError, read


def test_without_any_variable_everything_has_a_default() -> None:
    settings = read({})
    assert settings.grpc_address == "127.0.0.1:50051"
    assert settings.http_address == "127.0.0.1:50080"
    assert settings.triton == "embedded"
    assert (settings.model_repository / "sd15.json").is_file()
    assert settings.preload == settings.safety == ()
    assert settings.prompt_filter is None
    assert read({"MEDIAGEN_PROMPT_FILTER": ""}).prompt_filter is None


def test_engines_may_take_half_of_the_memory_of_the_machine_or_its_container(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    unlimited, limited = tmp_path / "max", tmp_path / "limited"
    unlimited.write_text("max\n")
    limited.write_text(f"{2**30}\n")
    for files, memory in (((unlimited, tmp_path / "absent"), machine), ((unlimited, limited), 2**30)):
        monkeypatch.setattr(server.settings, "_MEMORY_LIMITS", files)
        assert read({}).engine_memory == memory // 2


def test_every_variable_is_read() -> None:
    settings = read(
        {
            "MEDIAGEN_GRPC_ADDRESS": "0.0.0.0:1",
            "MEDIAGEN_HTTP_ADDRESS": "0.0.0.0:2",
            "MEDIAGEN_MODEL_REPOSITORY": "/models",
            "MEDIAGEN_TRITON": "triton:8001",
            "MEDIAGEN_ENGINE_MEMORY": "3G",
            "MEDIAGEN_PRELOAD": "sd15, mine,sd15",
            "MEDIAGEN_SAFETY": "sdxl sd15",
            "MEDIAGEN_PROMPT_FILTER": "/words.txt",
            "MEDIAGEN_BUILDER": "builder:8002",
            "MEDIAGEN_VARIANT_DISK": "5G",
            "MEDIAGEN_CACHE": "/cache",
            "MEDIAGEN_ASSETS": "/assets",
            "MEDIAGEN_ASSET_DISK": "2T",
            "MEDIAGEN_MAX_REQUESTS": "3",
            "MEDIAGEN_GRACE_SECONDS": "4",
            "MEDIAGEN_LOG_LEVEL": "debug",
        }
    )
    assert (settings.grpc_address, settings.triton, settings.log_level) == ("0.0.0.0:1", "triton:8001", "DEBUG")
    assert settings.http_address == "0.0.0.0:2"
    assert (settings.model_repository, settings.cache) == (Path("/models"), Path("/cache"))
    assert (settings.assets, settings.asset_disk) == (Path("/assets"), 2 * 2**40)
    assert (settings.safety, settings.prompt_filter) == (("sdxl", "sd15"), Path("/words.txt"))
    assert (settings.engine_memory, settings.preload) == (3 * 2**30, ("sd15", "mine"))
    assert (settings.max_requests, settings.grace_seconds) == (3, 4)
    assert (settings.builder, settings.variant_disk) == ("builder:8002", 5 * 2**30)
    assert settings.variants == Path("/cache/variants")
    assert read({"MEDIAGEN_VARIANTS": "/variants"}).variants == Path("/variants")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MEDIAGEN_GRPC_ADDRESS", "50051"),
        ("MEDIAGEN_GRPC_ADDRESS", "host:65536"),
        ("MEDIAGEN_HTTP_ADDRESS", "off"),
        ("MEDIAGEN_TRITON", "yes"),
        ("MEDIAGEN_BUILDER", "none"),
        ("MEDIAGEN_VARIANT_DISK", "all"),
        ("MEDIAGEN_ENGINE_MEMORY", "half"),
        ("MEDIAGEN_ENGINE_MEMORY", "0G"),
        ("MEDIAGEN_ENGINE_MEMORY", "1.5G"),
        ("MEDIAGEN_ASSET_DISK", "much"),
        ("MEDIAGEN_MAX_REQUESTS", "-1"),
        ("MEDIAGEN_GRACE_SECONDS", "soon"),
        ("MEDIAGEN_LOG_LEVEL", "loud"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_what_could(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} is '?{value}'?"):
        read({name: value})


def test_the_json_routes_can_be_left_out() -> None:
    assert read({"MEDIAGEN_HTTP_ADDRESS": "none"}).http_address == "none"
    with pytest.raises(SettingsError, match=r"must be host:port, such as 127\.0\.0\.1:8001 or none"):
        read({"MEDIAGEN_HTTP_ADDRESS": "off"})
