"""Molecule: topology, System, positions and temperature, from a structure file or from OpenMM objects."""

import copy
import hashlib
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openmm
from openmm import app, unit

from boltzgen.constraints import DistanceConstraints, read_constraints
from boltzgen.errors import ForceFieldError, StructureError
from boltzgen.forcefields import Provenance, build_system
from boltzgen.preparation.protonation import Protonated, add_missing_hydrogens
from boltzgen.preparation.setup_report import SetupRecord, format_report
from boltzgen.preparation.structure import Structure, check_connected, d_residues, read_structure
from boltzgen.preparation.torsions import named_torsions

if TYPE_CHECKING:
    import mdtraj

__all__ = ["Molecule"]


class Molecule:
    """One molecule in open space, with its energy function and temperature.

    Build it with `from_pdb` or `from_openmm`; treat it as immutable.

    Attributes
    ----------
    topology : openmm.app.Topology
        The user's residues, atom names and order.
    system : openmm.System
        Same atoms in the same order.
    positions : Quantity of (N, 3) float64 array
        Nanometres.
    temperature : Quantity
        Kelvin.
    provenance : Provenance
        Force-field name, files, parameter sources and hashes.
    setup : SetupRecord
        What was read, added, chosen and checked.
    """

    def __init__(
        self,
        topology: app.Topology,
        system: openmm.System,
        positions: Any,
        temperature: Any,
        provenance: Provenance,
        setup: SetupRecord,
    ) -> None:
        self.topology = topology
        self.system = system
        self.positions = _positions_quantity(positions, topology.getNumAtoms())
        self.temperature = _temperature_quantity(temperature)
        self.provenance = provenance
        self.setup = setup
        check_connected(topology)

    @classmethod
    def from_pdb(
        cls,
        path: str | Path,
        forcefield: str | Path = "charmm36m",
        solvent: str | None = None,
        temperature: Any = 300 * unit.kelvin,
        *,
        ph: float = 7.0,
        variants: Mapping[str, str] | None = None,
        constraints: str | None = None,
    ) -> "Molecule":
        """Read a PDB or mmCIF file, add missing hydrogens and build the System.

        Parameters
        ----------
        path : path-like
            .pdb, .ent, .cif or .mmcif; one molecule without solvent.
        forcefield : str or path
            charmm36m, charmm36, amber19, amber14, amber99sbildn, amber99sb, amber96, or an OpenMM XML file.
        solvent : str, optional
            none, hct, obc1, obc2, gbn or gbn2 (implicit).
        temperature : Quantity or float
            A plain number is in kelvin.
        ph : float
            For residues whose protonation the file leaves open.
        variants : mapping, optional
            Protonation states by residue: {"HIS5": "HIE"}; also "N-terminus": "NH2" and "C-terminus": "COOH".
        constraints : {None, "hbonds", "allbonds"}
            Bonds of constant length, as many published set-ups have them: none, those to hydrogen, or all. The
            positions keep the lengths that the file has; generators and samplers use the constants.

        Raises
        ------
        StructureError
            If the file cannot be used as it stands.
        ForceFieldError
            If the force field is unknown, does not know a residue, or the System lacks a term.
        """
        temperature = _temperature_quantity(temperature)
        if not 0 <= ph <= 14:
            raise StructureError(f"pH {ph:g} is outside 0 to 14")
        structure = read_structure(path)
        protonated = add_missing_hydrogens(structure, ph, variants)
        built = build_system(protonated.topology, forcefield, solvent, constraints)
        mirrored = d_residues(structure.topology, structure.positions)
        if mirrored and built.has_cmap:
            raise ForceFieldError(
                f"{', '.join(mirrored)} have D chirality, for which {forcefield} in OpenMM has no backbone map (CMAP): "
                "it would use the map of the L residue; choose a force field without CMAP, e.g. amber14"
            )
        added = np.array([source is None for source in protonated.source])
        positions = _relax(built.unconstrained, protonated.positions, added)
        topology = _user_topology(structure, protonated)
        setup = SetupRecord(
            source=Path(path).name,
            notes=structure.notes,
            added_hydrogens=_by_residue(topology, added),
            removed_hydrogens=protonated.removed,
            states=protonated.states,
            audit=built.audit,
        )
        return cls(topology, built.system, positions * unit.nanometer, temperature, built.provenance, setup)

    @classmethod
    def from_openmm(
        cls, topology: app.Topology, system: openmm.System, positions: Any, temperature: Any = 300 * unit.kelvin
    ) -> "Molecule":
        """Take a molecule that was set up elsewhere.

        Parameters
        ----------
        topology : openmm.app.Topology
            With bonds; they must connect all atoms.
        system : openmm.System
            Same atoms in the same order; no virtual sites or periodic box. Constraints are taken where each is on a
            bond of the topology (HBonds, AllBonds); see `constraints`.
        positions : Quantity or (N, 3) array
            A plain array is in nanometres.
        temperature : Quantity or float
            A plain number is in kelvin.

        Raises
        ------
        StructureError
            If the parts do not fit each other, or the molecule is not one connected molecule in open space.
        """
        _check_system(topology, system)
        provenance = Provenance("OpenMM System", (), (), (), "as in the System", openmm.__version__)
        setup = SetupRecord(source="OpenMM objects", notes=("terms were not audited: the System is taken as given",))
        return cls(topology, system, positions, temperature, provenance, setup)

    def with_temperature(self, temperature: Any) -> "Molecule":
        """Same molecule at another temperature (Quantity, or a number in kelvin)."""
        return Molecule(self.topology, self.system, self.positions, temperature, self.provenance, self.setup)

    @property
    def kT(self) -> float:
        """Thermal energy in kJ/mol."""
        return (unit.MOLAR_GAS_CONSTANT_R * self.temperature).value_in_unit(unit.kilojoule_per_mole)

    @property
    def beta(self) -> float:
        """Inverse thermal energy in mol/kJ."""
        return 1.0 / self.kT

    @property
    def n_atoms(self) -> int:
        return self.topology.getNumAtoms()

    @cached_property
    def elements(self) -> list[str]:
        """Element symbol per atom."""
        return [atom.element.symbol for atom in self.topology.atoms()]

    @cached_property
    def atom_names(self) -> list[str]:
        return [atom.name for atom in self.topology.atoms()]

    @cached_property
    def heavy_atoms(self) -> np.ndarray:
        """Indices of all atoms but hydrogen, ascending."""
        return np.array([i for i, symbol in enumerate(self.elements) if symbol != "H"], dtype=np.int64)

    @cached_property
    def hydrogens(self) -> np.ndarray:
        """Indices of the hydrogens, ascending."""
        return np.array([i for i, symbol in enumerate(self.elements) if symbol == "H"], dtype=np.int64)

    @cached_property
    def bonds(self) -> np.ndarray:
        """Every covalent bond: (n_bonds, 2) array, smaller index first, sorted."""
        pairs = sorted({(min(a.index, b.index), max(a.index, b.index)) for a, b in self.topology.bonds()})
        return np.array(pairs, dtype=np.int64).reshape(-1, 2)

    @cached_property
    def constraints(self) -> DistanceConstraints:
        """Bonds of constant length: ``constraints.atoms`` (n, 2) and ``constraints.distances`` (n,) in nm."""
        return read_constraints(self.topology, self.system)

    @cached_property
    def torsions(self) -> dict[str, tuple[int, int, int, int]]:
        """Named torsions: "phi", or "phi[1]", "phi[2]", ... where several exist; atom indices."""
        return named_torsions(self.topology)

    @cached_property
    def system_hash(self) -> str:
        """SHA-256 of the serialized System."""
        return hashlib.sha256(openmm.XmlSerializer.serialize(self.system).encode()).hexdigest()

    @cached_property
    def mdtraj_topology(self) -> "mdtraj.Topology":
        import mdtraj  # slow to import, needed for output only

        return mdtraj.Topology.from_openmm(self.topology)

    def atom_label(self, index: int) -> str:
        """Readable name of an atom, e.g. "ALA2:CA"."""
        atom = self._atoms[index]
        return f"{atom.residue.name}{atom.residue.id}{atom.residue.insertionCode.strip()}:{atom.name}"

    def report(self) -> str:
        """Short table of what was read, added, chosen, matched and checked."""
        return format_report(self)

    @cached_property
    def _atoms(self) -> list[app.topology.Atom]:
        return list(self.topology.atoms())

    def __repr__(self) -> str:
        residues = "-".join(residue.name for residue in self.topology.residues())
        residues = residues if len(residues) <= 40 else residues[:37] + "..."
        kelvin = self.temperature.value_in_unit(unit.kelvin)
        energy = f"{self.provenance.force_field}, {self.provenance.solvent}"
        return f"Molecule({residues}, {self.n_atoms} atoms, {energy}, {kelvin:g} K)"


