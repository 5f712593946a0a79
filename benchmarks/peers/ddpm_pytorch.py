"""denoising-diffusion-pytorch: its own Trainer with its own defaults.

That is: v on the sigmoid schedule with 1,000 timesteps, batches of 16, Adam at 1e-4, EMA 0.995.
Three options of the Trainer are not at their defaults. `augment_horizontal_flip` is off, because a
mirrored shoe is not in the data. `calculate_fid` is off, because it needs a download.
`save_and_sample_every` is never, because the time for samples would be lost for training.

`benchmarks/peers/protocol.py` says how to run it. --pictures is a folder of PNG files. --network
has either `parameters`, the number of parameters to which the default Unet is scaled, or the
options of a Unet. It also has `side` and `channels` of the pictures.
"""
# pyright: reportMissingImports=false
# (denoising-diffusion-pytorch is only in the environment of this script)

from benchmarks.peers import protocol  # isort: skip (it starts the clock)

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet

CHUNK = 250  # samples at once
NEVER = 10**9
WIDTHS = range(4, 65, 2)
PACKAGES = ("torch", "torchvision", "denoising-diffusion-pytorch", "ema-pytorch", "accelerate")


def count(net: torch.nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in net.parameters())


def make(network: dict[str, Any], evaluations: int) -> GaussianDiffusion:
    """Return the diffusion of the network that --network describes."""
    options = dict(network)
    side = options.pop("side")
    if "parameters" in options:
        wanted, channels = options.pop("parameters"), options["channels"]
        with torch.device("meta"):
            sizes = {dim: count(Unet(dim=dim, channels=channels)) for dim in WIDTHS}
        options["dim"] = protocol.nearest(sizes, wanted)
    return GaussianDiffusion(Unet(**options), image_size=side, sampling_timesteps=evaluations)


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    diffusion = make(args.network, args.evaluations)
    trainer = Trainer(
        diffusion,
        args.pictures,
        train_num_steps=NEVER,
        augment_horizontal_flip=False,
        calculate_fid=False,
        save_and_sample_every=NEVER,
        results_folder=str(args.folder / "results"),
    )
    curve: list[protocol.Curve] = []
    batches = trainer.dl

    def timed() -> Iterator[Any]:
        """Yield the Trainer's batches; the clock starts when the Trainer asks for the first."""
        curve.append(protocol.Curve(args, trainer.batch_size))
        yield from batches

    def add(module: Any, inputs: Any, loss: torch.Tensor) -> None:
        """Add the loss; the Trainer ends after this step if the time is over."""
        if curve[0].add(loss.item()):
            trainer.train_num_steps = trainer.step + 1

    trainer.dl = timed()
    trainer.model.register_forward_hook(add)
    trainer.train()
    state = trainer.ema.ema_model.state_dict()
    torch.save({"network": args.network, "ema": state}, args.folder / "ema.pt")
    curve[0].finish(count(diffusion.model), PACKAGES)


def sample(args: argparse.Namespace) -> None:
    saved = torch.load(args.folder / "ema.pt", weights_only=True)
    diffusion = make(saved["network"], args.evaluations)
    diffusion.load_state_dict(saved["ema"])
    diffusion.eval()
    torch.manual_seed(args.seed)
    chunks = []
    for start in range(0, args.n, CHUNK):
        n = min(CHUNK, args.n - start)
        x = diffusion.sample(batch_size=n)  # in [0, 1]
        chunks.append((x * 255 + 0.5).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy())
        print(f"{start + n}/{args.n} samples", flush=True)
    np.savez(args.out, images=np.concatenate(chunks))


if __name__ == "__main__":
    torch.set_num_threads(protocol.CORES)
    arguments = protocol.parse()
    {"train": train, "sample": sample}[arguments.what](arguments)
