"""What happens to weights of every kind on their way into `weights.safetensors`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from export import ExportError
from export.checkpoint import Checkpoint
from export.weights import check_weights, load_component, stored_tensors, write_weights

Changed = Callable[..., Checkpoint]
UNET = "unet/diffusion_pytorch_model.safetensors"


def unet_file(checkpoint: Checkpoint) -> Path:
    return checkpoint.path(UNET)


def written(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    write_weights(load_component(UNet2DConditionModel, checkpoint, "unet"), checkpoint, "unet", path)
    return path


def test_a_half_precision_checkpoint_is_taken_over_byte_for_byte(checkpoint: Checkpoint, tmp_path: Path) -> None:
    assert written(checkpoint, tmp_path).read_bytes() == unet_file(checkpoint).read_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions_are_rounded_to_half(dtype: torch.dtype, changed: Changed, tmp_path: Path) -> None:
    checkpoint = changed()
    original = {name: (tensor.float() * 1.0001).to(dtype) for name, tensor in load_file(unet_file(checkpoint)).items()}
    save_file(original, unet_file(checkpoint))
    found = load_file(written(checkpoint, tmp_path))
    assert found.keys() == original.keys()
    for name, tensor in original.items():
        torch.testing.assert_close(found[name], tensor.half(), rtol=0, atol=0)


def test_a_file_written_anew_is_one_that_others_read(changed: Changed, tmp_path: Path) -> None:
    """Tensor by tensor, since a UNet of 10 GB leaves no room for a copy."""
    checkpoint = changed()
    save_file(
        {name: tensor.float() for name, tensor in load_file(unet_file(checkpoint)).items()}, unet_file(checkpoint)
    )
    path = written(checkpoint, tmp_path)
    assert all(place.offset % 8 == 0 for place in list(stored_tensors(path).values())[:1])
    assert load_file(path).keys() == stored_tensors(path).keys()


def test_shards_become_one_file(changed: Changed, tmp_path: Path) -> None:
    checkpoint = changed()
    whole = load_file(unet_file(checkpoint))
    UNet2DConditionModel.from_pretrained(checkpoint.path("unet"), torch_dtype=torch.float16).save_pretrained(
        tmp_path / "sharded", max_shard_size="20KB"
    )
    shutil.rmtree(checkpoint.path("unet"))
    shutil.copytree(tmp_path / "sharded", checkpoint.path("unet"))
    assert len(checkpoint.weights("unet").files) > 1
    found = load_file(written(checkpoint, tmp_path))
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_the_module_that_is_the_reference_holds_the_rounded_weights(changed: Changed) -> None:
    checkpoint = changed()
    save_file({name: t.float() + 1e-5 for name, t in load_file(unet_file(checkpoint)).items()}, unet_file(checkpoint))
    module = load_component(UNet2DConditionModel, checkpoint, "unet")
    for tensor in module.state_dict().values():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, tensor.half().float())


def test_a_text_encoder_with_the_names_of_older_files_gets_those_of_the_module(
    changed: Changed, tmp_path: Path
) -> None:
    """Published SD 1.5 files begin every name with `text_model.` and store position ids."""
    checkpoint = changed()
    file = checkpoint.path("text_encoder/model.safetensors")
    own = load_file(file)
    old = {f"text_model.{name}": tensor for name, tensor in own.items()}
    old["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(old, file, {"format": "pt"})
    path = tmp_path / "weights.safetensors"
    write_weights(load_component(CLIPTextModel, checkpoint, "text_encoder"), checkpoint, "text_encoder", path)
    found = load_file(path)
    assert found.keys() == own.keys()
    assert all(torch.equal(found[name], own[name]) for name in own)


def test_a_vae_with_the_attention_names_of_older_files_gets_those_of_the_module(
    changed: Changed, tmp_path: Path
) -> None:
    """Published SD 1.5 files call the projections query, key, value and proj_attn."""
    checkpoint = changed()
    file = checkpoint.path("vae/diffusion_pytorch_model.safetensors")
    own = load_file(file)
    renamed = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = dict(own)
    for name in own:
        for new, former in renamed.items():
            if f"attentions.0.{new}." in name:
                old[name.replace(new, former)] = old.pop(name)
    assert old.keys() != own.keys()
    save_file(old, file, {"format": "pt"})
    path = tmp_path / "weights.safetensors"
    write_weights(load_component(AutoencoderKL, checkpoint, "vae"), checkpoint, "vae", path)
    found = load_file(path)
    assert all(torch.equal(found[name], own[name]) for name in own)


def _with(name: str, value: float) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        tensors = {key: tensor.float() for key, tensor in load_file(file).items()}
        tensors[name].view(-1)[0] = value
        save_file(tensors, file)

    return damage


def _scaled(name: str, factor: float) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        tensors = {key: tensor.float() for key, tensor in load_file(file).items()}
        tensors[name] *= factor
        save_file(tensors, file)

    return damage


def _without(name: str) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        save_file({key: tensor for key, tensor in load_file(file).items() if key != name}, file)

    return damage


def _misshapen(file: Path) -> None:
    save_file({**load_file(file), "conv_in.bias": torch.zeros(3, dtype=torch.float16)}, file)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-2])


def _not_safetensors(file: Path) -> None:
    file.write_bytes(b"PK\x03\x04" * 100)


def _pickled(file: Path) -> None:
    file.rename(file.with_suffix(".bin"))


def _gone(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_with("conv_in.weight", float("nan")), "holds NaN or infinity in conv_in.weight"),
        (_with("conv_in.weight", float("-inf")), "holds NaN or infinity in conv_in.weight"),
        (_with("conv_in.weight", 70000.0), "above 65504"),
        (_scaled("conv_in.weight", 1e-7), "too small for half precision in conv_in.weight"),
        (_cut, "cut short"),
        (_not_safetensors, "is not a safetensors file"),
        (_pickled, "only pickles"),
        (_gone, "has no weights"),
    ],
)
def test_weights_that_cannot_be_used_are_refused_with_their_file_and_the_reason(
    damage: Callable[[Path], None], reason: str, changed: Changed
) -> None:
    checkpoint = changed()
    damage(unet_file(checkpoint))
    with pytest.raises(ExportError, match=reason) as caught:
        check_weights(checkpoint, "unet")
    assert str(checkpoint.path("unet")) in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(_without("conv_in.weight"), "missing conv_in.weight"), (_misshapen, "conv_in.bias")],
)
def test_weights_that_do_not_fit_their_config_are_refused_with_their_file_and_the_reason(
    damage: Callable[[Path], None], reason: str, changed: Changed
) -> None:
    checkpoint = changed()
    damage(unet_file(checkpoint))
    with pytest.raises(ExportError, match=reason) as caught:
        load_component(UNet2DConditionModel, checkpoint, "unet")
    assert str(unet_file(checkpoint)) in str(caught.value)


def test_the_offsets_of_a_file_are_those_of_its_tensors(checkpoint: Checkpoint) -> None:
    file = unet_file(checkpoint)
    content, tensors = file.read_bytes(), load_file(file)
    for name, place in stored_tensors(file).items():
        expected = tensors[name].numpy()
        assert content[place.offset : place.offset + place.length] == expected.tobytes()
        assert place.shape == expected.shape


def test_an_index_that_names_a_missing_shard_is_refused(changed: Changed) -> None:
    checkpoint = changed()
    unet_file(checkpoint).rename(checkpoint.path("unet/a.safetensors"))
    index = {"weight_map": {"conv_in.weight": "a.safetensors", "conv_in.bias": "b.safetensors"}}
    checkpoint.path(f"{UNET}.index.json").write_text(json.dumps(index))
    with pytest.raises(ExportError, match=r"missing: b\.safetensors"):
        checkpoint.weights("unet")
