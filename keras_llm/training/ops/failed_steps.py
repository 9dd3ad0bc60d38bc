"""A model on JAX after a step that has failed."""


def values_given_back(model, function):
    """Keras's function of a step; where it fails, the variables have their values again.

    Keras takes them away for as long as `fit` runs, and knows them again only after a first step.

    Args:
        model: The model.
        function: Keras's, of a train, test or predict step.
    """

    def call(state, data):
        try:
            return function(state, data)
        except BaseException:
            parts = [model.trainable_variables, model.non_trainable_variables]
            # The state of a step, of one of evaluation, or of one of `predict`.
            parts += [model.optimizer.variables] if len(state) == 4 else []
            parts += [model.metrics_variables] if len(state) > 2 else []
            for variables, values in zip(parts, state, strict=True):
                for variable, value in zip(variables, values, strict=True):
                    if not value.is_deleted():
                        variable.assign(value)
            raise

    return call
