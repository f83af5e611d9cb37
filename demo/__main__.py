"""`python -m demo`: makes the default checkpoints, step by step. Arguments only; the work is in each step's file."""

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from demo.draw import Service

CHECKPOINTS = Path(__file__).parent / "checkpoints"
ASSETS = Path(__file__).parents[1] / "model_repository" / "assets"
ASSETS = Path(__file__).parent.parent / "model_repository" / "assets"
TRAINED_ASSETS = (
    "blueprint-sd15", "sepia-sd15", "neon-sdxl", "canny-sd15", "canny-sdxl", "night-harbour-sd15", "night-harbour-sdxl",
    "print-vae-sd15", "papercut-sd15",
)  # fmt: skip
ENGINES = ("sd15", "sdxl", "ssd", "sd3")  # what is judged; the refiner is judged with SDXL


def _tokenizer(work: Path, options: argparse.Namespace) -> None:
    from demo import tokenizer

    print(f"{len(tokenizer.build(work / 'tokenizer'))} tokens in {work / 'tokenizer'}")


def _text(work: Path, options: argparse.Namespace) -> None:
    from demo.training import text

    text.train(work / "tokenizer", work / "text", options.minutes, options.seed)


def _text_2(work: Path, options: argparse.Namespace) -> None:
    from demo.training import text_2

    text_2.train(work / "text", work / "tokenizer", work / "text_2", options.minutes, options.seed)


def _vae(work: Path, options: argparse.Namespace) -> None:
    from demo.training import vae

    vae.train(work / "vae", options.minutes, options.seed)


def _vae_sdxl(work: Path, options: argparse.Namespace) -> None:
    from demo.training import vae_sdxl

    vae_sdxl.train(work / "vae", work / "vae-sdxl", options.minutes, options.seed)


def _vae_sd3(work: Path, options: argparse.Namespace) -> None:
    from demo.training import vae_sd3

    vae_sd3.train(work / "vae-sdxl", work / "latents", work / "vae-sd3", options.minutes, options.seed)


def _latents(work: Path, options: argparse.Namespace) -> None:
    from demo.training import latents

    for size in options.sizes:
        width, height = _size(size)
        latents.write(work / "vae", work / "latents", width, height, options.count, options.seed)


def _train(work: Path, options: argparse.Namespace) -> None:
    """The averages go to `work / <name>` as they come; a later start resumes."""
    from demo.training import loop, refiner, sd3, sd15, sdxl, ssd

    data, folder, tokenizer, text = work / "latents", work / options.network, work / "tokenizer", work / "text"

    def encoders() -> sdxl.Encoders:
        return sdxl.Encoders(text, work / "text_2", tokenizer)

    tasks: Mapping[str, Callable[[], loop.Task]] = {
        "sd15": lambda: sd15.Sd15(data, tokenizer, text, folder),
        "sdxl": lambda: sdxl.Base(data, encoders(), work / "sd15", folder),
        "refiner": lambda: refiner.Refiner(data, encoders(), work / "sdxl", folder),
        "ssd": lambda: ssd.Ssd(data, encoders(), work / "sdxl", folder),
        "sd3": lambda: sd3.Flow(data, sd3.Encoders(text, work / "text_2", tokenizer), folder),
    }
    loop.train(
        loop.Run(state=work / f"{options.network}-state", minutes=options.minutes, rate=options.rate),
        tasks[options.network](),
    )


def _image_encoder(work: Path, options: argparse.Namespace) -> None:
    from demo.training import image_encoder, loop

    run = loop.Run(state=work / "image-encoder-state", minutes=options.minutes, rate=options.rate)
    loop.train(run, image_encoder.Image2Scene(options.out))


def _ip_adapter(work: Path, options: argparse.Namespace) -> None:
    from demo.training import ip_adapter, loop

    name, engine = f"ip-adapter-{options.engine}", CHECKPOINTS / options.engine
    networks: Mapping[str, Callable[[Path], ip_adapter.Network]] = {"sd15": ip_adapter.Sd15, "sdxl": ip_adapter.Sdxl}
    network, file = networks[options.engine](engine), options.out / f"{name}.safetensors"
    started = work / f"{name}-start.safetensors"
    task = ip_adapter.IpAdapter(work / "latents", network, engine / "image_encoder", file, started)
    loop.train(loop.Run(state=work / f"{name}-state", minutes=options.minutes, rate=options.rate), task)


def _transfer(work: Path, options: argparse.Namespace) -> None:
    from demo.training import loop, transfer

    sdxl, started = CHECKPOINTS / "sdxl", work / "transfer-start.safetensors"
    task = transfer.Transfer(work / "latents", sdxl, sdxl / "image_encoder", options.out, started)
    loop.train(loop.Run(state=work / "transfer-state", minutes=options.minutes, rate=options.rate), task)


