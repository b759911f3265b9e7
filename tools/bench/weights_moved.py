"""Measures the share of weights that steps of AdamW move, by the type that the weights are kept in.

    python tools/bench/weights_moved.py                     # 250 steps at a learning rate of 1e-6, as in an rl stage
    python tools/bench/weights_moved.py --lr 1e-5 --steps 100

A step changes a weight by about the learning rate, whatever its gradient. bfloat16 keeps 8 bits: near 0.02 its numbers
are 1.2e-4 apart, and a change of less than half of that is rounded away, in each step anew. Weights are normal with the
usual deviation of 0.02, and gradients are a constant of each weight plus noise.
"""

import argparse

import torch

WEIGHTS = 2**18


def share(
    dtype: torch.dtype, *, steps: int = 250, lr: float = 1e-6, deviation: float = 0.02, noise: float = 1.0
) -> float:
    """The share of weights that differ from their first value after the steps, for weights kept in a type."""
    generator = torch.Generator().manual_seed(0)
    start = (deviation * torch.randn(WEIGHTS, generator=generator)).to(dtype)
    constant = torch.randn(WEIGHTS, generator=generator)
    weights = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([weights], lr=lr, weight_decay=0.01, betas=(0.9, 0.95))
    for _ in range(steps):
        weights.grad = (constant + noise * torch.randn(WEIGHTS, generator=generator)).to(dtype)
        optimizer.step()
    return (weights.detach() != start).double().mean().item()


def main() -> None:
    """Prints one line for each type."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--lr", type=float, default=1e-6)
    parser.add_argument("--deviation", type=float, default=0.02, help="standard deviation of the weights")
    arguments = parser.parse_args()
    for dtype in (torch.float32, torch.bfloat16):
        found = share(dtype, steps=arguments.steps, lr=arguments.lr, deviation=arguments.deviation)
        print(f"{str(dtype).removeprefix('torch.'):<9} {found:7.2%} of the weights moved in {arguments.steps} steps")


if __name__ == "__main__":
    main()
