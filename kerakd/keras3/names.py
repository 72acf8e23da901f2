"""Names of layers."""

import itertools


class Names:
    """Names for the layers of one model: its own are kept, those of added layers keep clear of them."""

    def __init__(self, reserved):
        self.reserved, self.given = set(reserved), set()

    def own(self, name):
        if name in self.given:  # an operation object that is called twice
            return self.added(name)
        self.given.add(name)
        return name

    def added(self, name):
        free = (n for n in itertools.chain([name], (f"{name}_{k}" for k in itertools.count(2))) if n not in self.reserved | self.given)
        return self.own(next(free))
