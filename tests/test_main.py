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
