"""The experiments of Felardos, Hénin, Charpiat (2022), run again: what the paper says beside what is found here.

Each experiment is a module with a function ``run(scale, seeds, folder, say) -> Report``, entered by name in
`boltzgen.reproduce.experiments.EXPERIMENTS`. Nothing heavy is imported before one is run.
"""

from __future__ import annotations

from boltzgen.reproduce.experiments import EXPERIMENTS, SCALES, reproduce

__all__ = ["EXPERIMENTS", "SCALES", "reproduce"]
