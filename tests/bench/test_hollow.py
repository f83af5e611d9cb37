"""What `make bench` measures first: engines that compute next to nothing."""

from pathlib import Path

from bench import hollow
from server.catalog import read_catalog

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"


def test_of_the_default_repository_sd15_is_written_and_read_as_the_real_one(tmp_path: Path) -> None:
    hollow.write(REPOSITORY, tmp_path)
    found = read_catalog(tmp_path)
    assert list(found) == ["sd15"]
    real = read_catalog(REPOSITORY)["sd15"].specs
    assert found["sd15"].specs == tuple(spec for spec in real if spec.name != "sd15_image_encoder")
    for spec in found["sd15"].specs:
        assert (tmp_path / spec.name / "1" / "model.onnx").is_file()
