"""Which checkpoints are accepted, which files of them are read, and what the card says."""

from collections.abc import Callable
from pathlib import Path

import pytest

from export import ExportError
from export.checkpoint import Checkpoint, choose_weights, needed_files, open_checkpoint
from export.recipes import sd15
from server.families.sd15 import Sd15Card
from server.levels import Scheduler

SCHEDULER = "scheduler/scheduler_config.json"

# The published Stable Diffusion 1.5 repository.
PUBLISHED = """
.gitattributes README.md feature_extractor/preprocessor_config.json model_index.json safety_checker/config.json
safety_checker/model.fp16.safetensors safety_checker/model.safetensors safety_checker/pytorch_model.bin
safety_checker/pytorch_model.fp16.bin scheduler/scheduler_config.json text_encoder/config.json
text_encoder/model.fp16.safetensors text_encoder/model.safetensors text_encoder/pytorch_model.bin
text_encoder/pytorch_model.fp16.bin tokenizer/merges.txt tokenizer/special_tokens_map.json
tokenizer/tokenizer_config.json tokenizer/vocab.json unet/config.json unet/diffusion_pytorch_model.bin
unet/diffusion_pytorch_model.fp16.bin unet/diffusion_pytorch_model.fp16.safetensors
unet/diffusion_pytorch_model.non_ema.bin unet/diffusion_pytorch_model.non_ema.safetensors
unet/diffusion_pytorch_model.safetensors v1-5-pruned-emaonly.ckpt v1-5-pruned-emaonly.safetensors v1-5-pruned.ckpt
v1-5-pruned.safetensors v1-inference.yaml vae/config.json vae/diffusion_pytorch_model.bin
vae/diffusion_pytorch_model.fp16.bin vae/diffusion_pytorch_model.fp16.safetensors
vae/diffusion_pytorch_model.safetensors
""".split()  # noqa: SIM905  wrapped text reads better than 36 quoted lines


def test_of_the_published_repository_only_what_is_needed_is_downloaded() -> None:
    assert sorted(needed_files(PUBLISHED, tuple(sd15.COMPONENTS))) == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.fp16.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ]


def test_shards_of_the_chosen_precision_are_downloaded_with_their_index() -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    names = [f"text_encoder/{name}" for name in ("model.safetensors.index.json", *shards, "pytorch_model.bin")]
    assert sorted(needed_files(names, ("text_encoder",))) == sorted(names[:3])


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors", "model.fp16.safetensors"], "model.fp16.safetensors"),
        (["model.non_ema.safetensors", "model.safetensors"], "model.safetensors"),
        (["model.safetensors.index.json", "model-00001-of-00001.safetensors"], "model.safetensors.index.json"),
        (["diffusion_pytorch_model.bin"], None),
    ],
)
def test_half_precision_is_preferred_and_pickles_are_never_chosen(names: list[str], chosen: str | None) -> None:
    assert choose_weights(names) == chosen


def test_a_half_precision_variant_is_read_where_there_is_one(changed: Callable[..., Checkpoint]) -> None:
    checkpoint = changed()
    file = checkpoint.path("unet/diffusion_pytorch_model.safetensors")
    half = file.with_name("diffusion_pytorch_model.fp16.safetensors")
    file.rename(half)
    weights = checkpoint.weights("unet")
    assert (weights.files, weights.variant) == ((half,), "fp16")


def test_the_card_says_what_the_checkpoint_says(checkpoint: Checkpoint) -> None:
    assert sd15.card(checkpoint, "tiny", "a tiny one", None) == Sd15Card(
        name="tiny",
        family="sd15",
        title="a tiny one",
        source="tiny",
        latent_channels=4,
        pixels_per_latent=8,
        scheduler=Scheduler(
            num_train_timesteps=1000,
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            steps_offset=1,
            set_alpha_to_one=False,
        ),
        inpainting=False,
        safety_checker=False,
        control=True,
        image_side=0,
        image_width=0,
        vision_width=0,
        image_patches=0,
        ip_blocks=(),
        ip_plus=False,
        text_width=16,
        text_layers=3,
    )


def test_what_the_unet_predicts_is_not_guessed(changed: Callable[..., Checkpoint]) -> None:
    checkpoint = changed(SCHEDULER, prediction_type="absent")
    with pytest.raises(ExportError, match="give --prediction-type"):
        sd15.card(checkpoint, "tiny", "", None)
    assert sd15.card(checkpoint, "tiny", "", "epsilon").scheduler.prediction_type == "epsilon"


@pytest.mark.parametrize(
    ("file", "fields", "reason"),
    [
        (SCHEDULER, {"prediction_type": "sample"}, "prediction_type 'sample'; built are: epsilon, v_prediction"),
        (SCHEDULER, {"trained_betas": [0.1]}, "trained_betas"),
        (SCHEDULER, {"timestep_spacing": "linspace"}, "timestep_spacing 'linspace'"),
        (SCHEDULER, {"clip_sample": True}, "clip_sample is True"),
        (SCHEDULER, {"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule 'squaredcos_cap_v2'"),
        (SCHEDULER, {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        (SCHEDULER, {"beta_end": "absent"}, "lacks 'beta_end'"),
        ("unet/config.json", {"in_channels": 8}, r"unet in_channels \(9 where it inpaints\) is 8, must be 4"),
        ("text_encoder/config.json", {"num_hidden_layers": "absent"}, "lacks 'num_hidden_layers'"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "addition_embed_type"),
        ("unet/config.json", {"cross_attention_dim": 768}, "cross_attention_dim is 768, must be 16"),
        ("unet/config.json", {"cross_attention_dim": "absent"}, "lacks 'cross_attention_dim'"),
    ],
)
def test_a_checkpoint_of_another_shape_is_refused_with_the_field(
    file: str, fields: dict[str, object], reason: str, changed: Callable[..., Checkpoint]
) -> None:
    checkpoint = changed(file, **fields)
    with pytest.raises(ExportError, match=reason):
        sd15.card(checkpoint, "tiny", "", None)


def test_a_prediction_type_that_contradicts_the_checkpoint_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(ExportError, match="'epsilon' but the checkpoint's scheduler says 'v_prediction'"):
        sd15.card(checkpoint, "tiny", "", "epsilon")


def test_places_that_are_no_checkpoint_are_refused(tmp_path: Path, checkpoint_folder: Path) -> None:
    for place, revision, reason in (
        (str(tmp_path), None, r"model_index\.json is missing"),
        (str(tmp_path / "nowhere"), None, "neither a folder nor a hub id"),
        (str(checkpoint_folder), "main", "is for hub ids"),
    ):
        with pytest.raises(ExportError, match=reason):
            open_checkpoint(place, revision, ())


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ExportError, match="owner/name could not be fetched from the hub"):
        open_checkpoint("owner/name", None, ())


def test_a_hub_that_refuses_the_connection_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(ExportError, match="owner/name could not be fetched from the hub") as refused:
        open_checkpoint("owner/name", None, ())
    assert "\n" not in str(refused.value)
