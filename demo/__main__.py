"""`python -m demo`: makes the default checkpoint, step by step. Arguments only; the work is in each step's file."""

import argparse
from pathlib import Path


def _tokenizer(work: Path, options: argparse.Namespace) -> None:
    from demo import tokenizer

    print(f"{len(tokenizer.build(work / 'tokenizer'))} tokens in {work / 'tokenizer'}")


def _vae(work: Path, options: argparse.Namespace) -> None:
    from demo import train_vae

    train_vae.train(work / "vae", options.minutes, options.seed)


def _text(work: Path, options: argparse.Namespace) -> None:
    from demo import train_text

    train_text.train(work / "tokenizer", work / "text", options.minutes, options.seed)


def _latents(work: Path, options: argparse.Namespace) -> None:
    from demo import latents

    for size in options.sizes:
        width, height = (int(side) for side in size.split("x"))
        latents.write(work / "vae", work / "latents", width, height, options.count, options.seed)


def _unet(work: Path, options: argparse.Namespace) -> None:
    from diffusers import UNet2DConditionModel

    from demo import assemble, train_unet

    def publish(unet: UNet2DConditionModel) -> None:
        assemble.write(work / "vae", work / "text", work / "tokenizer", unet, work / "sd15-latest")

    train_unet.train(
        train_unet.Run(
            data=work / "latents",
            tokenizer=work / "tokenizer",
            text=work / "text",
            state=work / "unet",
            minutes=options.minutes,
            rate=options.rate,
            large_from=options.large_from,
            publish=publish,
        )
    )


def _assemble(work: Path, options: argparse.Namespace) -> None:
    import torch

    from demo import assemble, train_unet

    unet = train_unet.new()
    unet.load_state_dict(torch.load(work / "unet" / "state-0.pt", weights_only=False)["average"])
    assemble.write(work / "vae", work / "text", work / "tokenizer", unet, options.out)
    print(options.out)


def _score(work: Path, options: argparse.Namespace) -> None:
    from demo import score

    width, height = (int(side) for side in options.size.split("x"))
    score.run(options.checkpoint, options.prompts, width, height, options.steps, options.guidance)


def _sheet(work: Path, options: argparse.Namespace) -> None:
    from demo import sheet

    sheet.draw(options.checkpoint, options.out, options.steps, options.guidance)


def main() -> None:
    """Parses the arguments and runs one step."""
    parser = argparse.ArgumentParser(
        prog="python -m demo", description="Make and judge the default SD 1.5-shaped checkpoint."
    )
    parser.add_argument(
        "--work", type=Path, default=Path(".cache/demo"), help="data and training states (default: %(default)s)"
    )
    steps = parser.add_subparsers(required=True, metavar="step")
    checkpoint = Path(__file__).parent / "checkpoints" / "sd15"

    step = steps.add_parser("tokenizer", help="write the tokenizer's files (seconds)")
    step.set_defaults(run=_tokenizer)
    step = steps.add_parser("vae", help="train the autoencoder on one core")
    step.add_argument("--minutes", type=float, default=12)
    step.add_argument("--seed", type=int, default=0)
    step.set_defaults(run=_vae)
    step = steps.add_parser("text", help="train the text encoder on one core; needs the tokenizer")
    step.add_argument("--minutes", type=float, default=10)
    step.add_argument("--seed", type=int, default=0)
    step.set_defaults(run=_text)
    step = steps.add_parser(
        "latents", help="draw and encode scenes; needs the autoencoder; may run while the UNet trains"
    )
    step.add_argument("sizes", nargs="+", help="such as 256x256")
    step.add_argument("--count", type=int, default=10000, help="scenes of each size (default: %(default)s)")
    step.add_argument("--seed", type=int, default=1)
    step.set_defaults(run=_latents)
    step = steps.add_parser(
        "unet", help="train the UNet; resumes; `torchrun --nproc-per-node 2 -m demo unet` for two cores"
    )
    step.add_argument("--minutes", type=float, default=100)
    step.add_argument("--rate", type=float, default=2e-3)
    step.add_argument("--large-from", type=float, default=0.25, help="share of the time from which 512 px is trained")
    step.set_defaults(run=_unet)
    step = steps.add_parser("assemble", help="write the checkpoint's folder from the parts")
    step.add_argument("--out", type=Path, default=checkpoint)
    step.set_defaults(run=_assemble)
    step = steps.add_parser("score", help="judge pictures of prompts it never saw")
    step.add_argument("--checkpoint", type=Path, default=checkpoint)
    step.add_argument("--prompts", type=int, default=100)
    step.add_argument("--size", default="512x512")
    step.add_argument("--steps", type=int, default=20)
    step.add_argument("--guidance", type=float, default=7.0)
    step.set_defaults(run=_score)
    step = steps.add_parser("sheet", help="draw the contact sheet")
    step.add_argument("--checkpoint", type=Path, default=checkpoint)
    step.add_argument("--out", type=Path, default=Path("docs/contact-sheet-sd15.png"))
    step.add_argument("--steps", type=int, default=20)
    step.add_argument("--guidance", type=float, default=7.0)
    step.set_defaults(run=_sheet)

    options = parser.parse_args()
    options.run(options.work, options)


if __name__ == "__main__":
    main()
