"""What an engine is said to take is what its process takes: from its weights, before it is loaded."""

from pathlib import Path

import numpy as np
from engines import toy
from onnx import helper, numpy_helper
from safetensors.numpy import load_file, save_file

from server.engines import leftovers
from server.engines.memory import BYTES_A_PARAMETER, BYTES_AN_ENGINE, estimate
from server.engines.supervisor import EmbeddedTriton
from server.engines.triton import TritonEngines

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"


def test_every_parameter_counts_alike_however_it_is_stored_and_golden_tensors_do_not(tmp_path: Path) -> None:
    folder = tmp_path / "net" / "1"
    folder.mkdir(parents=True)
    half, single = np.zeros((3, 5), np.float16), np.zeros(7, np.float32)
    save_file({"half": half, "single": single}, folder / "weights.safetensors", {"made": "by hand"})
    save_file({"input.x": np.zeros(1000, np.float32)}, folder / "golden.safetensors")
    assert estimate(tmp_path, "net") == BYTES_AN_ENGINE + 22 * BYTES_A_PARAMETER


def test_of_a_file_that_two_engines_share_each_counts_what_its_own_graph_names() -> None:
    """An autoencoder's: the encoder is the smaller half, and both together are the file."""
    weights = REPOSITORY / "sd15_vae_encoder" / "1" / "weights.safetensors"
    everything = sum(tensor.size for tensor in load_file(weights).values())
    parameters = [
        (estimate(REPOSITORY, f"sd15_vae_{half}") - BYTES_AN_ENGINE) // BYTES_A_PARAMETER
        for half in ("encoder", "decoder")
    ]
    own = sum(tensor.size for name, tensor in load_file(weights).items() if name.startswith(("encoder.", "quant_")))
    assert parameters == [own, everything - own]


def test_weights_within_a_graph_count_as_they_are_computed(tmp_path: Path) -> None:
    """As in somebody's own network that makes control maps."""
    folder = tmp_path / "net" / "1"
    folder.mkdir(parents=True)
    initializers = [
        numpy_helper.from_array(np.zeros(100_000, np.float32), "weights"),
        numpy_helper.from_array(np.array([1, -1]), "shape"),
    ]
    graph = helper.make_graph([], "net", [], [], initializers)
    (folder / "model.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    counted = (estimate(tmp_path, "net") - BYTES_AN_ENGINE) / BYTES_A_PARAMETER
    assert 100_000 <= counted < 100_100


def test_without_a_graph_that_can_be_read_every_tensor_counts(tmp_path: Path) -> None:
    folder = tmp_path / "net" / "1"
    folder.mkdir(parents=True)
    save_file({"a": np.zeros(7, np.float32)}, folder / "weights.safetensors")
    for damaged in (b"", b"\xff" * 100, b"\x3a\x7f", b"\x3a\x02\x2a\x09", b"\x07", b"\x3a\x04\x2a\x02\x42\x01"):
        (folder / "model.onnx").write_bytes(damaged)
        assert estimate(tmp_path, "net") == BYTES_AN_ENGINE + 7 * BYTES_A_PARAMETER
    (folder / "model.onnx").unlink()
    assert estimate(tmp_path, "net") == BYTES_AN_ENGINE + 7 * BYTES_A_PARAMETER


def test_weights_that_cannot_be_read_count_as_none(tmp_path: Path) -> None:
    folder = tmp_path / "net" / "1"
    folder.mkdir(parents=True)
    assert estimate(tmp_path, "net") == BYTES_AN_ENGINE
    for damaged in (b"", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0[]", b"\x0a\0\0\0\0\0\0\0" + b'{"a": {}}  '):
        (folder / "weights.safetensors").write_bytes(damaged)
        assert estimate(tmp_path, "net") == BYTES_AN_ENGINE


async def test_a_process_takes_no_more_than_its_engine_was_said_to_and_all_of_its_parameters(tmp_path: Path) -> None:
    toy.write_wide(tmp_path)
    parameters = toy.WIDE_PARAMETERS * BYTES_A_PARAMETER
    said = estimate(tmp_path, toy.WIDE.name)
    assert said == BYTES_AN_ENGINE + parameters
    async with EmbeddedTriton(tmp_path, tmp_path / "cache") as triton:
        engines = TritonEngines(triton.address, (toy.WIDE,))
        await engines.load(toy.WIDE.name)
        await engines.run(toy.WIDE.name, toy.example(toy.WIDE))
        mark = triton.log_file.parent.name
        (pid,) = (pid for pid, line in leftovers.command_lines() if mark in line and f"{toy.WIDE.name}_0_0" in line)
        taken = memory_of(pid)
        await engines.close()
    assert parameters < taken < said


def memory_of(pid: int) -> int:
    """Bytes; what several processes share counts in parts."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
