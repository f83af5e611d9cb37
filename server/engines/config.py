"""What this side reads from an engine's `config.pbtxt`; Triton reads the rest."""

from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2


@dataclass(frozen=True)
class Config:
    """Where the graph is and how exactly it computes."""

    model: Path
    precision: str  # "float32" or "bfloat16"


def read(repository: Path, engine: str) -> Config:
    """Raises `ValueError` naming the file when it cannot be read."""
    path = repository / engine / "config.pbtxt"
    try:
        config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    except (OSError, text_format.ParseError) as error:
        raise ValueError(f"{path} cannot be read: {error}; export the checkpoint again") from error
    file = config.default_model_filename or "model.onnx"
    return Config(path.parent / "1" / file, config.parameters["precision"].string_value or "float32")
