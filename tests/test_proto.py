"""The public API's files: stubs that are what the proto says, and a proto that is clean."""

import filecmp
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
STUBS = ROOT / "client"
SOURCES = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))


def run(*command: str) -> None:
    """Run a tool in proto/; what it says is the failure's text."""
    done = subprocess.run(command, cwd=PROTO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def buf() -> str:
    return str(Path(sys.executable).parent / "buf")  # of the same environment


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of stubs made now."""
    out = tmp_path_factory.mktemp("stubs")
    options = (f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}")
    run(sys.executable, "-m", "grpc_tools.protoc", "-I", ".", *options, *SOURCES)
    return out


def test_the_stubs_are_what_the_proto_generates(generated: Path) -> None:
    made = sorted(path.relative_to(generated) for path in generated.rglob("*") if path.is_file())
    kept = sorted(path.relative_to(STUBS) for path in (STUBS / "mediagen").rglob("*_pb2*") if path.suffix != ".pyc")
    assert kept == made
    stale = [str(path) for path in made if not filecmp.cmp(generated / path, STUBS / path, shallow=False)]
    assert not stale, "run `make proto`"


def test_the_proto_follows_bufs_rules_and_comments_every_element() -> None:
    run(buf(), "lint")


def test_the_proto_is_formatted() -> None:
    run(buf(), "format", "--diff", "--exit-code")