def _adapted(work: Path, options: argparse.Namespace) -> None:
    from demo import adapted

    adapter = ASSETS / f"ip-adapter-{options.engine}.safetensors"
    out = Path(f"ip-adapter-{options.engine}.png") if options.out is None else options.out
    side, _ = _size(_square(options.engine) if options.size is None else options.size)
    adapted.judge(CHECKPOINTS / options.engine, adapter, side, options.steps, options.scenes, out)


def _look(work: Path, options: argparse.Namespace) -> None:
    from demo.scenes import Scene, render
    from demo.training import latents
    from demo.training.style import LOOKS

    def draw(scene: Scene, width: int, height: int) -> "np.ndarray":
        return LOOKS[options.look](render(scene, width, height))

    folder = work / "looks" / options.look
    for size in options.sizes:
        width, height = _size(size)
        latents.write(CHECKPOINTS / "sd15" / "vae", folder, width, height, options.count, options.seed, draw)


def _asset(work: Path, options: argparse.Namespace) -> None:
    """The averages go to the asset's file as they come; a later start resumes."""
    from demo.training import controlnet, inversion, loop, lora, second, vae_signature

    data, looks, sd15, sdxl = work / "latents", work / "looks", CHECKPOINTS / "sd15", CHECKPOINTS / "sdxl"
    file = options.out / f"{options.asset}.safetensors"
    tasks: Mapping[str, Callable[[], loop.Task]] = {
        "blueprint-sd15": lambda: lora.Sd15(
            looks / "blueprint", sd15, lora.RANK, (file,), (file.with_name("blueprint-kohya-sd15.safetensors"),)
        ),
        "sepia-sd15": lambda: lora.Sd15(looks / "sepia", sd15, lora.SEPIA_RANK, (file,), ()),
        "neon-sdxl": lambda: lora.Sdxl(looks / "neon", sdxl, (file,)),
        "canny-sd15": lambda: controlnet.Canny(data, sd15, "sd15", file),
        "canny-sdxl": lambda: controlnet.Canny(data, sdxl, "sdxl", file),
        "night-harbour-sd15": lambda: inversion.Sd15(sd15, sd15 / "vae", file),
        "night-harbour-sdxl": lambda: inversion.Sdxl(sdxl, sd15 / "vae", file),
        "print-vae-sd15": lambda: vae_signature.Signature(data, sd15 / "vae", file),
        "papercut-sd15": lambda: second.Second(looks / "papercut", sd15, file),
    }
    run = loop.Run(work / f"{options.asset}-state", options.minutes, options.rate, warm_up=12)
    loop.train(run, tasks[options.asset]())


def _transferred(work: Path, options: argparse.Namespace) -> None:
    from demo import transferred

    transferred.judge(CHECKPOINTS / "sdxl", CHECKPOINTS / "sdxl-photomaker", options.steps, options.scenes, options.out)


def _around(work: Path, options: argparse.Namespace) -> None:
    from demo import around
    from demo.training.style import LOOKS

    sd15, sdxl, count, out = CHECKPOINTS / "sd15", CHECKPOINTS / "sdxl", options.count, options.out
    file = options.assets / f"{options.asset}.safetensors"
    blueprint = {"blueprint": file, "sepia": file.with_name("sepia-sd15.safetensors")}
    judges: Mapping[str, Callable[[], None]] = {
        "blueprint-sd15": lambda: around.lora(sd15, blueprint, LOOKS["blueprint"], count, out),
        "sepia-sd15": lambda: around.lora(sd15, {"sepia": file}, LOOKS["sepia"], count, out),
        "neon-sdxl": lambda: around.lora(sdxl, {"neon": file}, LOOKS["neon"], count, out),
        "canny-sd15": lambda: around.controlnet(sd15, file, count, out),
        "canny-sdxl": lambda: around.controlnet(sdxl, file, count, out),
        "night-harbour-sd15": lambda: around.inversion(sd15, file, count, out),
        "night-harbour-sdxl": lambda: around.inversion(sdxl, file, count, out),
        "print-vae-sd15": lambda: around.vae(sd15, file, count, out),
        "papercut-sd15": lambda: around.second(sd15, file, count, out),
    }
    judges[options.asset]()


