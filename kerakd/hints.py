"""What a student learns from inside its teacher: the outputs of pairs of layers, compared (FitNets; attention transfer)."""

import tf_keras as keras

from kerakd import losses
from kerakd.errors import BadInput
from kerakd.graph import check_functional, flat


class Hints:
    """The sum over pairs of hint_loss(f_S, f_T), per example.

    Args:
        student, teacher: functional models.
        pairs: [(name of a layer of the student, name of a layer of the teacher)]; of the teacher also one in a model nested in it.
        loss: a key of losses.FEATURES. "hint" compares values: a 1x1 convolution, which learns, brings the student's channels
            to the teacher's. "attention" compares where the energy is: only the sizes of the images have to agree.
    Raises: BadInput for an unknown layer or loss, outputs whose sizes differ or have no positions to attend to, a teacher that is not made of layers
        alone, an add_loss of a tensor, which a copy of the student would not have.

    Attributes `student` and `teacher` are the same networks, answering [logits, the layers' outputs ...].
    """

    def __init__(self, student, teacher, pairs, loss="hint"):
        if isinstance(pairs, dict) or not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
            raise BadInput(f"hints: expected pairs [(layer of the student, layer of the teacher), ...], received {pairs!r}")
        if loss not in losses.FEATURES:
            raise BadInput(f"hint_loss: expected one of {', '.join(losses.FEATURES)}, received {loss!r}")
        check_functional(teacher, "teacher")
        if lost := next((layer.name for layer in student.layers if type(layer).__name__ == "AddLoss"), None):
            raise BadInput(f"student: expected no add_loss of a tensor beside hints, received {lost!r}; give add_loss a function, or leave the hints out")
        self.loss = losses.FEATURES[loss]
        if any(theirs not in {layer.name for layer in teacher.layers} for _, theirs in pairs):
            teacher = flat(teacher)
        self.student = keras.Model(student.inputs, [student.output, *(_output(student, mine, "student") for mine, _ in pairs)])
        self.teacher = keras.Model(teacher.inputs, [teacher.output, *(_output(teacher, theirs, "teacher") for _, theirs in pairs)])
        self.projectors = []
        for (mine, theirs), f_s, f_t in zip(pairs, self.student.outputs[1:], self.teacher.outputs[1:], strict=True):
            if f_s.shape[1:-1] != f_t.shape[1:-1]:
                raise BadInput(f"hints: expected outputs of one size, received {tuple(f_s.shape[1:])} of {mine!r} and {tuple(f_t.shape[1:])} of {theirs!r}")
            if loss == "attention" and len(f_s.shape) == 2:
                raise BadInput(f"hints: expected outputs with positions for the loss 'attention', received {tuple(f_s.shape[1:])} of {mine!r}; take 'hint'")
            projector = keras.layers.Dense(f_t.shape[-1], use_bias=False, name=f"{mine}_projector") if loss == "hint" else None
            if projector is not None:
                projector.build(f_s.shape)
            self.projectors.append(projector)

    @property
    def trainable_variables(self):
        return [variable for projector in self.projectors if projector is not None for variable in projector.trainable_variables]

    def __call__(self, mine, theirs):
        """[n] of the outputs of the student's layers and the teacher's, lists in the order of the pairs. The gradient does not reach the teacher."""
        pairs = zip(self.projectors, mine, theirs, strict=True)
        return sum(self.loss(f_s if projector is None else projector(f_s), f_t) for projector, f_s, f_t in pairs)


def _output(model, name, whose):
    """The tensor that a layer gives in this model; the layer may be called in others too."""
    try:
        layer = model.get_layer(name)
    except ValueError as error:
        names = ", ".join(layer.name for layer in model.layers)
        raise BadInput(f"hints: expected a layer of the {whose}, received {name!r}; its layers are {names}") from error
    here = [node for nodes in model._nodes_by_depth.values() for node in nodes if node.layer is layer]
    if len(here) != 1:
        raise BadInput(f"hints: expected a layer that the {whose} calls once, received {name!r}, called {len(here)} times; give each call a layer of its own")
    return here[0].outputs
