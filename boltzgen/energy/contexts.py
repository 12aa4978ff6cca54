"""OpenMM Contexts: their settings, one evaluation through one of them, and the choice of a platform by timing."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field

import numpy as np
import openmm
from numpy.typing import NDArray

from boltzgen.errors import PotentialError

__all__ = ["ContextEvaluator", "ContextFactory", "ContextSettings", "PlatformChoice", "choose_platform", "new_context"]

logger = logging.getLogger(__name__)

_GPU_PLATFORMS = ("CUDA", "HIP", "OpenCL")
Frame = NDArray[np.float64]


@dataclass(frozen=True)
class ContextSettings:
    """What a Context is made with.

    Attributes
    ----------
    platform : str
        Name of an OpenMM platform.
    precision : "single", "mixed" or "double"
        For GPU platforms.
    device_index : int, optional
        Which GPU; OpenMM chooses when absent.
    threads : int
        For the CPU platform.
    """

    platform: str
    precision: str = "mixed"
    device_index: int | None = None
    threads: int = 1

    def properties(self) -> dict[str, str]:
        """As OpenMM wants them."""
        if self.platform == "CPU":
            return {"Threads": str(self.threads)}
        if self.platform not in _GPU_PLATFORMS:
            return {}
        device = {} if self.device_index is None else {"DeviceIndex": str(self.device_index)}
        return {"Precision": self.precision, **device}


def new_context(system: openmm.System, settings: ContextSettings) -> openmm.Context:
    """A Context of a System.

    Raises
    ------
    openmm.OpenMMException
        The platform does not exist or cannot run this System.
    """
    platform = openmm.Platform.getPlatformByName(settings.platform)
    return openmm.Context(system, openmm.VerletIntegrator(0.001), platform, settings.properties())


class ContextEvaluator:
    """Energy and forces of one configuration after another through one Context.

    After a failure the configuration is tried once more in a new Context, since the old one may be unusable.

    Raises
    ------
    PotentialError
        The Context cannot be made.
    """

    def __init__(self, system: openmm.System, settings: ContextSettings) -> None:
        self._system, self._settings = system, settings
        try:
            self._context = new_context(system, settings)
        except Exception as error:
            raise PotentialError(f"OpenMM cannot run this System on platform {settings.platform!r}: {error}") from error

    def __call__(self, frame: Frame, forces: bool) -> tuple[float, Frame | None]:
        """Energy (kJ/mol) and forces (N, 3) (kJ/mol/nm; None if not asked for) of finite positions (N, 3) in nm.

        Raises
        ------
        openmm.OpenMMException
            It failed twice.
        """
        try:
            return self._evaluate(frame, forces)
        except openmm.OpenMMException:
            self._context = new_context(self._system, self._settings)
            return self._evaluate(frame, forces)

    def by_group(self, frame: Frame, n_groups: int) -> list[float]:
        """Energy of each of the first force groups, kJ/mol."""
        self._context.setPositions(frame)
        states = (self._context.getState(getEnergy=True, groups={group}) for group in range(n_groups))
        return [state.getPotentialEnergy()._value for state in states]

    def _evaluate(self, frame: Frame, forces: bool) -> tuple[float, Frame | None]:
        self._context.setPositions(frame)
        state = self._context.getState(getEnergy=True, getForces=forces)
        # _value: both are in OpenMM's own units, and value_in_unit costs as much as the energy of a dipeptide.
        return state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value if forces else None


@dataclass(frozen=True)
class ContextFactory:
    """Makes evaluators, here or in another process.

    Attributes
    ----------
    system_xml : str
        Serialized System.
    settings : ContextSettings
    """

    system_xml: str
    settings: ContextSettings

    def __call__(self) -> ContextEvaluator:
        return ContextEvaluator(openmm.XmlSerializer.deserialize(self.system_xml), self.settings)


@dataclass(frozen=True)
class PlatformChoice:
    """A platform and why it was taken.

    Attributes
    ----------
    name : str
        The platform.
    seconds : dict of float
        Time of one evaluation with forces, by platform; empty if the platform was given by name.
    refused : dict of str
        Why a platform was not taken into account.
    """

    name: str
    seconds: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def report(self) -> str:
        """One line."""
        if not self.seconds:
            return self.name
        ordered = sorted(self.seconds.items(), key=lambda item: item[1])
        timings = ", ".join(f"{name} {1e6 * seconds:.0f} us" for name, seconds in ordered)
        refused = "".join(f"; {name} cannot be used: {reason}" for name, reason in self.refused.items())
        return f"{self.name} (energy and forces of one configuration: {timings}{refused})"


def choose_platform(wanted: str, system: openmm.System, settings: ContextSettings, frame: Frame) -> PlatformChoice:
    """The platform asked for or, for "auto", the fastest for this System.

    Parameters
    ----------
    wanted : str
        "auto" or the name of a platform.
    system : openmm.System
    settings : ContextSettings
        Its platform is ignored.
    frame : (N, 3) array
        nm; a plausible configuration, for the timing. A platform whose energy of it differs from that of the Reference
        platform by more than 1 kJ/mol + 0.1 % is not taken: no precision explains that much.

    Raises
    ------
    PotentialError
        There is no such platform, or none can run the System.
    """
    available = [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]
    if wanted != "auto":
        if wanted not in available:
            raise PotentialError(f"OpenMM has no platform {wanted!r} here; it has {', '.join(available)}")
        ContextEvaluator(system, _on(settings, wanted))
        return PlatformChoice(wanted)
    seconds: dict[str, float] = {}
    refused: dict[str, str] = {}
    expected = math.nan
    for name in sorted(available, key=lambda name: name != "Reference"):
        try:
            taken, energy = _time(ContextEvaluator(system, _on(settings, name)), frame)
        except Exception as error:  # a driver may be missing
            refused[name] = str(error)
            continue
        if name == "Reference":
            expected = energy
        elif abs(energy - expected) > 1 + 1e-3 * abs(expected):
            refused[name] = f"its energy is {energy:.6g} kJ/mol, that of Reference {expected:.6g}"
            logger.warning("OpenMM platform %s computes wrong energies here: %s", name, refused[name])
            continue
        seconds[name] = taken
    if not seconds:
        raise PotentialError(f"no OpenMM platform can run this System: {refused}")
    choice = PlatformChoice(min(seconds, key=lambda name: seconds[name]), seconds, refused)
    logger.info("OpenMM platform %s", choice.report())
    return choice


def _on(settings: ContextSettings, platform: str) -> ContextSettings:
    return ContextSettings(platform, settings.precision, settings.device_index, settings.threads)


def _time(evaluate: ContextEvaluator, frame: Frame) -> tuple[float, float]:
    """Shortest of six times in seconds (fewer if they take long; the first call may compile kernels), and energy."""
    begin = time.perf_counter()
    energy, _ = evaluate(frame, True)
    seconds: list[float] = []
    while len(seconds) < 6 and (not seconds or time.perf_counter() - begin < 1.0):
        start = time.perf_counter()
        evaluate(frame, True)
        seconds.append(time.perf_counter() - start)
    return min(seconds), energy
