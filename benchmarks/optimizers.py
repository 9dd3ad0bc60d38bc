"""One update of 30 million parameters in 150 tensors: ours, PyTorch's, Keras's, Hugging Face's.

    python benchmarks/optimizers.py [--repeats 15]

All sides run in one process, in turns, so that whatever else the machine does falls on all of them.
Prints medians, the best of each, and ratios to PyTorch's.
"""

import argparse
import statistics
import time

import keras_llm  # noqa: F401  isort: skip  (chooses the backend before Keras loads)
import keras
import torch
import transformers
from transformers.optimization import Adafactor as HuggingFaceAdafactor

from keras_llm import optimizers

# A decoder of 16 layers: embedding; query, key, value, output, up, down; norms and biases.
LAYER = [(384, 384)] * 4 + [(384, 1536), (1536, 384)] + [(384,)] * 3
SHAPES = [(4096, 384), *LAYER * 16, *[(384,)] * 5]


def torch_side(make_optimizer, gradients, clip=None):
    """The update of PyTorch parameters."""
    parameters = [torch.nn.Parameter(torch.randn(shape) * 0.02) for shape in SHAPES]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    optimizer = make_optimizer(parameters)

    def update():
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()

    return update


def keras_side(optimizer, gradients):
    """The update of Keras variables."""
    variables = [
        keras.Variable(torch.randn(shape) * 0.02, name="kernel" if len(shape) > 1 else "bias")
        for shape in SHAPES
    ]
    gradients = [gradient.clone() for gradient in gradients]
    optimizer.build(variables)

    def update():
        with torch.no_grad():
            optimizer.apply(gradients)

    return update


def model_side(optimizer):
    """A step of a plain `keras.Model` with as many parameters, on a few rows: mostly the update."""
    widths = [1536, 384] * 25
    model = keras.Sequential([keras.Input((384,)), *map(keras.layers.Dense, widths)])
    model.compile(optimizer=optimizer, loss="mean_squared_error")
    rows = torch.zeros(8, 384)
    return lambda: model.train_on_batch(rows, rows)


def measure(sides, repeats):
    """The times of each side, after two rounds of warm-up."""
    times = {name: [] for name in sides}
    for turn in range(repeats + 2):
        for name, update in sides.items():
            start = time.perf_counter()
            update()
            if turn >= 2:
                times[name].append(time.perf_counter() - start)
    return times


def report(title, sides, repeats):
    """Measures and prints; the first side is what the others are divided by."""
    times = measure(sides, repeats)
    baseline = statistics.median(next(iter(times.values())))
    print(f"\n{title:50} median      best     ratio of medians")
    for name, values in times.items():
        median = statistics.median(values)
        print(
            f"  {name:45} {1000 * median:6.1f} ms {1000 * min(values):6.1f} ms "
            f"{median / baseline:8.2f}"
        )


def main():
    """Runs all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    if keras.backend.backend() != "torch":
        parser.error("compares with PyTorch: run it with KERAS_BACKEND=torch")
    torch.manual_seed(0)
    gradients = [torch.randn(shape) * 1e-3 for shape in SHAPES]
    print(
        f"torch {torch.__version__}, keras {keras.__version__}, "
        f"transformers {transformers.__version__}, {torch.get_num_threads()} threads; "
        f"{sum(g.numel() for g in gradients) / 1e6:.1f} M parameters in {len(SHAPES)} tensors"
    )

    def torch_adamw(parameters):
        return torch.optim.AdamW(parameters, lr=1e-3, fused=True)

    def torch_adafactor(parameters):
        return torch.optim.Adafactor(parameters, foreach=True)

    report(
        "AdamW",
        {
            "torch.optim.AdamW(fused=True)": torch_side(torch_adamw, gradients),
            "keras_llm.optimizers.AdamW": keras_side(optimizers.AdamW(1e-3), gradients),
            "keras.optimizers.AdamW": keras_side(keras.optimizers.AdamW(1e-3), gradients),
        },
        repeats,
    )
    report(
        "AdamW, gradients clipped to a global norm of 1",
        {
            "clip_grad_norm_, torch.optim.AdamW(fused=True)": torch_side(
                torch_adamw, gradients, clip=1.0
            ),
            "keras_llm.optimizers.AdamW(global_clipnorm=1.0)": keras_side(
                optimizers.AdamW(1e-3, global_clipnorm=1.0), gradients
            ),
            "keras.optimizers.AdamW(global_clipnorm=1.0)": keras_side(
                keras.optimizers.AdamW(1e-3, global_clipnorm=1.0), gradients
            ),
        },
        repeats,
    )
    report(
        "Adafactor",
        {
            "torch.optim.Adafactor(foreach=True)": torch_side(torch_adafactor, gradients),
            "transformers.optimization.Adafactor": torch_side(HuggingFaceAdafactor, gradients),
            "keras_llm.optimizers.Adafactor": keras_side(optimizers.Adafactor(), gradients),
            "keras.optimizers.Adafactor": keras_side(keras.optimizers.Adafactor(1e-2), gradients),
        },
        repeats,
    )
    report(
        "train_on_batch of a plain keras.Model",
        {
            "keras.optimizers.AdamW": model_side(keras.optimizers.AdamW(1e-3)),
            "keras_llm.optimizers.AdamW": model_side(optimizers.AdamW(1e-3)),
            "keras.optimizers.Adafactor": model_side(keras.optimizers.Adafactor(1e-2)),
            "keras_llm.optimizers.Adafactor": model_side(optimizers.Adafactor()),
        },
        repeats,
    )


if __name__ == "__main__":
    main()
