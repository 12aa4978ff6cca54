"""Exactness and speed of the generator of alanine dipeptide: one table.

    python benchmarks/generator.py [--model runs/demo/model.safetensors]

Without a model, the untrained generator is used with its weights roughened, so that no layer is the identity.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch

from boltzgen.generator import BoltzmannGenerator
from boltzgen.molecule import Molecule

ROOT = Path(__file__).resolve().parent.parent
N_SAMPLES = 10_000


def roughened() -> BoltzmannGenerator:
    """Untrained, with random weights."""
    molecule = Molecule.from_pdb(ROOT / "systems" / "alanine_dipeptide.pdb")
    generator = BoltzmannGenerator.for_molecule(molecule)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in generator.flow.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=rng))
    return generator


def largest_difference(generator: BoltzmannGenerator) -> float:
    """Largest difference between log_prob(sample) and the log-density returned with the sample."""
    positions, log_q = generator.sample_and_log_prob(N_SAMPLES)
    with torch.no_grad():
        again = torch.cat([generator.log_prob(part) for part in positions.split(2000)])
    return float((again - log_q).abs().max())


def jacobian_error(generator: BoltzmannGenerator, n: int = 4) -> float:
    """Largest error of the Cartesian log-determinant against the autograd Jacobian, float64.

    Internal coordinates, a rotation vector and a shift together are 3N coordinates of the positions; at zero rotation
    the rotation vector has unit density in Haar measure, so the determinant is that of the internal coordinates alone.
    """
    internal = generator.flow.internal
    positions, _ = generator.sample_and_log_prob(n)
    worst = 0.0
    for x in positions:
        values, log_det = internal.to_internal(x[None])

        def place(variables: torch.Tensor) -> torch.Tensor:
            placed, _ = internal.to_cartesian(variables[None, :-6])
            turn = torch.matrix_exp(_skew(variables[-6:-3]))
            return (placed[0] @ turn.T + variables[-3:]).flatten()

        point = torch.cat([values[0], torch.zeros(6, dtype=values.dtype)])
        jacobian = torch.autograd.functional.jacobian(place, point)
        worst = max(worst, abs(float(torch.linalg.slogdet(jacobian).logabsdet + log_det[0])))
    return worst


def _skew(v: torch.Tensor) -> torch.Tensor:
    zero = torch.zeros_like(v[0])
    return torch.stack([zero, -v[2], v[1], v[2], zero, -v[0], -v[1], v[0], zero]).reshape(3, 3)


def milliseconds(call: Callable[[], object], repeats: int = 10) -> float:
    """Fastest of several calls."""
    call()
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - begin)
    return 1e3 * best


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--batch", type=int, default=512)
    options = parser.parse_args()
    generator = BoltzmannGenerator.load(options.model) if options.model else roughened()
    flow, batch = generator.flow, options.batch
    print(f"{'log_prob(sample) - log q, float32':<46}{largest_difference(generator):.1e}")
    positions, _ = generator.sample_and_log_prob(batch)

    def sample() -> None:
        with torch.no_grad():
            flow.sample_and_log_prob(batch)

    def density() -> None:
        flow.log_prob(positions).mean().backward()

    print(f"{'sample, us a configuration':<46}{1e3 * milliseconds(sample) / batch:.1f}")
    print(f"{'log_prob and its gradient, us a configuration':<46}{1e3 * milliseconds(density) / batch:.1f}")
    flow.double()
    print(f"{'log_prob(sample) - log q, float64':<46}{largest_difference(generator):.1e}")
    print(f"{'log-determinant against autograd, float64':<46}{jacobian_error(generator):.1e}")


if __name__ == "__main__":
    main()
