"""How long everything takes for the molecules of the paper, and what it leaves open about them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from boltzgen.reproduce.curves import Refinement
from boltzgen.reproduce.report import Choice

__all__ = ["CurveKind", "FlattenedSampling", "MoleculeSettings", "Sampling", "common_choices"]


@dataclass(frozen=True)
class CurveKind:
    """A refinement by name.

    Attributes
    ----------
    name, label : str
    loss : str
        A key of `boltzgen.losses.LOSSES`.
    """

    name: str
    label: str
    loss: str


@dataclass(frozen=True)
class Sampling:
    """Parallel tempering of hybrid Monte Carlo; parameters of `boltzgen.sampling.parallel_tempering`."""

    n_steps: int
    n_replicas: int
    t_max: float
    save_interval: int
    time_step: float = 2.0
    n_walkers: int = 64
    trajectory: int = 50
    exchange_interval: int = 100

    def shortened(self, share: float) -> Sampling:
        """The same with a share of the steps, and few replicas and walkers."""
        n_steps, n_replicas = max(200, round(share * self.n_steps)), min(self.n_replicas, 2)
        return replace(self, n_steps=n_steps, save_interval=100, n_walkers=8, n_replicas=n_replicas)


@dataclass(frozen=True)
class FlattenedSampling:
    """Sampling with two torsions made flat, reweighted; parameters of `boltzgen.sampling.flattened_sampling`.

    Attributes
    ----------
    n_learning : int
        Steps in which the bias is learned.
    n_spreading : int
        Steps under the bias before those that count, in which the walkers leave the structure's basin.
    """

    n_learning: int
    n_spreading: int
    n_steps: int
    save_interval: int
    time_step: float = 2.0
    n_walkers: int = 128
    n_groups: int = 32

    def shortened(self, share: float) -> FlattenedSampling:
        """The same with a share of the steps, and few walkers."""
        learning, n_steps = (max(200, round(share * n)) for n in (self.n_learning, self.n_steps))
        shorter = replace(self, n_learning=learning, n_spreading=learning, n_steps=n_steps)
        return replace(shorter, save_interval=50, n_walkers=8, n_groups=4)


@dataclass(frozen=True)
class MoleculeSettings:
    """How long everything takes.

    Attributes
    ----------
    temperature : float
        K.
    reference : Sampling or FlattenedSampling
        On U: the populations of the Boltzmann distribution, and frames that the other two start from.
    data : Sampling
        On U, for all that is trained on data.
    placed : Sampling
        On U with the hydrogens at their minimum; under the bias of the reference, if that has one.
    placement_steps : int
        Of the network that places hydrogens.
    data_share : (str, float), optional
        A mode, and the share of the ladders of the data that start in it, where that is not the mode's own.
    pretraining_steps : int
        With KL_z on data.
    pretraining_rate : float
        Of Adam, to zero on a cosine.
    refinement : Refinement
        Of all losses alike; ``loss`` is replaced.
    n_measured : int
        Samples that each point of a curve is measured with.
    pretraining_strength, refinement_strength : float
        lambda of the alignment penalty, nm^-2.
    max_gradient : float
        Cap of each energy term in the losses, kJ/mol/nm.
    n_rounds, n_hidden : int
        Of the flow: rounds of four couplings, and features.
    placement_hidden : int
        Width of the network that places hydrogens.
    """

    temperature: float
    reference: Sampling | FlattenedSampling
    data: Sampling
    placed: Sampling
    placement_steps: int
    pretraining_steps: int
    refinement: Refinement
    n_measured: int
    refinement_strength: float
    data_share: tuple[str, float] | None = None
    pretraining_rate: float = 1e-3
    pretraining_strength: float = 1000.0
    max_gradient: float = 20_000.0
    n_rounds: int = 24
    n_hidden: int = 256
    placement_hidden: int = 512

    @property
    def sources(self) -> str:
        """All that the frames to train on depend on."""
        return f"{self.reference}, {self.data}, {self.data_share}"

    @property
    def trained(self) -> str:
        """All that pre-training and refinements depend on: how their target is sampled is not part of it."""
        return ", ".join(f"{one.name}={getattr(self, one.name)}" for one in fields(self) if one.name != "placed")

    def shortened(self, share: float) -> MoleculeSettings:
        """The same with a share of all steps and samples, to try whether it runs; it shows nothing then."""
        cut = lambda n, least: max(least, round(share * n))
        steps = cut(self.refinement.n_steps, 4)
        return replace(
            self,
            reference=self.reference.shortened(share),
            data=self.data.shortened(share),
            data_share=None,
            placed=self.placed.shortened(share),
            placement_steps=cut(self.placement_steps, 5),
            pretraining_steps=cut(self.pretraining_steps, 5),
            refinement=replace(self.refinement, n_steps=steps, measure_every=max(1, steps // 2), batch_size=64),
            n_measured=cut(self.n_measured, 100),
            n_rounds=2,
            n_hidden=16,
        )


def _in_words(sampling: Sampling | FlattenedSampling, bias: str = "") -> str:
    step = f"{sampling.time_step:g} fs"
    if isinstance(sampling, FlattenedSampling):
        return (
            f"Langevin dynamics (BAOAB, {step}, not Metropolised) under a bias that makes phi and psi flat, learned on "
            f"U in {sampling.n_learning:,} steps; {sampling.n_walkers} walkers of {sampling.n_steps:,} steps, "
            "reweighted (at this cost parallel tempering alone does not resolve a mode of 1 %)"
        )
    return (
        f"parallel tempering of Metropolis-Hastings (hybrid Monte Carlo, trajectories of {sampling.trajectory} steps "
        f"of {step}){bias}, {sampling.n_replicas} temperatures up to {sampling.t_max:g} K, swaps every "
        f"{sampling.exchange_interval} steps, {sampling.n_walkers} ladders of {sampling.n_steps:,} steps"
    )


def common_choices(settings: MoleculeSettings) -> list[Choice]:
    """What the paper leaves open for both molecules, or what is done otherwise here."""
    refinement, chosen = settings.refinement, settings.data_share
    of_mode = "" if chosen is None else f", {100 * chosen[1]:g} % of the ladders in the mode {chosen[0]!r}"
    flat = " under the bias of these, reweighted" if isinstance(settings.reference, FlattenedSampling) else ""
    return [
        Choice(
            "populations of the Boltzmann distribution",
            "Metropolis-Hastings with parallel tempering; how many samples, not given",
            f"{_in_words(settings.reference)}; without alignment penalty",
        ),
        Choice(
            "data",
            "the same",
            f"from frames of the former on{of_mode}: {_in_words(settings.data)}; without alignment penalty, which is "
            "applied to the frames afterwards; one data set for all seeds",
        ),
        Choice(
            "populations with hydrogens at their minimum",
            "equation 32",
            "sampled on U(h(x_C)), from the frames of the Boltzmann distribution on as they were sampled: "
            + _in_words(settings.placed, flat),
        ),
        Choice(
            "alignment penalty",
            "lambda = 10, an L2 distance; unit of length, and squared, summed or averaged, not given",
            f"lambda = {settings.pretraining_strength:g} nm^-2, which is 10 per square angstrom, times the sum of "
            "squares over heavy atoms",
        ),
        Choice(
            "flow",
            "24 x 4 couplings of 256, CELU",
            f"{settings.n_rounds} x 4 couplings of {settings.n_hidden}, CELU; each scales by at most e^0.25 and starts "
            "as identity; a fixed linear map gives centre and covariance of the data",
        ),
        Choice(
            "network for hydrogens",
            "3 layers of 512, CELU; its inputs, loss and training not given",
            f"the same sizes ({settings.placement_hidden}) on internal coordinates of the heavy atoms; trained on the "
            f"energy of the data for {settings.placement_steps:,} steps, then held, one for all seeds",
        ),
        Choice(
            "caps on energy terms",
            "the gradient of each term never exceeds a threshold, not given",
            f"{settings.max_gradient:g} kJ/mol/nm, in the losses only; there U beyond 100 kT above the median of a "
            "batch goes on as its logarithm, gradients are clipped at norm 50, and steps far beyond the usual left out",
        ),
        Choice("pre-training", "10,000 steps of KL_z", f"{settings.pretraining_steps:,} steps"),
        Choice("refinement", "100,000 steps", f"{refinement.n_steps:,} steps"),
        Choice("batch size", "not given", f"{refinement.batch_size}"),
        Choice(
            "optimiser",
            "not given",
            f"Adam, {settings.pretraining_rate:g} in the pre-training (to zero on a cosine), "
            f"{refinement.learning_rate:g} in the refinement (constant)",
        ),
        Choice(
            "weights of KL_z data-free", "divided by the batch size (eq. 7)", "divided by their sum (1/Z of eq. 20e)"
        ),
    ]
