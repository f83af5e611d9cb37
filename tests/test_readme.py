"""The README is true: its snippets and commands run against a service, and its tables name all there is."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import RunningService
from mediagen.v1 import image_pb2 as pb
from PIL import Image

from server import settings
from server.samplers import SAMPLERS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
DEFAULT_ADDRESS = "127.0.0.1:50051"
DEFAULT_HTTP_ADDRESS = "127.0.0.1:50080"


def fenced(language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def commands(program: str) -> list[str]:
    """The lines of shell blocks that call a program."""
    return [line for block in fenced("sh") for line in block.splitlines() if line.startswith(f"{program} ")]


def run(command: list[str], folder: Path, address: str) -> subprocess.CompletedProcess[str]:
    path = f"{ROOT}{os.pathsep}{ROOT / 'client'}"
    environment = {**os.environ, "PYTHONPATH": path, "MEDIAGEN_GRPC_ADDRESS": address}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def pictures(folder: Path) -> list[Path]:
    """Files that begin as their names say."""
    magic = {".png": b"\x89PNG", ".jpg": b"\xff\xd8"}
    found = sorted(path for path in folder.iterdir() if path.suffix in magic)
    assert all(path.read_bytes().startswith(magic[path.suffix]) for path in found)
    return found


@pytest.mark.parametrize("snippet", fenced("python"), ids=["client", "stubs", "octoai"])
def test_a_python_snippet_draws_its_picture(snippet: str, tmp_path: Path, service: RunningService) -> None:
    assert any(address in snippet for address in (DEFAULT_ADDRESS, DEFAULT_HTTP_ADDRESS))
    ours = snippet.replace(DEFAULT_ADDRESS, service.address).replace(DEFAULT_HTTP_ADDRESS, service.http_address)
    patient = ours.replace("timeout=60", "timeout=110")
    quick = re.sub(r"steps=\d+", "steps=2", re.sub(r'"steps": \d+', '"steps": 2', patient))
    done = run([sys.executable, "-c", quick], tmp_path, service.address)
    assert done.returncode == 0, done.stderr
    assert len(pictures(tmp_path)) == 1


@pytest.mark.parametrize("line", commands("mediagen"))
def test_a_command_line_does_what_it_says(line: str, tmp_path: Path, service_address: str) -> None:
    arguments = shlex.split(line)[1:]
    given = [name for option, name in pairwise(arguments) if option in ("--init-image", "--mask", "--control-image")]
    for name in given:
        picture = Image.new("RGB", (64, 64), "black")
        picture.paste("white", (0, 0, 32, 64))
        picture.save(tmp_path / name)
    fewer_steps = ["--steps", "2"] if arguments[0] == "generate" else []  # the last one counts
    done = run([sys.executable, "-m", "mediagen.command", *arguments, *fewer_steps], tmp_path, service_address)
    assert done.returncode == 0, done.stderr
    wanted = 0 if arguments[0] != "generate" else 2 if "-n" in arguments else 1
    assert len(pictures(tmp_path)) == wanted + len(given)


def test_the_error_shown_is_the_error_one_gets(tmp_path: Path, service_address: str) -> None:
    (example,) = fenced("console")
    line, *expected = example.splitlines()
    done = run([sys.executable, "-m", "mediagen.command", *shlex.split(line)[2:]], tmp_path, service_address)
    assert done.returncode == 1
    assert done.stderr.splitlines() == expected


def test_the_torch_named_is_the_torch_pinned() -> None:
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["export"]
    (named,) = re.findall(r"\btorch==[\w.]+", README)
    assert named in pins


def test_every_field_of_a_request_is_in_the_table_of_what_works() -> None:
    missing = [field.name for field in pb.GenerateRequest.DESCRIPTOR.fields if f"`{field.name}`" not in README]
    assert not missing


def test_every_sampler_of_this_version_is_named() -> None:
    assert all(f"`{name}`" in README for name in SAMPLERS)
    assert f"all {len(SAMPLERS)}" in README


def test_the_settings_table_has_every_variable_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(MEDIAGEN_\w+)` \| (.*?) \|", README, re.MULTILINE))
    source = Path(settings.__file__).read_text()
    assert set(rows) == set(re.findall(r'"(MEDIAGEN_\w+)"', source))
    default = settings.read({})
    for name, value in {
        "MEDIAGEN_GRPC_ADDRESS": default.grpc_address,
        "MEDIAGEN_HTTP_ADDRESS": default.http_address,
        "MEDIAGEN_TRITON": default.triton,
        "MEDIAGEN_MAX_REQUESTS": f"{default.max_requests:g}",
        "MEDIAGEN_GRACE_SECONDS": f"{default.grace_seconds:g}",
        "MEDIAGEN_LOG_LEVEL": default.log_level,
        "MEDIAGEN_CACHE": str(default.cache).replace(str(Path.home()), "~"),
    }.items():
        assert rows[name] == f"`{value}`"


@pytest.mark.parametrize(
    "page", ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "docs/adapters.md", "model_repository/README.md"]
)
def test_links_lead_to_files_that_are_there(page: str) -> None:
    text = (ROOT / page).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert not [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]


def test_files_named_by_the_architecture_are_there() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = re.findall(r"`([a-z_/]+(?:\.py|/))`", text)
    assert named
    missing = [
        name for name in named if not any((ROOT / home / name).exists() for home in ("", "server", "server/engines"))
    ]
    assert not missing
