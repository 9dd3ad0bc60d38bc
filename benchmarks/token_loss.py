"""The loss on whole logits, forward and backward: ours beside PyTorch's and Keras's.

    python benchmarks/token_loss.py                       # both shapes, every side
    python benchmarks/token_loss.py 1024x8192 --sides torch ours ours+metrics

Logits that need a gradient, a tenth of the labels ignored. `+metrics` is a plain `keras.Model`
compiled with the loss and two metrics: what its train step does with the logits. The times are the
CPU's, of one thread, which other work on the machine disturbs least.
"""

import argparse
import json
import time

import harness

SHAPES = ["1024x8192", "2048x50257"]  # tokens, vocabulary
IGNORED, SMOOTHING = -100, 0.1
# What each side is compared with.
BESIDE = {
    "torch": "torch",
    "ours": "torch",
    "ours+metrics": "torch",
    "ours+focal": "torch",
    "keras": "torch",
    "keras+metrics": "torch",
    "torch+smoothing": "torch+smoothing",
    "ours+smoothing": "torch+smoothing",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="*", default=SHAPES)
    parser.add_argument("--sides", nargs="+", default=list(BESIDE), choices=list(BESIDE))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--side")
    args = parser.parse_args()
    if args.side:
        print(json.dumps(run(args.side, args.shapes[0], args.steps, args.dtype)))
        return
    print(harness.machine())
    for shape in args.shapes:
        options = ["--steps", args.steps, "--dtype", args.dtype]
        results = harness.measure(__file__, args.sides, args.rounds, shape, *options)
        print(f"\n{shape}, {args.dtype}:")
        print("| side | beside | ms | time, ratio | memory MB | memory, ratio |")
        print("| --- | --- | --- | --- | --- | --- |")
        for side, result in results.items():
            base = results.get(BESIDE[side], {"seconds": float("nan"), "bytes": float("nan")})
            cells = [side, BESIDE[side], f"{1e3 * result['seconds']:.0f}"]
            cells.append(f"{result['seconds'] / base['seconds']:.2f}")
            cells.append(f"{result['bytes'] / 2**20:.0f}")
            cells.append(f"{result['bytes'] / base['bytes']:.2f}")
            print("| " + " | ".join(cells) + " |", flush=True)


def run(side, shape, steps, dtype):
    """Seconds of each step, and the peak memory above logits and labels."""
    import torch

    torch.set_num_threads(1)
    step = make_step(*side.partition("+")[::2])
    tokens, vocab = map(int, shape.split("x"))
    # Whatever is made once is made here.
    for _ in range(2):
        step(*make_batch(16, 32, dtype))
    logits, labels = make_batch(tokens, vocab, dtype)
    start = harness.resident_bytes()
    harness.forget_peak()
    step(logits, labels)
    above = harness.resident_bytes("VmHWM") - start
    seconds = []
    for _ in range(steps):
        logits.grad = None
        begin = time.process_time()
        step(logits, labels)
        seconds.append(time.process_time() - begin)
    return {"seconds": seconds, "bytes": above}


def make_batch(tokens, vocab, dtype):
    """Logits that need a gradient, and labels."""
    import torch

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(tokens, vocab, generator=generator).to(getattr(torch, dtype))
    labels = torch.randint(vocab, (tokens,), generator=generator)
    labels[torch.rand(tokens, generator=generator) < 0.1] = IGNORED
    return logits.requires_grad_(), labels


def make_step(kind, option):
    """What turns logits and labels into the logits' gradient."""
    if option == "metrics" or kind == "keras":
        return keras_step(*compiled_with(kind, option))
    loss = torch_loss(option) if kind == "torch" else our_loss(option)

    def step(logits, labels):
        loss(labels, logits).backward()

    return step


def torch_loss(option):
    import torch.nn.functional as F

    smoothing = SMOOTHING if option == "smoothing" else 0.0

    def loss(labels, logits):
        return F.cross_entropy(logits, labels, ignore_index=IGNORED, label_smoothing=smoothing)

    return loss


def our_loss(option):
    from keras_llm import losses

    if option == "focal":
        return losses.MaskedSparseCategoricalFocalCrossentropy(2.0, 0.25, IGNORED)
    smoothing = SMOOTHING if option == "smoothing" else 0.0
    return losses.MaskedSparseCategoricalCrossentropy(IGNORED, smoothing)


def compiled_with(kind, option):
    """A loss, and metrics if they are asked for."""
    if kind == "keras":
        import keras

        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=IGNORED)
        metrics = [
            keras.metrics.SparseCategoricalCrossentropy(from_logits=True),
            keras.metrics.SparseCategoricalAccuracy(),
        ]
    else:
        from keras_llm import metrics as ours

        loss = our_loss("")
        metrics = [ours.Perplexity(IGNORED), ours.MaskedTokenAccuracy(1, IGNORED)]
    return loss, metrics if option == "metrics" else None


def keras_step(loss, metrics):
    """The loss, the backward pass and the metrics as in `keras.Model.train_step`."""
    import keras

    model = keras.Sequential([keras.layers.Identity()])
    model.compile(optimizer="sgd", loss=loss, metrics=metrics)

    def step(logits, labels):
        objective = model.compute_loss(x=logits, y=labels, y_pred=logits, sample_weight=None)
        objective.backward()
        model.compute_metrics(logits, labels, logits)

    return step


if __name__ == "__main__":
    main()