def _assemble(work: Path, options: argparse.Namespace) -> None:
    from diffusers import SD3Transformer2DModel, UNet2DConditionModel

    from demo import assemble

    tokenizer, text, text_2, vae = work / "tokenizer", work / "text", work / "text_2", work / "vae-sdxl"

    def unet(name: str) -> UNet2DConditionModel:
        return UNet2DConditionModel.from_pretrained(work / name)

    pipelines = {
        "sd15": lambda: assemble.sd15(work / "vae", text, tokenizer, unet("sd15")),
        "sdxl": lambda: assemble.sdxl(vae, text, text_2, tokenizer, unet("sdxl")),
        "sdxl-refiner": lambda: assemble.refiner(vae, text_2, tokenizer, unet("refiner")),
        "ssd": lambda: assemble.sdxl(vae, text, text_2, tokenizer, unet("ssd")),
        "sd3": lambda: assemble.sd3(
            work / "vae-sd3", text, text_2, tokenizer, SD3Transformer2DModel.from_pretrained(work / "sd3")
        ),
    }
    for name in options.checkpoints:
        assemble.write(pipelines[name](), tokenizer, options.out / name)
        print(options.out / name)


def _score(work: Path, options: argparse.Namespace) -> None:
    from demo import score

    width, height = _size(_square(options.engine) if options.size is None else options.size)
    with _service(options) as artist:
        score.run(artist, options.prompts, width, height, options.steps, options.guidance)


def _sheet(work: Path, options: argparse.Namespace) -> None:
    from demo import sheet

    side, _ = _size(_square(options.engine))
    with _service(options) as artist:
        out = Path("docs", f"contact-sheet-{options.engine}.png") if options.out is None else options.out
        sheet.draw(artist, out, side, options.steps, options.guidance)


def _refined(work: Path, options: argparse.Namespace) -> None:
    from demo import refined

    refined.compare(CHECKPOINTS / "sdxl", CHECKPOINTS / "sdxl-refiner", options.scenes)


@contextmanager
def _service(options: argparse.Namespace) -> Iterator["Service"]:
    from mediagen.client import Client

    from demo.draw import Service

    with Client(options.address) as client:
        yield Service(client, options.engine, options.high_noise_frac)


def _square(engine: str) -> str:
    return "512x512" if engine == "sd15" else "1024x1024"


def _size(text: str) -> tuple[int, int]:
    width, height = (int(side) for side in text.split("x"))
    return width, height


