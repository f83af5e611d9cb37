"""The only reader of the environment. Every setting has a default that suits a laptop."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

EMBEDDED = "embedded"
NONE = "none"
# What a container may take: cgroup v2's, v1's.
_MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Settings:
    """What a deployment decides."""

    grpc_address: str  # host:port
    http_address: str  # host:port of the JSON routes, or "none"
    model_repository: Path
    triton: str  # "embedded", "none" (engines in this process), or the host:port of one that runs elsewhere
    engine_memory: int  # bytes that loaded engines may take together; the least recently used makes room for the next
    preload: tuple[str, ...]  # names of engines that are loaded before the service says that it serves
    safety: tuple[str, ...]  # names of engines whose pictures the safety stage looks at
    prompt_filter: Path | None  # list of words that are not drawn; None: there is none
    assets: Path  # folder of the asset library
    asset_disk: int  # bytes that the assets of callers may take together
    builder: str  # "embedded", or the host:port of one that runs elsewhere, on the same volumes
    variants: Path  # folder of engines with other weights: the builder writes it, Triton and this service read it
    variant_disk: int  # bytes that they may take there together; the least recently used makes room for the next
    cache: Path  # for compiled networks and Triton's working files
    max_requests: int  # admitted at the same time; more are refused with a retry hint
    grace_seconds: float  # that running requests get after SIGTERM
    log_level: str


class SettingsError(ValueError):
    """A setting cannot be used; says which and what is allowed."""


def read(environment: Mapping[str, str] = os.environ) -> Settings:
    """Raises `SettingsError`."""
    home = Path(__file__).resolve().parent.parent
    cache = Path(environment.get("MEDIAGEN_CACHE", Path.home() / ".cache" / "mediagen"))
    return Settings(
        grpc_address=_address(environment, "MEDIAGEN_GRPC_ADDRESS", "127.0.0.1:50051"),
        http_address=_address(environment, "MEDIAGEN_HTTP_ADDRESS", "127.0.0.1:50080", NONE),
        model_repository=Path(environment.get("MEDIAGEN_MODEL_REPOSITORY", home / "model_repository")),
        triton=_address(environment, "MEDIAGEN_TRITON", EMBEDDED, EMBEDDED, NONE),
        engine_memory=_memory(environment, "MEDIAGEN_ENGINE_MEMORY"),
        preload=_names(environment, "MEDIAGEN_PRELOAD"),
        safety=_names(environment, "MEDIAGEN_SAFETY"),
        prompt_filter=_file(environment, "MEDIAGEN_PROMPT_FILTER"),
        assets=Path(environment.get("MEDIAGEN_ASSETS", Path.home() / ".local" / "share" / "mediagen" / "assets")),
        asset_disk=_bytes("MEDIAGEN_ASSET_DISK", environment.get("MEDIAGEN_ASSET_DISK", "100G")),
        builder=_address(environment, "MEDIAGEN_BUILDER", EMBEDDED, EMBEDDED),
        variants=Path(environment.get("MEDIAGEN_VARIANTS", cache / "variants")),
        variant_disk=_bytes("MEDIAGEN_VARIANT_DISK", environment.get("MEDIAGEN_VARIANT_DISK", "20G")),
        cache=cache,
        max_requests=_positive(environment, "MEDIAGEN_MAX_REQUESTS", 64),
        grace_seconds=_positive(environment, "MEDIAGEN_GRACE_SECONDS", 30),
        log_level=_log_level(environment),
    )


def _address(environment: Mapping[str, str], name: str, default: str, *words: str) -> str:
    """host:port, or one of the words."""
    value = environment.get(name, default)
    host, _, port = value.rpartition(":")
    if value not in words and (not host or not port.isdecimal() or int(port) > 65535):
        allowed = " or ".join(("host:port, such as 127.0.0.1:8001", *words))
        raise SettingsError(f"{name} is {value!r}; it must be {allowed}")
    return value


def _names(environment: Mapping[str, str], name: str) -> tuple[str, ...]:
    """Parted by commas or white space, each once."""
    return tuple(dict.fromkeys(re.findall(r"[^,\s]+", environment.get(name, ""))))


def _file(environment: Mapping[str, str], name: str) -> Path | None:
    """An empty variable counts as none."""
    value = environment.get(name, "")
    return None if value == "" else Path(value)


def _positive(environment: Mapping[str, str], name: str, default: int) -> int:
    value = environment.get(name, str(default))
    if not value.isdecimal() or int(value) == 0:
        raise SettingsError(f"{name} is {value!r}; it must be a whole number above 0, such as {default}")
    return int(value)


def _memory(environment: Mapping[str, str], name: str) -> int:
    """Bytes; by default half of what this machine, or its container, has: the rest is for the largest calls."""
    return _bytes(name, environment.get(name, f"{_machine_memory() // 2}"))


def _bytes(name: str, value: str) -> int:
    parts = re.fullmatch(r"(\d+)([KMGT]?)", value)
    if parts is None or int(parts[1]) == 0:
        raise SettingsError(f"{name} is {value!r}; it must be a number of bytes above 0, such as 8G or 8589934592")
    return int(parts[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[parts[2]]


def _machine_memory() -> int:
    """Bytes."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in _MEMORY_LIMITS:
        try:
            limits.append(int(file.read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return min(limits)


def _log_level(environment: Mapping[str, str]) -> str:
    levels = ("DEBUG", "INFO", "WARNING", "ERROR")
    given = environment.get("MEDIAGEN_LOG_LEVEL", "INFO")
    value = given.upper()
    if value not in levels:
        raise SettingsError(f"MEDIAGEN_LOG_LEVEL is {given!r}; allowed are {', '.join(levels)}")
    return value
