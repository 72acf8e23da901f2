"""The stages of a run: teacher, float student, then the students of each seed."""

import dataclasses

from kerakd.modes import MODES
from kerakd.networks import teacher_name
from kerakd.rundir import kind_of
from kerakd.teachers import is_file


@dataclasses.dataclass
class Stage:
    """One network on its way: its name in the run, what the person reads, the phases, and how to make its networks.

    make() -> (student, list of teachers), fresh for the seed. size: of its images, 0 for the run's.
    """

    name: str
    title: str
    phases: list
    seed: int
    make: object
    size: int = 0

    @property
    def quantized(self):
        """Whether its student is."""
        return kind_of(self.name) not in ("teacher", "float")

    @property
    def teacher_learns(self):
        """Whether it does in any of the phases."""
        return any(MODES[mode].teacher_learns for mode, _ in self.phases)

    def learners(self, distiller):
        """The networks that it trains."""
        return [distiller.student, *(distiller.teachers if self.teacher_learns else [])]


def stages(c, networks):
    """The stages that the configuration `c` asks for, in order; `networks` makes theirs."""
    found = []
    for k, one in enumerate(c.teachers()):
        if c.teacher_epochs and not is_file(one.network):
            phases = [("alone", c.epochs(c.teacher_epochs))]
            found.append(Stage(teacher_name(k), f"teacher {one.network}", phases, c.seed + k, lambda one=one: (networks.teacher(one), []), one.size))
    if c.float_epochs:
        found.append(Stage("float", "float student", [("alone", c.epochs(c.float_epochs))], c.seed, lambda: (networks.float_student(), [])))
    total = sum(epochs for _, epochs in c.phases())
    for seed in range(c.seed, c.seed + c.seeds):
        if c.compare:
            found.append(Stage(f"alone_{seed}", f"student alone, seed {seed}", [("alone", total)], seed, lambda: (networks.student(), [])))
        title = f"student taught, seed {seed}" if c.taught() else f"student, seed {seed}"
        found.append(Stage(f"taught_{seed}", title, c.phases(), seed, lambda: (networks.student(), networks.teachers())))
    return found
