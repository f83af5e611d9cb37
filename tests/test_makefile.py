"""`make run` hands its prompt and its file to the command as they are."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("prompt", ['it\'s "red"', "a `touch backtick` house", "--help", "red; touch semicolon"])
def test_any_prompt_reaches_the_command_as_text(prompt: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS")}
    command = tmp_path / "bin" / "mediagen"
    command.parent.mkdir()
    command.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" > '{tmp_path}/arguments'\n")
    command.chmod(0o755)
    for stamp in ("created", "serve"):  # nothing to install
        (tmp_path / stamp).touch()
    subprocess.run(
        ["make", "--no-print-directory", "run", f"VENV={tmp_path}", f"PROMPT={prompt}", "OUT=my pictures/a.png"],
        cwd=ROOT,
        env=environment,
        check=True,
        timeout=30,
    )
    given = (tmp_path / "arguments").read_text().splitlines()
    assert given == ["generate", "--start-service", "-o", "my pictures/a.png", "--", prompt]
    assert not list(ROOT.glob("*tick")) + list(ROOT.glob("*colon"))
