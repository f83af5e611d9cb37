"""The way of `python -m bench.full_size`, with a checkpoint small enough for a test."""

from pathlib import Path

import pytest

from bench import full_size


def test_every_phase_leaves_its_result_and_a_second_start_repeats_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real export, real Triton: tens of seconds."""
    arguments = ["sd15", "--tiny", "--work", str(tmp_path)]
    full_size.main(arguments)
    table = capsys.readouterr().out
    for phase in ("checkpoint", "export", "torch", "triton", "comparison"):
        assert f"| {phase} | " in table
    assert "largest difference" in table
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    full_size.main(arguments)
    assert capsys.readouterr().out == table
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")} == written


def test_an_engine_that_differs_ends_the_command(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    right = np.random.RandomState(0).standard_normal((2, 4, 8, 8)).astype(np.float32)
    save_file({"output.prediction": right}, tmp_path / "step.safetensors")
    for wrong, passes in ((right, True), (right * 1.01, False), (right * np.nan, False)):
        save_file({"prediction": wrong}, tmp_path / "found.safetensors")
        arguments = ["sd15", "--tiny", "--work", str(tmp_path), "--phase", "comparison"]
        if passes:
            full_size.main(arguments)
        else:
            with pytest.raises(SystemExit, match="engine and torch differ"):
                full_size.main(arguments)
