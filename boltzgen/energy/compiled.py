"""An OpenMM System as batched torch operations, verified against OpenMM when it is built."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import openmm
import torch
from torch import Tensor

from boltzgen.energy.base import BatchedPotential, RawEvaluation
from boltzgen.energy.capping import CappedPotential
from boltzgen.energy.compilation import COMPILE_AFTER, Evaluator, compile_program
from boltzgen.energy.explanation import Explanation, atom_name, one_configuration, worst_contributions
from boltzgen.energy.program import TermProgram
from boltzgen.energy.read import keeps_constraints, read_system, system_of
from boltzgen.energy.tables import TermTables, merge
from boltzgen.energy.verify import SINGLE_TOLERANCE, Agreement, perturbed_frames, single_precision_error, verify_terms
from boltzgen.errors import PotentialError

__all__ = ["CompiledPotential"]

logger = logging.getLogger(__name__)

# Elements of one (3, differences, chunk) temporary; 1024 configurations of a dipeptide, measured best on a CPU.
CHUNK_ELEMENTS = 1_200_000
CHUNK_ELEMENTS_GPU = 400_000_000


class CompiledPotential(BatchedPotential):
    """The System of a molecule as batched torch operations, on any device.

    Parameters
    ----------
    molecule : Molecule or openmm.System
        Anything with `system` (openmm.System, not periodic) and `positions` (N, 3); or the System. The constraints of
        a Molecule are those of its generators and samplers; the energy is then for positions that satisfy them.
    device : torch.device or str, optional
        Where to evaluate; the device of the positions when absent. Results come back on the device of the positions.
    dtype : torch.dtype, optional
        Precision of the evaluation; that of the positions when absent.
    compile : "auto", True or False
        Whether to use torch.compile: "auto" does so once it pays. Where it cannot run, evaluation stays eager and
        `compile_reason` says why.
    chunk : int, optional
        Configurations evaluated at a time; chosen by size when absent, so that memory stays flat.
    verify : bool
        Compare with OpenMM's Reference platform, term by term, on perturbed frames (the default).
    positions : (N, 3) array or Quantity, optional
        nm; around which the energy is verified, when a System is given.
    ignore_constraints : bool
        Accept a System whose constraints stand in the place of stretch terms, and give the energy without them: for
        generators and samplers that keep those distances fixed.

    Raises
    ------
    PotentialError
        Names the force that cannot be compiled, or the term that disagrees with OpenMM.
    """

    name = "compiled"

    def __init__(
        self,
        molecule: Any,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        compile: bool | str = "auto",
        chunk: int | None = None,
        verify: bool = True,
        *,
        positions: Any = None,
        ignore_constraints: bool = False,
    ) -> None:
        if compile not in (True, False, "auto"):
            raise PotentialError(f"compile must be True, False or 'auto', not {compile!r}")
        if dtype not in (None, torch.float32, torch.float64):
            raise PotentialError(f"dtype must be float32 or float64, not {dtype}")
        if chunk is not None and chunk < 1:
            raise PotentialError(f"chunk must be at least 1, not {chunk}")
        system = system_of(molecule)
        positions = getattr(molecule, "positions", None) if positions is None else positions
        if verify and positions is None:
            raise PotentialError("positions are needed to verify the energy; give positions=, or verify=False")
        super().__init__(system.getNumParticles())
        self._topology = getattr(molecule, "topology", None)
        self.device = None if device is None else torch.device(device)
        self.dtype = dtype
        self.compile = compile
        self.compile_reason = ""
        self.precision_reason = ""
        self.agreement: Agreement | None = None
        self._tables = read_system(system, ignore_constraints or keeps_constraints(molecule))
        self._merged = merge(self._tables.values())
        self._programs: dict[tuple[torch.device, torch.dtype], TermProgram] = {}
        self._term_programs: dict[str, TermProgram] = {}
        self._evaluators: dict[tuple[torch.device, torch.dtype, bool], Evaluator] = {}
        self._asked: dict[bool, int] = {False: 0, True: 0}
        differences = len(self.program(torch.device("cpu"), torch.float64).head) + len(self._merged.pairs)
        square = self.n_atoms**2 * (len(self._merged.custom_pairs) + len(self._merged.born))
        # Numbers in the largest temporary of one configuration, and (weighed by what an expression costs) in all.
        self._elements = max(3 * differences, 2 * square, 1)
        self._work = 3 * differences + 6 * square
        self._chunk = chunk
        self.frames = None if positions is None else torch.from_numpy(perturbed_frames(positions, 16))
        if verify:
            self._verify(system, positions)

    def _verify(self, system: openmm.System, positions: Any) -> None:
        """Compare with OpenMM in float64; and float32 with that, where it may be used."""
        agreement = verify_terms(system, positions, self._raw_terms, self._raw_forces)
        if self.dtype != torch.float64:
            errors = single_precision_error(positions, self._raw_terms, self._absolute_terms)
            agreement = replace(agreement, single=errors)
            lost = [name for name, error in errors.items() if not error <= SINGLE_TOLERANCE]
            if lost:
                self.precision_reason = f"float32 loses more than {SINGLE_TOLERANCE:g} of {', '.join(lost)}"
                if self.dtype == torch.float32:
                    raise PotentialError(f"{self.precision_reason}; leave out dtype, or choose torch.float64")
                logger.warning("%s: evaluating in float64", self.precision_reason)
                self.dtype = torch.float64
        self.agreement = agreement

    def program(self, device: torch.device, dtype: torch.dtype) -> TermProgram:
        """The evaluating module over (3, N, B) coordinates for one device and precision."""
        key = (device, dtype)
        if key not in self._programs:
            self._programs[key] = TermProgram(self._merged, self.n_atoms).to(device=device, dtype=dtype)
        return self._programs[key]

    def evaluator(self, device: torch.device, dtype: torch.dtype, forces: bool, planned: int = 0) -> Evaluator:
        """Function from (3, N, B) coordinates to energy and gradient (3, N, B); compiled once that pays.

        Its results are raw and uncounted: for samplers that keep this layout and do both themselves.

        Parameters
        ----------
        device, dtype
            Where and in which precision.
        forces : bool
            Whether gradients are wanted.
        planned : int
            Configurations that the caller is going to ask for.
        """
        key = (device, dtype, forces)
        if key in self._evaluators:
            return self._evaluators[key]
        program = self.program(device, dtype)
        if not self.worth_compiling(self._asked[forces] + planned):
            return lambda x: program(x, forces)
        evaluator, self.compile_reason = compile_program(
            program, self.n_atoms, self.chunk_size(device) // 2, forces, self.frames
        )
        self._evaluators[key] = evaluator
        return evaluator

    def worth_compiling(self, configurations: int) -> bool:
        """Whether torch.compile is allowed, has not failed here, and pays for so many configurations."""
        wanted = self.compile is True or (self.compile == "auto" and configurations * self._work >= COMPILE_AFTER)
        return wanted and not self.compile_reason

    def with_terms(self, extra: TermTables, device: torch.device, dtype: torch.dtype) -> TermProgram:
        """A program of all terms of the System and some more, such as a bias; its maps come last in `cmap_table`."""
        return TermProgram(merge([self._merged, extra]), self.n_atoms).to(device=device, dtype=dtype)

    def capped(self, max_gradient: float) -> CappedPotential:
        """The same energy with no term pulling an atom harder than `max_gradient` (kJ/mol/nm), exact below.

        For losses only: weights need the raw energy. What is capped how is said in `boltzgen.energy.capping`.

        Raises
        ------
        PotentialError
            `max_gradient` is not positive, or below an attraction outside of a repulsive wall.
        """
        return CappedPotential(
            self._merged, self.n_atoms, max_gradient, self.name_of, max(self.chunk_size(torch.device("cpu")) // 2, 1)
        )

    def name_of(self, atom: int) -> str:
        """Name of an atom, such as ALA2:CB, or its index where there is no topology."""
        return atom_name(self._topology, atom)

    def explain(self, positions: Any, n: int = 5) -> Explanation:
        """Energy of one configuration by force, and the contributions that are worst.

        Parameters
        ----------
        positions : (N, 3) or (1, N, 3) tensor or array
            nm.
        n : int
            How many contributions to list.

        Raises
        ------
        PotentialError
            Not one configuration of this molecule.
        """
        x = one_configuration(positions, self.n_atoms)
        terms = {name: float(value) for name, value in self._raw_terms(x).items()}
        with torch.no_grad():
            program = self.program(torch.device("cpu"), torch.float64)
            worst = worst_contributions(program, x.permute(2, 1, 0).contiguous(), self.name_of, n)
        return Explanation(float(self(x)), terms, worst)

    def chunk_size(self, device: torch.device) -> int:
        """Configurations evaluated at a time on a device."""
        if self._chunk is not None:
            return self._chunk
        elements = CHUNK_ELEMENTS if device.type == "cpu" else CHUNK_ELEMENTS_GPU
        return int(min(max(elements // self._elements, 32), 262_144))

    def terms(self, positions: Tensor) -> dict[str, Tensor]:
        """Energy per force of the System, {name: (B,) tensor in kJ/mol}; eager, raw."""
        self._check(positions)
        self.counts.add(energy=len(positions))
        x = positions.detach().to(self.dtype or positions.dtype)
        return {name: value.to(positions.dtype) for name, value in self._raw_terms(x).items()}

    def report(self) -> str:
        """What was compiled, how well it agrees with OpenMM, and the counts."""
        kinds = ", ".join(self._tables)
        lines = [f"Compiled potential: {self.n_atoms} atoms; {kinds}"]
        if self.agreement is not None:
            lines.append(self.agreement.report())
        mode = "torch.compile" if self._evaluators and not self.compile_reason else "eager"
        lines.append(f"Evaluation: {mode}" + (f" ({self.compile_reason})" if self.compile_reason else ""))
        if self.precision_reason:
            lines.append(f"Always in float64: {self.precision_reason}")
        lines.append(f"Counts: {self.counts}")
        return "\n".join(lines)

    def __getstate__(self) -> dict[str, Any]:
        # What torch.compile made cannot be pickled; it is made again, or found in its cache.
        return {**self.__dict__, "_evaluators": {}}

    def _evaluate(self, positions: Tensor, forces: bool) -> RawEvaluation:
        device = self.device or positions.device
        dtype = self.dtype or positions.dtype
        energy = torch.empty(len(positions), device=positions.device, dtype=positions.dtype)
        force = torch.empty_like(positions, memory_format=torch.contiguous_format) if forces else None
        chunk = self.chunk_size(device)
        self._asked[forces] += len(positions)
        program, evaluate = self.program(device, dtype), self.evaluator(device, dtype, forces)
        for start in range(0, len(positions), chunk):
            rows = slice(start, start + chunk)
            x = positions[rows].to(device=device, dtype=dtype).permute(2, 1, 0).contiguous()
            # Dynamo compiles again for a batch of one.
            part, gradient = evaluate(x) if x.shape[2] > 1 else program(x, forces)
            energy[rows] = part
            if force is not None and gradient is not None:
                force[rows] = gradient.neg_().permute(2, 1, 0)
        return RawEvaluation(energy, force)

    def _evaluate_carefully(self, positions: Tensor) -> Tensor:
        program = self.program(torch.device("cpu"), torch.float64)
        energy: Tensor = program(positions.double().cpu().permute(2, 1, 0).contiguous(), False)[0]
        return energy.to(positions.device)

    def _raw_terms(self, positions: Tensor) -> dict[str, Tensor]:
        return self._by_term(positions, lambda program, x: program(x, False)[0])

    def _absolute_terms(self, positions: Tensor) -> dict[str, Tensor]:
        return self._by_term(positions, lambda program, x: program.absolute(x))

    def _by_term(self, positions: Tensor, value: Callable[[TermProgram, Tensor], Tensor]) -> dict[str, Tensor]:
        # In the precision of the positions, whatever `dtype` says: verification needs float64.
        device, dtype = self.device or positions.device, positions.dtype
        result: dict[str, Tensor] = {}
        with torch.no_grad():
            for name, tables in self._tables.items():
                if name not in self._term_programs:
                    self._term_programs[name] = TermProgram(tables, self.n_atoms)
                program = copy.deepcopy(self._term_programs[name]).to(device=device, dtype=dtype)
                chunks = positions.to(device=device, dtype=dtype).split(self.chunk_size(device))
                parts = [value(program, x.permute(2, 1, 0).contiguous()) for x in chunks]
                result[name] = torch.cat(parts or [positions.new_zeros(0)]).to(positions)
        return result

    def _raw_forces(self, positions: Tensor) -> Tensor:
        with torch.no_grad():
            program = self.program(positions.device, positions.dtype)
            gradient = program(positions.permute(2, 1, 0).contiguous(), True)[1]
        return -gradient.permute(2, 1, 0)