def _temperature_quantity(temperature: Any) -> unit.Quantity:
    try:
        kelvin = float(temperature.value_in_unit(unit.kelvin) if unit.is_quantity(temperature) else temperature)
    except (TypeError, ValueError) as error:
        raise StructureError(
            f"temperature {temperature!r} is not a temperature; give kelvin, e.g. 300 * unit.kelvin"
        ) from error
    if not (math.isfinite(kelvin) and kelvin > 0):
        raise StructureError(f"temperature must be positive, not {kelvin:g} K")
    if not 1 <= kelvin <= 10_000:
        raise StructureError(f"temperature {kelvin:g} K is outside 1 to 10,000 K, where a force field means anything")
    return kelvin * unit.kelvin


def _positions_quantity(positions: Any, n_atoms: int) -> unit.Quantity:
    values = positions.value_in_unit(unit.nanometer) if unit.is_quantity(positions) else positions
    array = np.array(values, dtype=np.float64)
    if array.shape != (n_atoms, 3):
        raise StructureError(
            f"positions have shape {array.shape}, but the topology has {n_atoms} atoms: expected ({n_atoms}, 3)"
        )
    if not np.isfinite(array).all():
        raise StructureError(
            f"the coordinates of atom {np.flatnonzero(~np.isfinite(array).all(axis=1))[0]} are not finite numbers"
        )
    return unit.Quantity(array, unit.nanometer)


