"""One ONNX engine in OpenVINO on this machine's CPU: its settings and its call, in Triton's stub and in process alike.

Knows nothing of Triton or of specs. Importing it costs openvino (0.2 s, 24 MB), so the gateway imports it only for
in-process engines.
"""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# Its import reports to the vendor over the network, from a forked process, unless this module cannot be imported.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
import openvino  # noqa: E402

# the config parameter `precision` -> OpenVINO's name. What a CPU without bf16 instructions does with bf16 is fp32.
PRECISIONS: Mapping[str, str] = {"float32": "f32", "bfloat16": "bf16"}


class OpenVINOEngine:
    """A compiled model. One call at a time: it already uses every core."""

    def __init__(self, model: Path, outputs: Iterable[str], precision: str, cache: Path | None = None) -> None:
        """Read `model` (its external weights beside it) and compile it. Raises `ValueError` or `RuntimeError`.

        `cache` is a folder of this engine alone for what was compiled last: on two busy cores a UNet of 6M parameters
        then takes 1.3 s instead of 7.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"parameter precision is {precision!r}, must be one of {', '.join(PRECISIONS)}")
        if not model.is_file():
            raise ValueError(f"{model} is missing: export the checkpoint again")
        core = openvino.Core()
        settings = {"INFERENCE_PRECISION_HINT": PRECISIONS[precision], "PERFORMANCE_HINT": "LATENCY"}
        if cache is not None:
            settings["CACHE_DIR"] = str(cache)
        # Compiled from the model, not from its path: a path's cache key leaves the external weights out.
        compiled = core.compile_model(core.read_model(model), "CPU", settings)
        if cache is not None and not compiled.get_property("LOADED_FROM_CACHE"):
            _keep_newest(cache)
        self._request = compiled.create_infer_request()
        self._outputs = {name: compiled.output(name) for name in outputs}

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """One execution. The arrays returned are the caller's own; those given may be views of foreign memory."""
        results = self._request.infer(dict(inputs), share_inputs=True, share_outputs=True)
        return {name: np.array(results[port]) for name, port in self._outputs.items()}


def _keep_newest(cache: Path) -> None:
    """What was compiled from other weights is as large as they are and of no more use."""
    blobs = sorted(cache.glob("*.blob"), key=lambda blob: blob.stat().st_mtime_ns)
    for blob in blobs[:-1]:
        blob.unlink(missing_ok=True)
