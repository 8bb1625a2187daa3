"""Trains the demo model `shapes` from nothing: one entry point with a subcommand for each stage.

python training/shapes/train.py vae --work build/shapes
python training/shapes/train.py latents --work build/shapes
python training/shapes/train.py diffusion --work build/shapes
python training/shapes/train.py export --work build/shapes --output worker/renderkiln/worker/demo/shapes
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "worker")]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, help_text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help_text)
        command.add_argument("--work", type=Path, default=Path("build/shapes"), help="folder for checkpoints")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--threads", type=int, default=2)
        return command

    vae = add("vae", "train the autoencoder")
    vae.add_argument("--minutes", type=float, default=34)
    vae.add_argument("--batch", type=int, default=16)
    vae.add_argument("--decoder-only", action="store_true", help="go on with a finished one; latents stay")

    data = add("latents", "draw the training set and encode it")
    data.add_argument("--count", type=int, default=60_000)

    diffusion = add("diffusion", "train the UNet and the text encoder; goes on from a checkpoint if there is one")
    diffusion.add_argument("--minutes", type=float, default=68)
    diffusion.add_argument("--batch", type=int, default=32)
    diffusion.add_argument("--peak", type=float, default=1e-3, help="highest learning rate")
    diffusion.add_argument("--evaluate-every", type=float, default=10, help="minutes")

    diffusion.add_argument("--calm", type=float, default=1.0, help="guidance at which prompts act plainly")
    diffusion.add_argument("--dropout", type=float, default=0.1, help="share of empty prompts")
    diffusion.add_argument(
        "--restart-clock", action="store_true", help="a new run of --minutes, from the weights of the last"
    )

    diffusion.add_argument("--start-from", type=Path, help="a model folder: train its weights on, in a new run")

    show = add("data", "draw a sheet of training pictures, to look at")
    show.add_argument("--output", type=Path, default=Path("data.png"))

    export = add("export", "write the model folder from the last checkpoint")
    export.add_argument("--output", type=Path, required=True)

    evaluate = add("evaluate", "let the judge score a model folder, and draw a contact sheet")
    evaluate.add_argument("--model", type=Path, required=True)
    evaluate.add_argument("--count", type=int, default=200)
    evaluate.add_argument("--sheet", type=Path)
    return parser


def main() -> None:
    """Run one stage."""
    args = build_parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stdout)
    import torch

    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    if args.command == "vae":
        from vae import refine_decoder, train_vae

        train = refine_decoder if args.decoder_only else train_vae
        train(args.work, args.minutes, args.batch, args.seed)
    elif args.command == "latents":
        from latents import make_latents

        make_latents(args.work, args.count, args.seed)
    elif args.command == "diffusion":
        from diffusion import Settings, train_diffusion

        train_diffusion(
            Settings(
                work=args.work,
                minutes=args.minutes,
                batch=args.batch,
                peak=args.peak,
                seed=args.seed,
                processes=args.threads,
                evaluate_every=args.evaluate_every,
                calm=args.calm,
                dropout=args.dropout,
                restart_clock=args.restart_clock,
                start_from=args.start_from,
            )
        )
    elif args.command == "data":
        from data import sample_sheet

        sample_sheet(args.seed).save(args.output)
    elif args.command == "export":
        from diffusion import load_ema

        from models import assemble, save_pipeline

        save_pipeline(assemble(args.work / "vae", *load_ema(args.work)), args.output)
    elif args.command == "evaluate":
        from evaluate import evaluate

        evaluate(args.model, args.count, args.sheet)


if __name__ == "__main__":
    main()
