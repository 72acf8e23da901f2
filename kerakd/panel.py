"""The teachers of a Distiller: what they see of a batch, and what they say of it."""

import tensorflow as tf

from kerakd.errors import BadInput
from kerakd.graph import is_functional
from kerakd.hints import Hints


class Panel:
    """Some teachers, or none.

    Args:
        student: a functional model. teachers: a list of models.
        hints, hint_loss: as `Hints` takes them; of the first teacher.
        cache: a `kerakd.cache.TeacherCache` or None.
    Raises: BadInput for hints without a teacher, or beside a cache.
    """

    def __init__(self, student, teachers, hints=(), hint_loss="hint", cache=None):
        if hints and cache is not None:
            raise BadInput("hints: expected none beside teacher_cache, which holds logits and no features, received both")
        if hints and not teachers:
            raise BadInput("hints: expected a teacher beside them, received none; give teacher=")
        self.teachers, self.cache, self.classes = teachers, cache, student.output_shape[-1]
        self.hints = Hints(student, teachers[0], hints, hint_loss) if hints else None

    def check(self, name, mode):
        """Raises BadInput where these teachers can't be those of a Mode."""
        if mode.teacher and not self.teachers:
            raise BadInput(f"teacher: expected a model in mode {name!r}, received none; give teacher= or take mode='alone'")
        if not mode.teacher_learns:
            return
        if len(self.teachers) > 1:
            raise BadInput(f"teacher: expected one in mode {name!r}, in which it learns, received {len(self.teachers)}")
        if self.hints is not None:
            raise BadInput(f"hints: expected none in mode {name!r}, in which the teacher learns, received some; they are those of a frozen teacher")
        if self.cache is not None:
            raise BadInput(f"teacher_cache: expected none in mode {name!r}, in which the teacher learns and says other things at every step, received one")

    def views(self, x):
        """What each teacher sees, of a dict of views. Raises: BadInput for images of another size than a teacher takes."""
        views = x["teachers"] if "teachers" in x else [x["student"]] * len(self.teachers)
        if not isinstance(views, (tuple, list)) or len(views) != len(self.teachers):
            received = len(views) if isinstance(views, (tuple, list)) else type(views).__name__
            raise BadInput(f"teachers: expected in each batch a tuple of {len(self.teachers)}, a view for each teacher, received {received}")
        for teacher, view in zip(self.teachers, views, strict=True):
            if not is_functional(teacher) or len(teacher.inputs) != 1 or not hasattr(view, "shape"):
                continue  # what it takes is for Keras to find out
            expected, received = teacher.inputs[0].shape[1:], tf.TensorShape(view.shape)[1:]
            if expected.rank == received.rank and not expected.is_compatible_with(received):
                expected, received = tuple(expected), tuple(received)
                raise BadInput(
                    f"teacher: expected images {expected}, which it takes, received {received}; give batches of {{'student': images, 'teachers': [its images]}}"
                )
        return views

    def ask(self, x):
        """What frozen teachers say of a batch, a dict of views: float32 [n, teachers, C]."""
        said = [tf.cast(teacher(view, training=False), tf.float32) for teacher, view in zip(self.teachers, self.views(x), strict=True)]
        for logits in said:  # of a subclassed teacher that was not built before
            if not logits.shape.is_compatible_with([None, self.classes]):
                raise BadInput(f"teacher: expected logits [n, {self.classes}], as the student has, received {logits.shape}")
        return tf.stack(said, axis=1)

    def say(self, x):
        """([logits of each frozen teacher: given, remembered or computed], [the first teacher's outputs at the hints])."""
        if "logits" in x:
            if self.hints is not None:
                raise BadInput("hints: expected batches of which the teacher is asked, received ones with its logits, which have no features")
            shape = tf.TensorShape(x["logits"].shape)
            if not shape.is_compatible_with([None, len(self.teachers), self.classes]):
                raise BadInput(f"logits: expected in each batch those of all teachers, [n, {len(self.teachers)}, {self.classes}], received {shape}")
            return tf.unstack(x["logits"], axis=1), []
        if self.cache is not None:
            if "known" not in x:
                raise BadInput("teacher_cache: expected batches of its `join`, received others; give fit(cache.join(kerakd.data.training(..., places=True)))")
            return tf.unstack(self.cache.recall(x, lambda: self.ask(x)), axis=1), []
        if self.hints is None:
            return tf.unstack(self.ask(x), axis=1), []
        views = self.views(x)
        first, *features = self.hints.teacher(views[0], training=False)
        return [first, *(teacher(view, training=False) for teacher, view in zip(self.teachers[1:], views[1:], strict=True))], features


KEYS = {"student", "teachers", "logits", "place", "known", "said"}  # of a batch's views, and of what a cache joins to them


def views_of(x):
    """A batch's images as a dict of views; one of a network's several inputs is no such dict. Raises: BadInput for a view of nobody."""
    if not isinstance(x, dict) or "student" not in x:
        return {"student": x}
    unknown = x.keys() - KEYS
    if unknown:
        raise BadInput(f"batch: expected views named {', '.join(sorted(KEYS))}, received {', '.join(map(repr, sorted(unknown)))} as well")
    return x
