"""Mistakes that raise no error, told by a `SanityWarning` at `compile` and in each `fit`.

`compile_checks` reads the arguments of `compile`, `schedule_checks` the learning rate that a `fit`
is about to use, `batch_checks` the first batch. `first_batch` brings a batch to its checks. Each
check is a function that returns a message, or None where nothing is certainly wrong: evidence that
could be chance says nothing.
"""
