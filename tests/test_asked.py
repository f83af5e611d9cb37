"""What a request puts on top of its engine: names to assets, pictures to what networks see, and all that is wrong."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from mediagen.v1 import image_pb2 as pb
from PIL import Image as PillowImage
from safetensors.numpy import save_file

from server.adapters.control import Control, NoControl
from server.adapters.ip_adapter import ImagePrompt, NoImagePrompt
from server.adapters.weights import variants
from server.asked import weights
from server.asked.weights import MAX_LORAS
from server.assets.asset import Asset, AssetState, AssetType, Facts
from server.catalog import Catalog, read_catalog
from server.http import facade
from server.pipeline import parameters
from server.plan import Plan
from server.prompts.styles import STYLES
from server.request import plan
from server.rpc.effective import effective
from server.violations import InvalidRequest

SEED = 5
LORAS = ("blueprint", "sepia")


@dataclass(frozen=True)
class Drawer:
    """A shelf of assets that lie in one folder."""

    assets: tuple[Asset, ...]
    folder: Path

    def find(self, name_or_id: str, type: AssetType, /) -> Asset | None:
        for asset in self.assets:
            if asset.type is type and name_or_id in (asset.name, asset.id):
                return asset
        return None

    def names(self, type: AssetType, /) -> Sequence[str]:
        return sorted(asset.name for asset in self.assets if asset.type is type)

    def path(self, asset: Asset, /) -> Path:
        return self.folder / f"{asset.name}.safetensors"


def asset(name: str, type: AssetType, *engines: str, components: tuple[str, ...] = ("unet",), **facts: str) -> Asset:
    return Asset(
        id=f"id-of-{name}",
        name=name,
        type=type,
        owner="",
        public=True,
        state=AssetState.READY,
        reason="",
        size_bytes=1,
        sha256=f"{name:0<64}",
        description="",
        create_time=datetime(2026, 1, 1, tzinfo=UTC),
        facts=Facts(engines, "sd15", components, 0, facts.get("preprocessor", ""), facts.get("projection", "")),
    )


@pytest.fixture(scope="module")
def engines(repository: Path, sdxl_catalog: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """SD 1.5 and SDXL with all the graphs that adapters may ask for, as data."""
    folder = tmp_path_factory.mktemp("adapted")
    cards = {"sd15": read_catalog(repository)["sd15"].card, "sdxl": sdxl_catalog["sdxl"].card}
    told = {"control": True, "image_side": 32, "image_width": 8, "vision_width": 8, "image_patches": 5}
    for name, card in cards.items():
        more = {"transfer_side": 32, "transfer_lora": "f" * 64} if name == "sdxl" else {}
        fields = asdict(card) | told | more | {"ip_blocks": ["down_blocks.1.a", "mid_block.a", "up_blocks.1.a"]}
        folder.joinpath(f"{name}.json").write_text(json.dumps(fields))
    tokenizer = (repository / "sd15_text_encoder" / "tokenizer.json").read_text()
    for text in ("sd15_text_encoder", "sdxl_text_encoder", "sdxl_text_encoder_2"):
        folder.joinpath(text).mkdir()
        folder.joinpath(text, "tokenizer.json").write_text(tokenizer)
    return read_catalog(folder)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Drawer:
    folder = tmp_path_factory.mktemp("shelf")
    save_file({"<cat>": np.ones((2, 128), np.float16)}, folder / "cat.safetensors")
    assets = (
        *(asset(name, AssetType.LORA, "sd15", components=("unet", "text_encoder")) for name in LORAS),
        asset("neon", AssetType.LORA, "sdxl"),
        asset("neon-sign", AssetType.LORA, "sdxl", components=("unet", "text_encoder_2")),
        asset("paper", AssetType.CHECKPOINT, "sd15", components=("unet", "vae")),
        asset("print", AssetType.VAE, "sd15", components=("vae",)),
        asset("cat", AssetType.TEXTUAL_INVERSION, "sd15", components=("text_encoder",)),
        asset("edges", AssetType.CONTROLNET, "sd15", components=("controlnet",), preprocessor="canny"),
        asset("far", AssetType.CONTROLNET, "sd15", components=("controlnet",), preprocessor="depth"),
        asset("fill", AssetType.CONTROLNET, "sd15", components=("controlnet",), preprocessor="inpaint"),
        asset("unknown", AssetType.CONTROLNET, "sd15", components=("controlnet",)),
        asset("see-xl", AssetType.IP_ADAPTER, "sdxl", components=("ip_adapter",), projection="linear"),
        asset("see", AssetType.IP_ADAPTER, "sd15", components=("ip_adapter",), projection="linear"),
        asset("see-more", AssetType.IP_ADAPTER, "sd15", components=("ip_adapter",), projection="plus"),
    )
    return Drawer(assets, folder)


def picture(width: int = 64, height: int = 48, colour: tuple[int, int, int] = (200, 30, 40)) -> bytes:
    file = BytesIO()
    PillowImage.new("RGB", (width, height), colour).save(file, "PNG")
    return file.getvalue()


def sd15(**fields: object) -> pb.GenerateRequest:
    return pb.GenerateRequest(engine="sd15", prompt="a red house", seed=SEED, **fields)  # type: ignore[arg-type]


def sdxl(**fields: object) -> pb.GenerateRequest:
    return pb.GenerateRequest(engine="sdxl", prompt="a house green", seed=SEED, **fields)  # type: ignore[arg-type]


def wrong(request: pb.GenerateRequest, engines: Catalog, shelf: Drawer) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as refused:
        plan(request, engines, shelf)
    return {violation.field: violation.description for violation in refused.value.violations}


def models(made: Plan) -> set[str]:
    return {name.partition("--")[0] for name in effective(made).models if "--" in name}


def test_a_lora_changes_the_networks_that_it_has_weights_for_and_no_other(engines: Catalog, shelf: Drawer) -> None:
    made = plan(sd15(loras={"blueprint": 0.5}), engines, shelf)
    assert made.variants.keys() == {"sd15_text_encoder", "sd15_unet"} == models(made)
    assert plan(sd15(), engines, shelf).variants == {}


def test_the_same_wish_is_the_same_network_however_it_is_written(engines: Catalog, shelf: Drawer) -> None:
    one = plan(sd15(loras={"blueprint": 0.5, "sepia": -1.0}), engines, shelf)
    other = plan(sd15(loras={"id-of-sepia": -1.0, "blueprint": 0.25, "id-of-blueprint": 0.25}), engines, shelf)
    assert effective(one).models == effective(other).models
    assert effective(one).models != effective(plan(sd15(loras={"blueprint": 0.5}), engines, shelf)).models


def test_old_callers_names_have_their_owner_before_them(engines: Catalog, shelf: Drawer) -> None:
    made = plan(sd15(loras={"octoai:blueprint": 1.0}), engines, shelf)
    assert made.variants == plan(sd15(loras={"blueprint": 1.0}), engines, shelf).variants
    assert "loras[somebody:blueprint]" in wrong(sd15(loras={"somebody:blueprint": 1.0}), engines, shelf)


def test_a_file_names_its_adapters_in_one_order(engines: Catalog, shelf: Drawer) -> None:
    """A map of the interface has another order in every process."""
    names = ["blueprint", "id-of-blueprint", "id-of-sepia", "octoai:blueprint", "octoai:sepia", "sepia"]
    made = plan(sd15(loras=dict.fromkeys(reversed(names), 0.1)), engines, shelf)
    assert list(made.adapters.loras) == names


def test_a_lora_without_weight_is_none(engines: Catalog, shelf: Drawer) -> None:
    assert plan(sd15(loras={"blueprint": 0.0}), engines, shelf).variants == {}


def test_a_vae_lies_over_the_checkpoints_own(engines: Catalog, shelf: Drawer) -> None:
    made = plan(sd15(checkpoint="paper", vae="print"), engines, shelf)
    assert [part.kind for part in made.variants["sd15_vae_decoder"].parts] == ["checkpoint", "vae"]
    assert [part.kind for part in made.variants["sd15_unet"].parts] == ["checkpoint"]


def test_an_encoder_that_does_not_run_has_no_variant(engines: Catalog, shelf: Drawer) -> None:
    assert models(plan(sd15(vae="print"), engines, shelf)) == {"sd15_vae_decoder"}
    begun = plan(sd15(vae="print", init_image=picture()), engines, shelf)
    assert models(begun) == {"sd15_vae_decoder", "sd15_vae_encoder"}


@pytest.mark.parametrize(
    ("fields", "field", "said"),
    [
        ({"checkpoint": "papre"}, "checkpoint", "paper"),
        ({"vae": "nothing-like-it"}, "vae", "ListAssets"),
        ({"loras": {"blueprint": math.nan}}, "loras[blueprint]", "finite"),
        ({"loras": {"blueprint": -math.inf}}, "loras[blueprint]", "finite"),
        ({"loras": {"blueprint": 1e308, "id-of-blueprint": 1e308}}, "loras[id-of-blueprint]", "too large together"),
        ({"loras": {"neon": 1.0}}, "loras[neon]", "fits sdxl and not sd15"),
        ({"loras": {f"l{i}": 1.0 for i in range(100)}}, "loras", f"at most {MAX_LORAS}"),
        ({"loras": {"../../etc/passwd": 1.0}}, "loras[../../etc/passwd]", "no LoRA"),
        ({"loras": {"print": 1.0}}, "loras[print]", "no LoRA"),  # it is a VAE
        ({"textual_inversions": {"cat": ""}}, "textual_inversions[cat]", "trigger"),
        ({"textual_inversions": {"cat": "a (b)"}}, "textual_inversions[cat]", "brackets"),
        ({"textual_inversions": {"cat": "x" * 101}}, "textual_inversions[cat]", "at most 100"),
        ({"controlnet": "edges"}, "controlnet", "controlnet_image"),
        ({"controlnet_image": b"x"}, "controlnet_image", "no picture"),
        ({"controlnet": "edges", "controlnet_image": b"GIF89a"}, "controlnet_image", "GIF"),
        ({"controlnet_conditioning_scale": math.inf}, "controlnet_conditioning_scale", "not in 0..100"),
        ({"controlnet_conditioning_scale": 101.0}, "controlnet_conditioning_scale", "not in 0..100"),
        ({"controlnet_early_stop": 0.5}, "controlnet_early_stop", "without controlnet"),
        ({"ip_adapter_scale": 0.5}, "ip_adapter_scale", "without ip_adapter_image"),
        ({"ip_adapter": "see"}, "ip_adapter", "without ip_adapter_image"),
    ],
)
def test_what_is_wrong_is_told_by_field_with_what_is_allowed(
    engines: Catalog, shelf: Drawer, fields: dict[str, object], field: str, said: str
) -> None:
    assert said in wrong(sd15(**fields), engines, shelf)[field]


def test_everything_wrong_is_told_at_once(engines: Catalog, shelf: Drawer) -> None:
    request = sd15(
        checkpoint="a",
        vae="b",
        loras={"c": 1.0, "blueprint": math.inf},
        textual_inversions={"d": "e"},
        controlnet="f",
        controlnet_image=b"g",
        controlnet_conditioning_scale=-1,
        controlnet_early_stop=2,
        ip_adapter_image=b"h",
        ip_adapter_scale=2,
        width=7,
    )
    assert wrong(request, engines, shelf).keys() == {
        *("checkpoint", "vae", "loras[c]", "loras[blueprint]", "textual_inversions[d]", "controlnet"),
        *("controlnet_image", "controlnet_conditioning_scale", "controlnet_early_stop"),
        *("ip_adapter_image", "ip_adapter_scale", "width"),
    }


def test_an_inversion_is_what_token_ids_below_zero_stand_for(engines: Catalog, shelf: Drawer) -> None:
    request = sd15(textual_inversions={"cat": "mycat"})
    request.prompt = "a mycat on a red house"
    made = plan(request, engines, shelf)
    (text,) = made.prompts
    assert made.prompts[text].chunks[0].ids[2:4] == (-1, -2)
    assert made.vectors[text.engine].shape == (2, 128)
    assert made.variants == {}  # and costs no network


def test_a_control_picture_is_seen_at_the_requests_size(engines: Catalog, shelf: Drawer) -> None:
    made = plan(sd15(controlnet="edges", controlnet_image=picture()), engines, shelf)
    assert isinstance(made.control, Control)
    assert made.control.picture.shape == (512, 512, 3)
    assert (made.control.preprocessor, made.control.scale, made.control.early_stop) == ("canny", 1.0, 1.0)
    assert models(made) == {"sd15_unet_control"}


def test_a_control_picture_may_be_the_map(engines: Catalog, shelf: Drawer) -> None:
    fields = {"controlnet_image": picture(), "controlnet_preprocess": False}
    for name in ("edges", "far", "unknown"):
        made = plan(sd15(controlnet=name, **fields), engines, shelf)
        assert isinstance(made.control, Control)
        assert made.control.preprocessor == ""


@pytest.mark.parametrize(
    ("name", "said"),
    [("far", "no preprocessor 'depth'"), ("unknown", "does not say"), ("fill", "mask_image")],
)
def test_a_map_that_nobody_can_make_is_a_violation_that_says_what_to_do(
    engines: Catalog, shelf: Drawer, name: str, said: str
) -> None:
    told = wrong(sd15(controlnet=name, controlnet_image=picture()), engines, shelf)["controlnet_preprocess"]
    assert said in told
    assert "controlnet_preprocess false" in told


@pytest.mark.parametrize(
    ("more", "field"),
    [({"width": 500}, "width"), ({"init_image": b"x"}, "init_image"), ({"mask_image": b"x"}, "mask_image")],
)
def test_who_sent_what_an_inpainting_map_is_made_of_is_not_told_to_send_it(
    engines: Catalog, shelf: Drawer, more: dict[str, object], field: str
) -> None:
    sent = {"init_image": picture(), "mask_image": picture(colour=(255, 255, 255))}
    asked = {"controlnet": "fill", "controlnet_image": picture(), **sent}
    plan(sd15(**asked), engines, shelf)
    assert wrong(sd15(**{**asked, **more}), engines, shelf).keys() == {field}


def test_after_an_early_stop_the_plain_network_goes_on(engines: Catalog, shelf: Drawer) -> None:
    request = sd15(controlnet="edges", controlnet_image=picture(), controlnet_early_stop=0.5, steps=10)
    counts = plan(request, engines, shelf).executions
    assert (counts["sd15_unet_control"], counts["sd15_unet"]) == (5, 5)


def test_the_first_ip_adapter_that_fits_is_taken_where_none_is_named(engines: Catalog, shelf: Drawer) -> None:
    made = plan(sd15(ip_adapter_image=picture()), engines, shelf)
    assert effective(made).ip_adapter == "see"
    assert isinstance(made.image_prompt, ImagePrompt)
    assert (made.image_prompt.pixel_values.shape, made.image_prompt.mask.shape) == ((3, 32, 32), (64, 64))
    assert made.image_prompt.mask.min() == 1
    assert models(made) == {"sd15_unet_ip", "sd15_ip_projection"}
    assert effective(plan(sdxl(ip_adapter_image=picture()), engines, shelf)).ip_adapter == "see-xl"


def test_where_no_ip_adapter_fits_the_picture_is_refused(engines: Catalog) -> None:
    told = wrong(sd15(ip_adapter_image=picture()), engines, Drawer((), Path("nowhere")))
    assert "no IP-Adapter that fits sd15" in told["ip_adapter_image"]


def test_a_black_mask_applies_nowhere_and_is_refused(engines: Catalog, shelf: Drawer) -> None:
    black = picture(colour=(0, 0, 0))
    told = wrong(sd15(ip_adapter_image=picture(), ip_adapter_mask_image=black), engines, shelf)
    assert "paint white" in told["ip_adapter_mask_image"]


def test_a_mask_applies_where_its_white_is_drawn_enlarged(engines: Catalog, shelf: Drawer) -> None:
    painted = white(slice(0, 256))
    asked = {"init_image": picture(512, 512), "mask_image": painted, "ip_adapter_image": picture()}
    enlarged = {**asked, "inpaint_full_res": True, "inpaint_full_res_padding": 0}
    for fields, share in ((asked, 0.25), (enlarged, 1.0)):
        made = plan(sd15(**fields, ip_adapter_mask_image=painted), engines, shelf)
        assert isinstance(made.image_prompt, ImagePrompt)
        assert made.image_prompt.mask.mean() == pytest.approx(share, abs=0.02)
    told = wrong(sd15(**enlarged, ip_adapter_mask_image=white(slice(448, 512))), engines, shelf)
    assert "black everywhere that is drawn" in told["ip_adapter_mask_image"]


def white(columns: slice) -> bytes:
    """A mask of 512x512 that is white there, in the middle half of its height."""
    pixels = np.zeros((512, 512), np.uint8)
    pixels[128:384, columns] = 255
    file = BytesIO()
    PillowImage.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_a_controlnet_and_an_ip_adapter_are_not_taken_together(engines: Catalog, shelf: Drawer) -> None:
    request = sd15(controlnet="edges", controlnet_image=picture(), ip_adapter_image=picture())
    assert wrong(request, engines, shelf).keys() == {"ip_adapter_image"}


def transferred(trigger: str, *images: bytes) -> dict[str, pb.TransferImages]:
    return {trigger: pb.TransferImages(images=images)}


def test_transfer_images_bring_their_encoders_lora(engines: Catalog, shelf: Drawer) -> None:
    made = plan(sdxl(transfer_images=transferred("green", picture(), picture())), engines, shelf)
    (transfer,) = made.transfers
    assert transfer.pixel_values.shape == (2, 3, 32, 32)
    assert [part.sha256 for part in made.variants["sdxl_unet"].parts] == ["f" * 64]
    assert effective(made).transfer_images == {"green": 2}
    assert "green" not in made.adapters.loras


@pytest.mark.parametrize(
    ("trigger", "images", "said"),
    [
        ("green", [], "0 pictures; give 1 to 4"),
        ("green", [picture()] * 5, "5 pictures"),
        ("green", [b"x"], "no picture"),
        ("absent", [picture()], "0 times"),
        ("a", [picture()], "no word before it"),
    ],
)
def test_wrong_transfer_images_are_told_by_their_word(
    engines: Catalog, shelf: Drawer, trigger: str, images: list[bytes], said: str
) -> None:
    assert (
        said
        in wrong(sdxl(transfer_images=transferred(trigger, *images)), engines, shelf)[f"transfer_images[{trigger}]"]
    )


def test_a_word_of_the_style_is_none_for_transfer_images(engines: Catalog, shelf: Drawer) -> None:
    """It would stand for them where the style has it, too."""
    request = sdxl(transfer_images=transferred("green", picture()), style_preset="Watercolor")
    plan(request, engines, shelf)
    word = next(word for word in STYLES["Watercolor"].applied("").replace(",", "").split() if word.isalpha())
    request = sdxl(transfer_images=transferred(word, picture()), style_preset="Watercolor")
    request.prompt = f"a house {word}"
    with pytest.raises(InvalidRequest) as refused:
        plan(request, engines, shelf)
    (told,) = refused.value.violations
    assert told.field == f"transfer_images[{word}]"
    assert "the style Watercolor" in told.description
    assert told.judged_by == {"style_preset"}
    request.style_preset = ""
    plan(request, engines, shelf)


@pytest.mark.parametrize("word", ["green", "house green", "green one"])
def test_words_for_pictures_and_for_inversions_are_apart(engines: Catalog, shelf: Drawer, word: str) -> None:
    request = sdxl(transfer_images=transferred("green", picture()), textual_inversions={"cat": word})
    assert "not apart" in wrong(request, engines, shelf)["transfer_images[green]"]


def test_an_engine_without_such_an_encoder_says_only_that_of_transfer_images(
    engines: Catalog, shelf: Drawer, sdxl_catalog: Catalog
) -> None:
    told = wrong(sdxl(transfer_images=transferred("absent", picture())), sdxl_catalog, shelf)
    assert told.keys() == {"transfer_images"}


def test_inversions_have_so_many_vectors_together(
    engines: Catalog, shelf: Drawer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "MAX_VECTORS", 2)
    plan(sd15(textual_inversions={"cat": "house"}), engines, shelf)
    monkeypatch.setattr(weights, "MAX_VECTORS", 1)
    told = wrong(sd15(textual_inversions={"cat": "house"}), engines, shelf)
    assert told == {"textual_inversions": "2 vectors together; at most 1 are allowed"}


def test_what_changes_no_network_that_runs_is_told(engines: Catalog, shelf: Drawer) -> None:
    """A refiner that does all of it, an end before the first evaluation, pictures from the second evaluation on."""
    guided = sd15(controlnet="edges", controlnet_image=picture(), loras={"sepia": 1.0})
    for early_stop, told in ((0.0, ("controlnet",)), (1.0, ())):
        guided.controlnet_early_stop = early_stop
        assert tuple(notice.partition(":")[0] for notice in plan(guided, engines, shelf).notices) == told
    shown = {"transfer_images": transferred("green", picture())}
    for share, fields, told in (
        (0.0, shown, ("transfer_images did nothing",)),
        (0.0, {"loras": {"neon": 1.0}}, ("loras: 1 of them did nothing",)),
        (0.0, {"loras": {"neon-sign": 1.0}}, ("loras: what 1 of them changed of unet did nothing",)),
        (0.5, {"loras": {"neon-sign": 1.0}}, ()),
        (0.0, {"ip_adapter_image": picture()}, ("ip_adapter_image: it did nothing",)),
        (0.5, shown | {"loras": {"neon": 1.0}}, ()),
        (0.5, shown | {"steps": 1}, ("transfer_images did nothing",)),
    ):
        made = plan(sdxl(high_noise_frac=share, use_refiner=True, **fields), engines, shelf)
        assert [notice.startswith(start) for notice, start in zip(made.notices, told, strict=True)] == [True] * len(
            told
        )


def test_the_file_tells_what_draws_its_picture_again(engines: Catalog, shelf: Drawer) -> None:
    request = sd15(
        checkpoint="paper",
        loras={"blueprint": 0.5},
        textual_inversions={"cat": "house"},
        controlnet="edges",
        controlnet_image=picture(),
        controlnet_conditioning_scale=0.5,
        controlnet_early_stop=0.7,
    )
    made = plan(request, engines, shelf)
    again = pb.GenerateRequest(**json.loads(parameters(made, SEED)), controlnet_image=picture())
    assert effective(plan(again, engines, shelf)) == effective(made)
    prompted = plan(sd15(ip_adapter_image=picture(), ip_adapter_method="IP_ADAPTER_METHOD_STYLE"), engines, shelf)
    again = pb.GenerateRequest(**json.loads(parameters(prompted, SEED)), ip_adapter_image=picture())
    assert effective(plan(again, engines, shelf)) == effective(prompted)


def test_a_plan_that_waits_counts_all_the_pixels_and_vectors_that_it_holds(engines: Catalog, shelf: Drawer) -> None:
    canvas = 512 * 512
    shown = 3 * 32 * 32 * 4  # bytes of a picture that an encoder is shown
    painted = {"init_image": picture(512, 512), "mask_image": white(slice(0, 256))}
    vectors = {"textual_inversions": {"cat": "house"}}
    guided = {"controlnet": "edges", "controlnet_image": picture()}
    for request, held in (
        (sd15(), 0),
        (sd15(**guided), canvas * 3 + canvas),  # with a mask that is nowhere
        (sd15(**painted), canvas * 3 + canvas),
        (sd15(**painted, **guided), 2 * canvas * 3 + canvas),  # with the mask of the painting
        (sd15(**painted, inpaint_full_res=True), 2 * (canvas * 3 + canvas)),  # a part, and the whole
        (sd15(ip_adapter_image=picture()), shown + 64 * 64 * 4),
        (sdxl(transfer_images=transferred("green", picture(), picture())), 2 * shown),
        (sd15(**vectors), 2 * 128 * 4),
    ):
        assert facade._held(plan(request, engines, shelf)) == facade.PLAN_BYTES + held


def test_a_request_without_adapters_has_none(engines: Catalog, shelf: Drawer) -> None:
    made = plan(sd15(), engines, shelf)
    assert (made.parts, made.transfers, made.vectors, made.marked) == ((), (), {}, {})
    assert (made.control, made.image_prompt) == (NoControl(), NoImagePrompt())


def test_a_variant_has_the_ports_of_its_graph(engines: Catalog, shelf: Drawer) -> None:
    made = plan(sd15(loras={"blueprint": 1.0}), engines, shelf)
    unet = next(spec for spec in made.engine.specs if spec.name == "sd15_unet")
    variant = made.variants["sd15_unet"]
    assert replace(variant.spec, name=unet.name) == unet
    assert variants("sd15", [unet], made.parts)["sd15_unet"].spec.name == variant.spec.name
