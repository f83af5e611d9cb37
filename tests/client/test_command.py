"""The `mediagen` command against the running service, as a person uses it."""

import json
from pathlib import Path

import pytest
from mediagen.command import app
from PIL import Image
from typer.testing import CliRunner, Result

QUICK = ("--steps", "1", "--size", "384x704", "--cfg-scale", "1")


@pytest.fixture
def mediagen(service_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, [*arguments, "--address", service_address])

    return run


def test_generate_writes_the_picture_and_says_where_and_with_which_seed(mediagen, tmp_path: Path) -> None:
    result = mediagen("generate", "a red house", "-o", "new/house.png", "--seed", "5", "--sampler", "k_euler", *QUICK)
    assert result.exit_code == 0, result.stderr
    assert "new/house.png  seed 5" in result.stderr
    assert "denoising" in result.stderr
    with Image.open(tmp_path / "new" / "house.png") as picture:
        assert picture.size == (384, 704)


def test_several_pictures_are_numbered_and_json_tells_all(mediagen, tmp_path: Path) -> None:
    result = mediagen("generate", "a house", "-o", "p.jpg", "-n", "2", "--seed", "7", "--seed", "9", "--json", *QUICK)
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert [(image["file"], image["seed"]) for image in report["images"]] == [("p-0.jpg", 7), ("p-1.jpg", 9)]
    assert report["effective"]["sampler"] == "SAMPLER_DDIM"
    assert report["milliseconds"]["total"] > 0
    assert all((tmp_path / f"p-{index}.jpg").read_bytes().startswith(b"\xff\xd8") for index in range(2))


def test_a_refused_request_names_every_field_and_writes_nothing(mediagen, tmp_path: Path) -> None:
    result = mediagen("generate", "a house", "--steps", "201", "--size", "500x500", "-o", "p.png")
    assert result.exit_code == 1
    assert "steps" in result.stderr
    assert "1..200" in result.stderr
    assert "512x512" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_only_sdxl_has_is_asked_for_and_refused_by_name_elsewhere(mediagen) -> None:
    options = ("--prompt-2", "oil", "--negative-prompt-2", "fog", "--high-noise-frac", "0.5", "--no-refiner")
    result = mediagen("generate", "a house", *options)
    assert result.exit_code == 1
    fields = [
        line.split(":")[0].removeprefix("request.")
        for line in result.stderr.splitlines()
        if "sd15 does not have it" in line
    ]
    assert sorted(fields) == ["high_noise_frac", "negative_prompt_2", "prompt_2"]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("-o", "p.gif"), ".png"),
        (("-o", "[/b].gif"), "[/b].gif"),
        (("--size", "big"), "512x512"),
        (("--size", "99999999999x512"), "512x512"),
        (("--sampler", "MAGIC"), "DDIM"),
        (("--steps", "99999999999"), "out of range"),
        (("--seed", "18446744073709551616"), "out of range"),
        (("--seed", "1", "--seed", "18446744073709551616"), "out of range"),
        (("--num-images", "-99999999999"), "out of range"),
        (("--negative-prompt", "\udcff"), "not UTF-8"),
    ],
)
def test_a_wrong_option_says_what_is_right(mediagen, arguments: tuple[str, str], hint: str) -> None:
    result = mediagen("generate", "a house", *arguments)
    assert result.exit_code == 2
    assert hint in result.stderr


def test_brackets_and_colons_are_told_as_they_are(mediagen) -> None:
    result = mediagen("generate", "a house [/b] :cat: " * 60, "-o", "[red].png", *QUICK)
    assert result.exit_code == 0, result.stderr
    note, written, _ = result.stderr.splitlines()
    assert note.startswith("note: prompt is longer")
    assert note.endswith("a house [/b] :cat:'")
    assert written.startswith("[red].png  seed ")


def test_a_picture_and_a_mask_are_sent_from_files(mediagen, tmp_path: Path) -> None:
    white, black = Image.new("RGB", (64, 64), "white"), Image.new("RGB", (64, 64), "black")
    white.save(tmp_path / "sky.png")
    mask = black.copy()
    mask.paste("white", (0, 0, 32, 64))
    mask.save(tmp_path / "left.png")
    pictures = ("--init-image", "sky.png", "--mask", "left.png", "--strength", "0.5", "--full-res", "--padding", "8")
    result = mediagen("generate", "a house", *pictures, *QUICK, "-o", "p.png", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["effective"]["strength"] == 0.5
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.convert("RGB").crop((192, 0, 384, 704)).getextrema() == ((255, 255),) * 3


def test_a_file_that_is_not_there_is_told_by_its_option(mediagen) -> None:
    result = mediagen("generate", "a house", "--init-image", "none.png")
    assert result.exit_code == 2
    assert "--init-image" in result.stderr


def test_styles_lists_the_names_of_the_api(mediagen) -> None:
    names = mediagen("styles").stdout.splitlines()
    assert len(names) == len(set(names)) == 78


def test_engines_lists_names_sizes_and_samplers(mediagen) -> None:
    result = mediagen("engines", "--json")
    engine, *others = json.loads(result.stdout)
    assert engine["name"] == "sd15"
    assert [other["name"] for other in others] == ["sd3", "sdxl", "ssd"]
    assert engine["state"] in ("ENGINE_STATE_UNLOADED", "ENGINE_STATE_READY")  # by what ran before this
    assert "sd15" in mediagen("engines").stdout


def test_explain_tells_what_would_run_and_draws_nothing(mediagen, tmp_path: Path) -> None:
    mediagen("generate", "a house", "-o", "p.png", *QUICK)
    (tmp_path / "p.png").unlink()
    asked = ("explain", "a red house", "--sampler", "heun", "--seed", "5", "-n", "2", "--size", "384x704")
    result = mediagen(*asked)
    assert result.exit_code == 0, result.stderr
    told = dict(row for row in (line.strip("│ ").split("│") for line in result.stdout.splitlines()) if len(row) == 2)
    told = {name.strip(): value.strip() for name, value in told.items()}
    assert (told["seeds"], told["sampler"], told["steps"]) == ("5, 6", "SAMPLER_HEUN", "30")
    assert told["sd15_unet"] == f"{2 * 59} executions"
    assert told["sd15_text_encoder"] == "1 execution"
    assert told["time"].endswith(" s")
    reply = json.loads(mediagen(*asked, "--json").stdout)
    assert reply["executions"]["sd15_unet"] == 118
    assert reply["estimated_ms"] > 0
    assert list(tmp_path.iterdir()) == []


def test_explain_names_everything_that_is_wrong(mediagen) -> None:
    result = mediagen("explain", "a house", "--steps", "201", "--size", "500x500")
    assert result.exit_code == 1
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["width", "height", "steps"]
    reply = json.loads(mediagen("explain", "a house", "--size", "500x500", "--json").stdout)
    assert reply["nearest_size"] == {"width": 512, "height": 512}
    assert [violation["field"] for violation in reply["violations"]] == ["width", "height"]


def test_no_service_is_one_sentence() -> None:
    result = CliRunner().invoke(app, ["engines", "--address", "127.0.0.1:1"])
    assert result.exit_code == 1
    assert result.stderr.startswith("UNAVAILABLE")
