"""The environment is read in one place, and says what is wrong with it."""

from pathlib import Path

import pytest

from server.settings import SettingsError, read


def test_without_any_variable_everything_has_a_default() -> None:
    settings = read({})
    assert settings.grpc_address == "127.0.0.1:50051"
    assert settings.triton == "embedded"
    assert (settings.model_repository / "sd15.json").is_file()


def test_every_variable_is_read() -> None:
    settings = read(
        {
            "MEDIAGEN_GRPC_ADDRESS": "0.0.0.0:1",
            "MEDIAGEN_MODEL_REPOSITORY": "/models",
            "MEDIAGEN_TRITON": "triton:8001",
            "MEDIAGEN_CACHE": "/cache",
            "MEDIAGEN_MAX_REQUESTS": "3",
            "MEDIAGEN_GRACE_SECONDS": "4",
            "MEDIAGEN_LOG_LEVEL": "debug",
        }
    )
    assert (settings.grpc_address, settings.triton, settings.log_level) == ("0.0.0.0:1", "triton:8001", "DEBUG")
    assert (settings.model_repository, settings.cache) == (Path("/models"), Path("/cache"))
    assert (settings.max_requests, settings.grace_seconds) == (3, 4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MEDIAGEN_GRPC_ADDRESS", "50051"),
        ("MEDIAGEN_GRPC_ADDRESS", "host:65536"),
        ("MEDIAGEN_TRITON", "yes"),
        ("MEDIAGEN_MAX_REQUESTS", "-1"),
        ("MEDIAGEN_GRACE_SECONDS", "soon"),
        ("MEDIAGEN_LOG_LEVEL", "loud"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_what_could(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} is '?{value}'?"):
        read({name: value})
