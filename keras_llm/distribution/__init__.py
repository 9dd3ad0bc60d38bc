"""Several processes that train one model: `torchrun --nproc-per-node=4 script.py`.

`import keras_llm` joins the group of processes that torchrun has started; `world()` is that group.
"""

from keras_llm.distribution.base import ProcessLostError, World
from keras_llm.distribution.current import (
    by_all_processes,
    by_first_process,
    join_the_others,
    world,
)
from keras_llm.distribution.sharding import distribute, sharded

join_the_others()

__all__ = [
    "ProcessLostError",
    "World",
    "by_all_processes",
    "by_first_process",
    "distribute",
    "sharded",
    "world",
]
