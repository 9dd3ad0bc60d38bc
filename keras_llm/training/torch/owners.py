"""Which process owns which variable, where the optimizer's state is divided among several."""


class Owners:
    """The owner of each variable: the number of a process, the same in all of them.

    The largest variables are given away first, each to the process that has the least so far. A
    variable keeps its owner, whatever is frozen later.

    Args:
        variables: Keras variables.
        processes: How many there are.

    Attributes:
        bytes: Of each process, how many bytes its variables have.
    """

    def __init__(self, variables, processes: int):
        # Kept, too, because an id may be that of another object once its own is gone.
        self.variables = list(variables)
        self.bytes = [0] * processes
        self._owner = {}
        sizes = [v.value.numel() * v.value.element_size() for v in self.variables]
        for position in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
            owner = self.bytes.index(min(self.bytes))
            self.bytes[owner] += sizes[position]
            self._owner[id(self.variables[position])] = owner

    def of(self, variable) -> int:
        """The owner of a variable.

        Of one that was frozen when the owners were found it is the first process, whose optimizer
        says, as that of a single process does, that it does not know the variable.
        """
        return self._owner.get(id(variable), 0)
