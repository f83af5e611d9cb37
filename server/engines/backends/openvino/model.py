"""Triton's `backend: "openvino"` for the embedded Triton: a python-based backend that reads what the native one reads.

Runs in Triton's python stub, one process an engine, and imports nothing of the gateway but the OpenVINO runtime. The
supervisor says through the environment what to import from and where to keep compiled models.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

# Triton's stub runs Python isolated: PYTHONPATH is ignored, and a virtual environment is not seen.
sys.path[:0] = os.environ["MEDIAGEN_PYTHON_PATH"].split(os.pathsep)

import numpy as np  # noqa: E402
import triton_python_backend_utils as pb_utils  # noqa: E402  (lies beside the stub)

from server.engines.openvino_runtime import OpenVINOEngine  # noqa: E402


class TritonPythonModel:
    """The class that Triton looks for; the method names are Triton's."""

    def initialize(self, args: dict[str, str]) -> None:
        """Compile the engine. An exception here becomes Triton's answer to the load."""
        if int(np.__version__.split(".")[0]) >= 2:
            raise RuntimeError(f"numpy {np.__version__} corrupts tensors in this Triton: install numpy<2")
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"], args["model_version"])
        precision = config["parameters"].get("precision", {"string_value": "float32"})["string_value"]
        file = config["default_model_filename"] or "model.onnx"
        self._inputs = [port["name"] for port in config["input"]]
        outputs = [port["name"] for port in config["output"]]
        # a variant is one of many and goes soon: what was compiled of it would stay
        is_variant = Path(args["model_repository"], "variant.json").is_file()
        cache = None if is_variant else Path(os.environ["MEDIAGEN_CACHE"], config["name"])
        self._engine = OpenVINOEngine(folder / file, outputs, precision, cache)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request by itself: rows that belong together already come in one request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            results = self._engine.run(
                {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs}
            )
        except Exception as error:  # whatever OpenVINO says belongs to this request alone
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"OpenVINO: {error}"))
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, result) for name, result in results.items()])
