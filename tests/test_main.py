"""`python -m server` as a process: it can be told to stop at any time."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_start_that_takes_long_is_given_up_when_told_to_stop(tmp_path: Path, number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # a Triton that takes connections and never answers
        environment = {
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'client'}",
            "PATH": os.defpath,
            "MEDIAGEN_GRPC_ADDRESS": "127.0.0.1:0",
            "MEDIAGEN_HTTP_ADDRESS": "127.0.0.1:0",
            "MEDIAGEN_TRITON": f"127.0.0.1:{silent.getsockname()[1]}",
            "MEDIAGEN_CACHE": str(tmp_path),
            "MEDIAGEN_ASSETS": str(tmp_path / "assets"),
        }
        silent.settimeout(60)
        with subprocess.Popen([sys.executable, "-m", "server"], env=environment, cwd=tmp_path) as process:
            connection, _ = silent.accept()  # it loads its engines
            try:
                process.send_signal(number)
                assert process.wait(timeout=20) == 0
            finally:
                connection.close()
                process.kill()


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("MEDIAGEN_SAFETY", "sd15", "holds no safety checker for it"),
        ("MEDIAGEN_SAFETY", "sd9", "MEDIAGEN_SAFETY names sd9"),
        ("MEDIAGEN_PROMPT_FILTER", "absent.txt", "absent.txt cannot be read: No such file"),
    ],
)
def test_what_a_deployment_asks_for_and_cannot_have_ends_the_start_with_a_sentence(
    tmp_path: Path, name: str, value: str, reason: str
) -> None:
    environment = {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'client'}",
        "PATH": os.defpath,
        "MEDIAGEN_TRITON": "none",
        "MEDIAGEN_CACHE": str(tmp_path),
        "MEDIAGEN_ASSETS": str(tmp_path / "assets"),
        name: value,
    }
    command = [sys.executable, "-m", "server"]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("mediagen cannot start: ")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
