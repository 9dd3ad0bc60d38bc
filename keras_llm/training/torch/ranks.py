"""What the processes of one training do together: rows, gradients, tokens, metrics, randomness."""

import contextlib

import keras
import numpy as np
import torch

from keras_llm.training.torch.gradient_sum import GradientSum

# Batches between two looks at the metrics of all processes.
EVERY = 10


class Ranks:
    """The place of this process in a training by several.

    Each process takes its rows of a batch, and computes the gradient of the sum of their losses.
    Before an update the sums meet: gradients, tokens, and whether a loss was not finite. They are
    divided once, and every process makes the same update. Metrics meet where somebody reads them,
    after the same number of batches everywhere.

    Args:
        group: The `ProcessGroup`.

    Attributes:
        sharded: The `ShardedOptimizer`, where variables have owners; else None.
    """

    def __init__(self, group):
        self.group, self.sharded = group, None
        # The weights and random numbers are those of the first process.
        self.has_met = False
        self.is_alone = False
        self._unit = self._sum = self._random = None

    # A batch

    def rows_of(self, batch):
        """The rows of this process, and whether there are any; else it gets one to look at.

        Args:
            batch: `(x, y, sample_weight)`, arrays with the batch as their first dimension.
        """
        count = len(next(leaf for leaf in keras.tree.flatten(batch) if leaf is not None))
        has_rows = count > self.group.rank
        rows = self.group.rows_of(count) if has_rows else slice(0, 1)
        return keras.tree.map_structure(lambda a: None if a is None else a[rows], batch), has_rows

    def begin_window(self, trained, unit: float) -> float:
        """Drops what a failed update may have left.

        Args:
            trained: The `TrainedVariables`.
            unit: The number that sums would be divided by for this process's rows.

        Returns:
            That number, which is the same in all processes and all windows.
        """
        self.sum_for(trained).forget()
        if self._unit is None:
            self._unit = max(self.group.numbers_of(unit))
        return self._unit

    # An update

    def sum_for(self, trained) -> GradientSum:
        """The sum of the gradients of some `TrainedVariables`."""
        if self._sum is None or self._sum.tensors is not trained.tensors:
            owners = None if self.sharded is None else self.sharded.owners(trained.variables)
            self._sum = GradientSum(self.group, trained.tensors, owners)
        return self._sum

    @torch.no_grad()
    def meet_before_update(self, accumulator, guard, trained):
        """Sums what an update is made from: `.grad`, the tokens, the batches that were lost.

        A variable that has a gradient in no process has none afterwards.

        Returns:
            Where variables have owners: the global norm of the sums; None where nothing has a
            gradient.
        """
        known = self.sum_for(trained).finish()
        device = trained.tensors[0].device
        # Filled where it is: a copy from the host would wait for a GPU.
        facts = torch.ones(3 + len(known), dtype=torch.float64, device=device)
        facts[0], facts[1], facts[2] = accumulator.tokens, guard.lost, 0.0
        for position, is_known in enumerate(known, 3):
            if not is_known:
                facts[position] = 0.0
        if self.sharded is not None:
            facts[2] = self.sharded.sum_of_squares(trained.tensors)
        self.group.sum_([facts])
        accumulator.tokens = facts[0].float()
        guard.lost = facts[1] > 0 if facts.is_cuda else bool(facts[1])
        # Where this process had all gradients, nobody has to wait for a GPU.
        if not all(known):
            known = facts[3:].tolist()
            for tensor, count in zip(trained.tensors, known, strict=True):
                if not count:
                    tensor.grad = None
        return facts[2].sqrt().float() if self.sharded is not None and any(known) else None

    # Metrics

    @contextlib.contextmanager
    def alone(self):
        """Context manager in which metrics are those of this process."""
        self.is_alone = True
        try:
            yield
        finally:
            self.is_alone = False

    def metrics_of_all(self, variables, sums, spoiled):
        """Context manager in which variables of metrics have their sums over all processes.

        Args:
            variables: Keras variables of metrics, which are sums.
            sums: The tensor of the logged loss's sum and tokens.
            spoiled: Whether they are NaN because nothing else is left of the epoch; see
                `UpdateGuard`.
        """
        copies = self.sums([variable.value for variable in variables], sums, spoiled)
        return keras.StatelessScope(state_mapping=list(zip(variables, copies, strict=True)))

    @torch.no_grad()
    def sums(self, tensors, sums, spoiled) -> list:
        """The sums of tensors over all processes, as copies; arguments as of `metrics_of_all`."""
        copies = [tensor.detach().clone() for tensor in tensors]
        flag = torch.zeros((), device=sums.device) + spoiled
        tokens = sums[1].clone()
        if spoiled is not False:
            copies = [copy.nan_to_num(0.0, 0.0, 0.0) for copy in copies]
            tokens = tokens.nan_to_num(0.0)
        self.group.sum_([*copies, flag, tokens])
        is_empty = (flag > 0) & (tokens == 0)
        return [
            copy.masked_fill(is_empty, torch.nan) if copy.is_floating_point() else copy
            for copy in copies
        ]

    # The state of a run

    @torch.no_grad()
    def whole_state(self, state: dict, tensors, variables) -> dict:
        """The state of a step, of all processes together.

        What is summed up to now, gradients too, becomes the sums over all processes: a run may go
        on with another number of them. All processes call this.

        Args:
            state: That of this process, made of copies.
            tensors: The tensors of the model's variables.
            variables: The model's variables.
        """
        window = state["window"]
        if window["batches"]:
            own = window["gradients"]
            known = self.group.sum_of([float(gradient is not None) for gradient in own])
            pairs = zip(own, tensors, strict=True)
            whole = [torch.zeros_like(t) if g is None else g for g, t in pairs]
            self.group.sum_([g for g, count in zip(whole, known, strict=True) if count])
            gradients = [g if count else None for g, count in zip(whole, known, strict=True)]
            tokens = self.group.sum_of([float(window["tokens"])])[0]
            window = window | {"gradients": gradients, "tokens": tokens}
        self.group.sum_(state["metrics"])
        guard = state["guard"]
        lost, spoiled = (self.group.any_of(guard[key]) for key in ("lost", "spoiled"))
        seeds = [v.value.view(-1).long().cpu() for v in seed_variables(variables)]
        own = {"random": self.random_state(), "seeds": torch.cat([torch.zeros(1).long(), *seeds])}
        each = {name: self.group.tensors_of(value) for name, value in own.items()}
        together = {"guard": guard | {"lost": lost, "spoiled": spoiled}, "ranks": each}
        return state | {"window": window} | together

    def own_state(self, state: dict, variables) -> dict:
        """The part of this process in a state that `whole_state` returned, or one process alone.

        The first process takes over what was summed up to then.
        """
        self._unit = state["window"]["unit"] if state["window"]["batches"] else self._unit
        each = state.get("ranks", {"random": []})
        if len(each["random"]) == self.group.size:
            self._random = each["random"][self.group.rank].cpu()
            seeds = each["seeds"][self.group.rank][1:]
            for variable in seed_variables(variables):
                own, seeds = seeds[: variable.value.numel()], seeds[variable.value.numel() :]
                variable.assign(own.view(variable.shape))
        if self.group.is_first:
            return state
        nothing = {"gradients": [], "tokens": 0.0}
        metrics = [torch.zeros_like(values) for values in state["metrics"]]
        return state | {"window": state["window"] | nothing, "metrics": metrics}

    def random_state(self):
        """The state of this process's own random numbers."""
        return torch.cuda.get_rng_state() if self.group.device == "cuda" else self._random

    # Weights and random numbers

    def meet(self, model, optimizer):
        """Gives all processes the weights of the first, and each its own random numbers.

        Those that the order of data is drawn from are the same everywhere; those of dropout are
        not.
        """
        shared = optimizer.variables if self.sharded is None else self.sharded.shared_variables
        variables = [*model.variables, *shared]
        state = torch.get_rng_state()
        self.group.copy_from_first_([*(variable.value for variable in variables), state])
        torch.set_rng_state(state)
        # A copy: what is drawn here must not change the order of the data.
        copy = torch.Generator()
        copy.set_state(state)
        drawn = int(torch.randint(2**31, (), generator=copy))
        seeds = np.random.SeedSequence([drawn, int(optimizer.iterations), self.group.rank])
        seed = int(seeds.generate_state(1, "uint64")[0] >> 1)
        generator = torch.Generator(self.group.device).manual_seed(seed)
        self._random = generator.get_state()
        for variable in seed_variables(variables):
            if self.group.rank:
                value = variable.value.clone()
                value.view(-1)[0] = seed % 2**31
                variable.assign(value)
        self.has_met = True

    @contextlib.contextmanager
    def own_random_numbers(self):
        """Context manager for forward passes: random numbers are this process's own.

        On a GPU they are so from then on: nothing else is drawn there.
        """
        if self.group.device == "cuda":
            if self._random is not None:
                torch.cuda.set_rng_state(self._random)
                self._random = None
            yield
            return
        shared = torch.get_rng_state()
        torch.set_rng_state(self._random)
        try:
            yield
        finally:
            self._random = torch.get_rng_state()
            torch.set_rng_state(shared)


def seed_variables(variables) -> list:
    """The states of the random generators of Keras's own layers."""
    return [variable for variable in variables if variable.name == "seed_generator_state"]
