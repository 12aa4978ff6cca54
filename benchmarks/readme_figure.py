"""The picture of the README: Ramachandran maps of a finished run and of the converged reference.

python benchmarks/readme_figure.py runs/demo_seeds/seed0 [--out docs/ramachandran.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import mdtraj
import numpy as np

from boltzgen.ensemble import Ensemble
from boltzgen.generator import BoltzmannGenerator
from boltzgen.plotting import free_energy_map, free_energy_profile, ramachandran
from boltzgen.sampling import shipped_reference

ROOT = Path(__file__).resolve().parent.parent
FRAMES = ROOT / "benchmarks" / "results" / "reference_ace_ala_nme_charmm36m_vacuum_300K.npz"


def main() -> None:
    """Draw and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "ramachandran.png")
    options = parser.parse_args()
    matplotlib.use("Agg")
    molecule = BoltzmannGenerator.load(options.run / "model.safetensors").molecule
    summary = shipped_reference(molecule)
    assert molecule is not None
    assert summary is not None, "no shipped reference for this System"
    trajectory = mdtraj.load(str(options.run / "samples.dcd"), top=str(options.run / "topology.pdb"))
    with np.load(options.run / "weights.npz") as stored:
        generated = Ensemble(trajectory.xyz, stored["log_weights"], molecule.kT, molecule=molecule)
    with np.load(FRAMES) as stored:
        reference = Ensemble(stored["positions"], stored["log_weights"], molecule.kT, molecule=molecule)
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.9), layout="constrained")
    ramachandran(generated, ax=axes[0])
    axes[0].set_title(f"boltzgen, {len(generated):,} weighted samples")
    free_energy_map(summary.ramachandran, axes[1])
    axes[1].set_title("reference: flattened torsions, 4e8 evaluations")
    free_energy_profile(generated, "phi", reference=reference, ax=axes[2])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=110)


if __name__ == "__main__":
    main()
