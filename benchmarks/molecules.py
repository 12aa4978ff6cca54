"""Generators of many molecules, untrained and out of the box: one row each.

    python benchmarks/molecules.py [--only chignolin PRO butane] [--out benchmarks/results/molecules.txt]

Amino acids and peptides have CHARMM36m, the small molecules CGenFF (charmm36.xml of OpenMM), all in vacuum at 300 K.

    free, stiff    free torsions; stiff torsions, improper torsions, angles and bonds together
    folded         symmetric groups that are folded (CH3, NH3, carboxylate, phenyl)
    rt32, rt64     largest displacement of an atom (nm) by positions -> internal coordinates -> positions
    log-det        largest error of the log-determinant against the autograd Jacobian, float64
    density        largest |log_prob(x) - log q| of samples with roughened networks, float64
    chiral         share of samples with the handedness and amide sides of the structure, prochiral labels included
    ref, uniform   share of configurations below 1e4 kJ/mol, stiff coordinates drawn from the untrained generator, and
                   free torsions as in the structure, or uniform
    s              seconds to build the generator, without force field and potential
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from openmm import app
from torch import Tensor

from boltzgen.energy import potential as choose_potential
from boltzgen.forcefields import build_system
from boltzgen.generator import BoltzmannGenerator
from boltzgen.molecule import Molecule
from boltzgen.sampling.domain import domain_of

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"
N_SAMPLES = 2000
ENERGY_LIMIT = 1e4  # kJ/mol
PEPTIDES = {
    "ACE-ALA3-NME": "ace_ala3_nme",
    "ACE-ALA5-NME": "ace_ala5_nme",
    "YGGFM": "met_enkephalin",
    "CC (disulfide)": "ace_cys_cys_nme",
    "CGGC (disulfide)": "ace_cys_gly_gly_cys_nme",
    "chignolin": "chignolin",
}
COLUMNS = ("atoms", "free", "stiff", "folded", "rt32", "rt64", "log-det", "density", "chiral", "ref", "uniform", "s")


def molecules() -> Iterator[tuple[str, Path]]:
    """Name and structure file of every molecule."""
    for path in sorted((DATA / "capped").glob("*.pdb")):
        yield path.stem, path
    for name, stem in PEPTIDES.items():
        yield name, DATA / f"{stem}.pdb"
    for path in sorted((DATA / "cgenff").glob("*.pdb")):
        yield path.stem, path


def load(path: Path) -> Molecule:
    """A peptide by its force field; a small molecule as OpenMM objects."""
    if path.parent.name != "cgenff":
        return Molecule.from_pdb(path)
    pdb = app.PDBFile(str(path))
    return Molecule.from_openmm(pdb.topology, build_system(pdb.topology, "charmm36", None).system, pdb.positions)


def aligned_error(first: Tensor, second: Tensor) -> float:
    """Largest displacement (nm) of an atom after superposition, (B, N, 3) both; computed in float64."""
    first, second = (x.double() - x.double().mean(1, keepdim=True) for x in (first, second))
    u, _, vh = torch.linalg.svd(first.mT @ second)
    flip = torch.ones(len(u), 3, dtype=u.dtype)
    flip[:, 2] = torch.linalg.det(u @ vh)
    rotation = u @ torch.diag_embed(flip) @ vh
    return float(torch.linalg.vector_norm(first @ rotation - second, dim=-1).max())


def round_trip(generator: BoltzmannGenerator, positions: Tensor) -> float:
    internal = generator.flow.internal
    return aligned_error(positions, internal.to_cartesian(internal.to_internal(positions)[0])[0])


def jacobian_error(generator: BoltzmannGenerator, positions: Tensor) -> float:
    """Internal coordinates, a rotation vector and a shift together are 3N coordinates of the positions; at zero
    rotation the rotation vector has unit density in Haar measure, so the determinant is that of the internal
    coordinates alone."""
    internal = generator.flow.internal
    worst = 0.0
    for x in positions:
        values, log_det = internal.to_internal(x[None])

        def place(variables: Tensor) -> Tensor:
            placed, _ = internal.to_cartesian(variables[None, :-6])
            turn = torch.matrix_exp(_skew(variables[-6:-3]))
            return (placed[0] @ turn.T + variables[-3:]).flatten()

        point = torch.cat([values[0], torch.zeros(6, dtype=values.dtype)])
        jacobian = torch.autograd.functional.jacobian(place, point)
        worst = max(worst, abs(float(torch.linalg.slogdet(jacobian).logabsdet + log_det[0])))
    return worst


def _skew(v: Tensor) -> Tensor:
    zero = torch.zeros_like(v[0])
    return torch.stack([zero, -v[2], v[1], v[2], zero, -v[0], -v[1], v[0], zero]).reshape(3, 3)


def share_of_low_energies(generator: BoltzmannGenerator, at_reference: bool) -> float:
    """Share below the limit; the untrained torsions are uniform, or replaced by those of the structure."""
    flow = generator.flow
    with torch.no_grad():
        coordinates, _ = flow.sample_internal(N_SAMPLES, generator.rng)
        if at_reference:
            for i, row in enumerate(flow.chart.rows):
                if row.kind == "free torsion":
                    coordinates[:, i] = row.centre
        energies = generator.potential(flow.internal.to_cartesian(coordinates)[0])
    return float((energies < ENERGY_LIMIT).double().mean())


def density_error(generator: BoltzmannGenerator) -> float:
    """With random weights, so that no layer is the identity; changes the generator."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in generator.flow.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=rng, dtype=parameter.dtype))
        positions, log_q = generator.sample_and_log_prob(200)
        return float((generator.log_prob(positions) - log_q).abs().max())


def figures(molecule: Molecule) -> list[str]:
    """The row of one molecule."""
    potential = choose_potential(molecule)
    begin = time.perf_counter()
    generator = BoltzmannGenerator.for_molecule(molecule, potential, dtype=torch.float64)
    seconds = time.perf_counter() - begin
    n_free = sum(row.kind == "free torsion" for row in generator.coordinates.rows)
    positions, _ = generator.sample_and_log_prob(N_SAMPLES)
    chiral = domain_of(molecule)(positions.numpy()).mean()
    low = [share_of_low_energies(generator, at_reference) for at_reference in (True, False)]
    return [
        str(molecule.n_atoms),
        str(n_free),
        str(len(generator.coordinates.rows) - n_free),
        str(len(generator.coordinates.symmetry)),
        f"{round_trip(generator, positions.float()):.0e}",
        f"{round_trip(generator, positions):.0e}",
        f"{jacobian_error(generator, positions[:2]):.0e}",
        f"{density_error(generator):.0e}",
        f"{chiral:.4f}",
        f"{low[0]:.4f}",
        f"{low[1]:.3f}",
        f"{seconds:.1f}",
    ]


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    lines = []
    for line in table(options.only):
        print(line, flush=True)
        lines.append(line)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


def table(only: list[str]) -> Iterator[str]:
    yield f"{'molecule':<17}" + "".join(f"{column:>9}" for column in COLUMNS)
    for name, path in molecules():
        if only and name not in only:
            continue
        try:
            yield f"{name:<17}" + "".join(f"{value:>9}" for value in figures(load(path)))
        except Exception as error:  # one molecule that fails must not hide the others
            yield f"{name:<17} {type(error).__name__}: {error}"


if __name__ == "__main__":
    main()
