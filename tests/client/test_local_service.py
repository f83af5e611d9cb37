"""A service for one command: it draws, it is the command's own, and whatever happens nothing of it stays behind."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest
from conftest import ROOT, RunningService
from mediagen.command import app
from mediagen.local_service import signals_end_the_block
from typer.testing import CliRunner

SMALL = ("--size", "384x704", "--cfg-scale", "1")


@contextmanager
def running_command(folder: Path, *options: str) -> Iterator[RunningService]:
    """`mediagen generate --start-service` on a free port, with everything that is kept in `folder`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = ("generate", "a red house", "--start-service", "--address", address, "-o", "p.png", *SMALL, *options)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MEDIAGEN_")},
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'client'}",
        "MEDIAGEN_CACHE": str(folder / "cache"),
        "MEDIAGEN_ASSETS": str(folder / "assets"),
    }
    log = folder / "command.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "mediagen.command", *command], env=environment, cwd=folder, stderr=output
        )
    try:
        yield RunningService(address, "none", process, log)
    finally:
        process.terminate()
        process.wait(timeout=60)


def processes_of(folder: Path) -> set[int]:
    """All processes with the folder in their environment or, as Triton's, in their command line."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                told = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
            except OSError:  # gone, or somebody else's
                continue
            if str(folder / "cache").encode() in told:
                found.add(int(entry.name))
    return found


def test_it_draws_one_picture_and_stops_everything(tmp_path: Path) -> None:
    with running_command(tmp_path, "--steps", "1") as command:
        assert command.process.wait(timeout=150) == 0, command.log.read_text()
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert processes_of(tmp_path) == set()


def test_a_terminated_command_stops_its_gateway_and_triton(tmp_path: Path) -> None:
    with running_command(tmp_path, "--steps", "200") as command:
        command.wait_until_serving(120)
        assert len(processes_of(tmp_path)) >= 3  # the command, the gateway, Triton
        command.process.send_signal(signal.SIGTERM)
        assert command.process.wait(timeout=60) == 128 + signal.SIGTERM
    assert processes_of(tmp_path) == set()
    assert not (tmp_path / "p.png").exists()


@pytest.mark.parametrize(
    ("handler", "outcome"),
    [(signal.SIG_DFL, pytest.raises(SystemExit)), (signal.SIG_IGN, nullcontext())],
    ids=["ends", "nohup"],
)
def test_a_closed_terminal_ends_the_block_unless_it_is_ignored(
    handler: signal.Handlers, outcome: AbstractContextManager[object]
) -> None:
    before = signal.signal(signal.SIGHUP, handler)
    try:
        with outcome, signals_end_the_block():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == handler
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_service_that_is_not_the_commands_own_is_not_asked(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        address = f"127.0.0.1:{foreign.getsockname()[1]}"
        output = str(tmp_path / "p.png")
        result = CliRunner().invoke(app, ["generate", "x", "--start-service", "--address", address, "-o", output])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"cannot start a service on {address}: something answers there already")


@pytest.mark.parametrize("command", [("serve",), ("generate", "x", "--start-service")], ids=lambda c: c[0])
def test_with_only_the_client_installed_it_says_what_is_missing(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient", None)  # as where it is not installed
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert "pip install -e '.[serve]'" in result.stderr