def main() -> None:
    """Parses the arguments and runs one step."""
    parser = argparse.ArgumentParser(prog="python -m demo", description="Make and judge the default checkpoints.")
    parser.add_argument(
        "--work", type=Path, default=Path(".cache/demo"), help="data and training states (default: %(default)s)"
    )
    steps = parser.add_subparsers(required=True, metavar="step")

    def timed(name: str, run: Callable[[Path, argparse.Namespace], None], minutes: float, words: str) -> None:
        step = steps.add_parser(name, help=words)
        step.add_argument("--minutes", type=float, default=minutes, help="on one core (default: %(default)s)")
        step.add_argument("--seed", type=int, default=0)
        step.set_defaults(run=run)

    step = steps.add_parser("tokenizer", help="write the tokenizer's files (seconds)")
    step.set_defaults(run=_tokenizer)
    timed("text", _text, 10, "train the text encoder; needs the tokenizer")
    timed("text-2", _text_2, 4, "train SDXL's and SD3's second text encoder; needs the first")
    timed("vae", _vae, 12, "train SD 1.5's autoencoder")
    timed("vae-sdxl", _vae_sdxl, 9, "train SDXL's autoencoder; needs SD 1.5's")
    timed("vae-sd3", _vae_sd3, 10, "train SD3's autoencoder; needs SDXL's and the latents")
    step = steps.add_parser(
        "latents", help="draw and encode scenes; needs SD 1.5's autoencoder; may run while a network trains"
    )
    step.add_argument("sizes", nargs="+", help="such as 256x256")
    step.add_argument("--count", type=int, default=10000, help="scenes of each size (default: %(default)s)")
    step.add_argument("--seed", type=int, default=1)
    step.set_defaults(run=_latents)
    step = steps.add_parser(
        "train",
        help="train a denoising network; resumes; `torchrun --nproc-per-node 2 -m demo train ...` for two cores",
    )
    step.add_argument("network", choices=("sd15", "sdxl", "refiner", "ssd", "sd3"))
    step.add_argument("--minutes", type=float, default=100, help="of all starts together (default: %(default)s)")
    step.add_argument("--rate", type=float, default=2e-3, help="at its peak (default: %(default)s)")
    step.set_defaults(run=_train)
    step = steps.add_parser(
        "look", help="draw and encode scenes in a look; the data of LoRAs and the second checkpoint"
    )
    step.add_argument("look", choices=("blueprint", "neon", "papercut", "sepia"))
    step.add_argument("sizes", nargs="+", help="such as 256x256")
    step.add_argument("--count", type=int, default=400, help="scenes of each size (default: %(default)s)")
    step.add_argument("--seed", type=int, default=9)
    step.set_defaults(run=_look)
    step = steps.add_parser("asset", help="train what is put around a checkpoint (demo/assets.md); resumes")
    step.add_argument("asset", choices=TRAINED_ASSETS)
    step.add_argument("--minutes", type=float, default=8, help="of all starts together (default: %(default)s)")
    step.add_argument("--rate", type=float, default=2e-3, help="at its peak (default: %(default)s)")
    step.add_argument("--out", type=Path, default=ASSETS, help="where the file goes (default: %(default)s)")
    step.set_defaults(run=_asset)
    step = steps.add_parser("around", help="draw with an asset and without, by diffusers, and judge")
    step.add_argument("asset", choices=TRAINED_ASSETS)
    step.add_argument("--count", type=int, default=3, help="prompts or scenes (default: %(default)s)")
    step.add_argument("--assets", type=Path, default=ASSETS, help="where the file lies (default: %(default)s)")
    step.add_argument("--out", type=Path, required=True, help="the sheet, a .png")
    step.set_defaults(run=_around)
    step = steps.add_parser("assemble", help="write checkpoints' folders from the parts")
    step.add_argument("checkpoints", nargs="+", choices=("sd15", "sdxl", "sdxl-refiner", "ssd", "sd3"))
    step.add_argument("--out", type=Path, default=CHECKPOINTS, help="where the folders go (default: %(default)s)")
    step.set_defaults(run=_assemble)
    for name, run, words in (
        ("score", _score, "judge a running service's pictures of prompts no training saw"),
        ("sheet", _sheet, "draw the contact sheet with a running service"),
    ):
        step = steps.add_parser(name, help=words)
        step.add_argument("engine", choices=ENGINES)
        step.add_argument("--address", default="127.0.0.1:50051", help="of a running service (default: %(default)s)")
        step.add_argument("--high-noise-frac", type=float, help="SDXL: 1 is without its refiner (default: 0.8)")
        step.add_argument("--steps", type=int, default=20)
        step.add_argument("--guidance", type=float, default=7.0)
        step.set_defaults(run=run)
        if name == "score":
            step.add_argument("--prompts", type=int, default=100)
            step.add_argument("--size", help="such as 512x512 (default: the engine's own)")
        else:
            step.add_argument("--out", type=Path, help="default: docs/contact-sheet-<engine>.png")

    def adapter(
        name: str, run: Callable[[Path, argparse.Namespace], None], minutes: float, out: Path, words: str
    ) -> None:
        step = steps.add_parser(name, help=f"{words}; resumes")
        if name == "ip-adapter":
            step.add_argument("engine", choices=("sd15", "sdxl"))
        step.add_argument(
            "--minutes", type=float, default=minutes, help="of all starts together (default: %(default)s)"
        )
        step.add_argument("--rate", type=float, default=1e-3, help="at its peak (default: %(default)s)")
        step.add_argument("--out", type=Path, default=out, help="where it goes (default: %(default)s)")
        step.set_defaults(run=run)

    pictures, photomaker = CHECKPOINTS / "sdxl" / "image_encoder", CHECKPOINTS / "sdxl-photomaker"
    adapter("image-encoder", _image_encoder, 20, pictures, "train the image encoder; needs nothing")
    adapter(
        "ip-adapter", _ip_adapter, 28, ASSETS, "train an IP-Adapter; needs latents, the checkpoint, the image encoder"
    )
    adapter("transfer", _transfer, 25, photomaker, "train the transfer encoder; needs latents, SDXL, the image encoder")
    step = steps.add_parser("adapted", help="judge what an IP-Adapter carries over, with diffusers")
    step.add_argument("engine", choices=("sd15", "sdxl"))
    step.add_argument("--scenes", type=int, default=8)
    step.add_argument("--steps", type=int, default=20)
    step.add_argument("--size", help="of square pictures, such as 512x512 (default: the engine's own)")
    step.add_argument("--out", type=Path, help="a sheet of the pictures (default: ip-adapter-<engine>.png)")
    step.set_defaults(run=_adapted)

    step = steps.add_parser("transferred", help="judge whether transfer images bring the subject, with diffusers")
    step.add_argument("--scenes", type=int, default=8)
    step.add_argument("--steps", type=int, default=20)
    step.add_argument("--out", type=Path, default=Path("transferred.png"), help="a sheet (default: %(default)s)")
    step.set_defaults(run=_transferred)

    step = steps.add_parser("refined", help="measure what SDXL's refiner does beside the base")
    step.add_argument("--scenes", type=int, default=16)
    step.set_defaults(run=_refined)

    options = parser.parse_args()
    options.run(options.work, options)


if __name__ == "__main__":
    main()
