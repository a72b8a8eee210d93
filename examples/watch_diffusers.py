"""Watch the transformer of a diffusers pipeline that nobody prepared for it.

python examples/watch_diffusers.py                           # random weights, no download
python examples/watch_diffusers.py --pipeline facebook/DiT-XL-2-256 --steps 25
"""

import argparse

import matplotlib.pyplot as plt
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

import ditscope as ds


def random_pipeline() -> DiTPipeline:
    torch.manual_seed(0)
    shape = {"num_layers": 8, "num_attention_heads": 6, "attention_head_dim": 16}
    network = DiTTransformer2DModel(sample_size=16, in_channels=4, out_channels=8, **shape)
    for parameter in network.parameters():
        parameter.data.mul_(2)  # so that heads and layers differ
    codec = AutoencoderKL(latent_channels=4, block_out_channels=(8,), norm_num_groups=4)
    return DiTPipeline(network.eval(), codec.eval(), DDIMScheduler())


PANELS = {
    "entropy": "over how much it spreads: entropy, nats",
    "rms_distance": "how far it looks: patches",
    "received_max": "its favourite patch: share of attention",
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pipeline", help="folder or name of a DiTPipeline; without: random")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--out", default="watched.png")
    options = parser.parse_args()
    pipe = DiTPipeline.from_pretrained(options.pipeline) if options.pipeline else random_pipeline()
    settings = {"num_inference_steps": options.steps, "output_type": "np"}
    draw = lambda: pipe([1, 7], generator=torch.Generator().manual_seed(0), **settings).images
    plain = draw()
    with ds.watch(pipe.transformer) as seen:
        watched = draw()
    print(f"{len(seen.sites)} attention calls in each of {seen.stats.sizes['forward']} forwards")
    print(f"pictures the same bit for bit: {(plain == watched).all()}")

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for (name, title), place in zip(PANELS.items(), axes, strict=True):
        shown = place.imshow(seen.stats[name].mean(["sample", "head"]).T, aspect="auto")
        place.set(title=title, xlabel="step", ylabel="layer")
        figure.colorbar(shown)
    figure.suptitle("Attention of every layer, from noise to picture; mean over heads")
    figure.savefig(options.out, dpi=120)


if __name__ == "__main__":
    main()