def _check_system(topology: app.Topology, system: openmm.System) -> None:
    n = topology.getNumAtoms()
    if system.getNumParticles() != n:
        raise StructureError(f"the System has {system.getNumParticles()} particles, the topology {n} atoms")
    if any(atom.element is None for atom in topology.atoms()) or any(system.isVirtualSite(i) for i in range(n)):
        raise StructureError("virtual sites and extra particles are not supported")
    read_constraints(topology, system)
    if system.usesPeriodicBoundaryConditions():
        raise StructureError(
            "the System is periodic; a generator draws one molecule in open space: use nonbondedMethod=NoCutoff"
        )


def _relax(system: openmm.System, positions: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Minimise the energy of the `free` atoms, all others at rest; (N, 3) nm."""
    if not free.any():
        return positions
    frozen = copy.deepcopy(system)
    for i in np.flatnonzero(~free):
        frozen.setParticleMass(int(i), 0.0)
    context = openmm.Context(frozen, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(positions)
    openmm.LocalEnergyMinimizer.minimize(context, 10.0, 200)
    relaxed = context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.nanometer)
    return np.where(free[:, None], np.asarray(relaxed, dtype=float), positions)


def _user_topology(structure: Structure, protonated: Protonated) -> app.Topology:
    """Copy the topology under the names that the user's file has."""
    topology = app.Topology()
    copies = {}
    for chain in protonated.topology.chains():
        new_chain = topology.addChain(chain.id)
        for residue in chain.residues():
            name = structure.residue_names[residue.index]
            new_residue = topology.addResidue(name, new_chain, residue.id, residue.insertionCode)
            names: set[str] = set()
            for atom in residue.atoms():
                source = protonated.source[atom.index]
                atom_name = atom.name if source is None else structure.atom_names[source]
                if atom_name in names:
                    raise StructureError(
                        f"residue {name}{residue.id}: the added hydrogen {atom_name} has the name of an atom in the "
                        "file; give the residue's hydrogens their standard names, or remove them"
                    )
                names.add(atom_name)
                copies[atom] = topology.addAtom(atom_name, atom.element, new_residue)
    for bond in protonated.topology.bonds():
        topology.addBond(copies[bond[0]], copies[bond[1]], bond.type, bond.order)
    return topology


def _by_residue(topology: app.Topology, chosen: np.ndarray) -> dict[str, tuple[str, ...]]:
    groups = {}
    for residue in topology.residues():
        names = tuple(atom.name for atom in residue.atoms() if chosen[atom.index])
        if names:
            groups[f"{residue.name}{residue.id}"] = names
    return groups
