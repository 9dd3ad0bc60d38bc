"""A step that is applied to its own result again and again, by Python, layer by layer."""


def python_loop(step):
    """`(state, most) -> (state, goes_on)`: at most `most` steps, while `step` wants more."""

    def run(state, most):
        goes_on = True
        while most and goes_on:
            state, goes_on = step(state)
            most -= 1
        return state, bool(goes_on)

    return run
