"""diffusers' example of unconditional training, restated for pictures in memory.

It has the defaults of `examples/unconditional_image_generation/train_unconditional.py`, with
--use_ema: noise prediction on 1,000 timesteps of linear betas, batches of 16, AdamW, a warm-up of
500 steps and a cosine decay, gradients clipped at 1, EMA with a warm-up. Three things differ. The
pictures have their own number of channels instead of 3. They are in memory, which is faster than
the example's files. The network has fewer channels than the example's.

`benchmarks/peers/protocol.py` says how to run it. --network has either `parameters`, the number of
parameters to which the example's network is scaled, or the options of a UNet2DModel.
"""
# pyright: reportPrivateImportUsage=false
# (diffusers imports its classes lazily)

from benchmarks.peers import protocol  # isort: skip (it starts the clock)

import argparse
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

BATCH = 16
CHUNK = 250  # samples at once
NO_END = 10**9  # steps, for a training that only the clock ends
MULTIPLIERS = (1, 1, 2, 2, 4, 4)  # the example: 128, 128, 256, 256, 512, 512 channels
WIDTHS = range(4, 129, 2)
DPM, DDIM = diffusers.DPMSolverMultistepScheduler, diffusers.DDIMScheduler
SAMPLERS: dict[str, Any] = {  # name -> (class of the scheduler, its options)
    "dpm_solver_pp_2m": (DPM, {}),
    "dpm_solver_pp_2m, trailing": (DPM, {"timestep_spacing": "trailing"}),
    # dynamic thresholding with a largest value of 1 clips x_0 to [-1, 1]
    "dpm_solver_pp_2m, trailing, clipped": (
        DPM,
        {"timestep_spacing": "trailing", "thresholding": True, "sample_max_value": 1.0},
    ),
    "ddim": (DDIM, {}),
    "ddim, trailing": (DDIM, {"timestep_spacing": "trailing"}),
}


def example(width: int) -> dict[str, Any]:
    """Return the options of the example's network, with another width than 128."""
    down, up = ["DownBlock2D"] * 6, ["UpBlock2D"] * 6
    down[4], up[1] = "AttnDownBlock2D", "AttnUpBlock2D"
    groups = [n for n in range(1, width) if width % n == 0 and width // n >= 4]
    return dict(
        block_out_channels=tuple(width * m for m in MULTIPLIERS),
        layers_per_block=2,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        norm_num_groups=max(groups),  # of 4 channels, as in the example, or a few more
    )


def count(net: torch.nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in net.parameters())


def make(network: dict[str, Any], side: int, channels: int) -> diffusers.UNet2DModel:
    """Return the network that --network describes."""
    image = dict(sample_size=side, in_channels=channels, out_channels=channels)
    if "parameters" in network:
        with torch.device("meta"):
            sizes = {w: count(diffusers.UNet2DModel(**image, **example(w))) for w in WIDTHS}
        network = example(protocol.nearest(sizes, network["parameters"]))
    return diffusers.UNet2DModel(**image, **network)


def process() -> diffusers.DDPMScheduler:
    """Return the forward process of the example."""
    return diffusers.DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    with np.load(args.pictures) as file:
        images = torch.from_numpy(file["images"]).permute(0, 3, 1, 2).contiguous()
    net, noise_scheduler = make(args.network, images.shape[2], images.shape[1]), process()
    ema = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=3 / 4)
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
    )
    rate = get_scheduler(
        "cosine", optimizer, num_warmup_steps=500, num_training_steps=args.steps or NO_END
    )
    net.train()
    curve, done = protocol.Curve(args, BATCH), False
    while not done:
        for indices in torch.randperm(len(images)).split(BATCH):
            clean = images[indices].float() / 127.5 - 1
            noise = torch.randn(clean.shape)
            t: Any = torch.randint(0, noise_scheduler.config["num_train_timesteps"], (len(clean),))
            noisy = noise_scheduler.add_noise(clean, noise, t)
            loss = torch.nn.functional.mse_loss(net(noisy, t).sample, noise)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            rate.step()
            optimizer.zero_grad()
            ema.step(net.parameters())
            if done := curve.add(loss.item()):
                break
    ema.copy_to(net.parameters())
    net.save_pretrained(args.folder / "ema")
    curve.finish(count(net), ("torch", "diffusers"))


@torch.no_grad()
def sample(args: argparse.Namespace) -> None:
    net: Any = diffusers.UNet2DModel.from_pretrained(args.folder / "ema")
    net.eval()
    kind, options = SAMPLERS[args.sampler]
    scheduler = kind.from_config(process().config, **options)
    torch.manual_seed(args.seed)
    side, channels, chunks = net.config.sample_size, net.config.in_channels, []
    for start in range(0, args.n, CHUNK):
        scheduler.set_timesteps(args.evaluations)
        n = min(CHUNK, args.n - start)
        x = torch.randn(n, channels, side, side) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            eps = net(scheduler.scale_model_input(x, t), t).sample
            x = scheduler.step(eps, t, x).prev_sample
        chunks.append((x * 127.5 + 128).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy())
        print(f"{start + n}/{args.n} samples", flush=True)
    np.savez(args.out, images=np.concatenate(chunks))


if __name__ == "__main__":
    torch.set_num_threads(protocol.CORES)
    arguments = protocol.parse()
    {"train": train, "sample": sample}[arguments.what](arguments)
