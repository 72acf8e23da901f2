"""The modes of a phase: one table, no ladder."""

import dataclasses

from kerakd.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Mode:
    """One row of the table: is there a teacher, does it learn, does it listen to the student; the papers' weights of hard and soft loss."""

    teacher: bool
    teacher_learns: bool
    teacher_listens: bool
    hard_weight: float
    soft_weight: float
    paper: str

    @property
    def frozen_teacher(self):
        """Whether there is a teacher, and it does not learn."""
        return self.teacher and not self.teacher_learns


MODES = {
    "alone": Mode(False, False, False, 1.0, 0.0, "plain training; QKD self-studying"),
    "joint": Mode(True, True, False, 0.5, 0.5, "Apprentice, scheme A"),
    "trained_teacher": Mode(True, False, False, 0.5, 0.5, "Apprentice, scheme B; QKD tutoring with weights 1 and 1; FunMatch with weights 0 and 1"),
    "finetune": Mode(True, False, False, 0.5, 0.5, "Apprentice, scheme C: the student starts from trained float weights"),
    "co_study": Mode(True, True, True, 1.0, 1.0, "QKD co-studying"),
}


def mode_named(name):
    """The Mode. Raises: BadInput."""
    if name not in MODES:
        raise BadInput(f"mode: expected one of {', '.join(MODES)}, received {name!r}")
    return MODES[name]
