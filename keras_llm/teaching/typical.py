"""Where settings usually lie, with the publication that says so."""

from keras_llm.optimizers.usual_learning_rate import usual_learning_rate
from keras_llm.teaching.facts import Range

# name: (what and when, where to read it)
SOURCES = {
    "adafactor": ("Adafactor 2018", "https://arxiv.org/abs/1804.04235"),
    "adam": ("Adam 2015", "https://arxiv.org/abs/1412.6980"),
    "bert": ("BERT 2019", "https://arxiv.org/abs/1810.04805"),
    "char-rnn": ("char-rnn 2015", "https://github.com/karpathy/char-rnn"),
    "distillation": ("Hinton et al. 2015", "https://arxiv.org/abs/1503.02531"),
    "focal": ("Focal loss 2017", "https://arxiv.org/abs/1708.02002"),
    "gpt-3": ("GPT-3 2020", "https://arxiv.org/abs/2005.14165"),
    "lion": ("Lion 2023", "https://arxiv.org/abs/2302.06675"),
    "llama": ("LLaMA 2023", "https://arxiv.org/abs/2302.13971"),
    "llama-2": ("Llama 2 2023", "https://arxiv.org/abs/2307.09288"),
    "nanochat": ("nanochat 2025", "https://github.com/karpathy/nanochat"),
    "palm": ("PaLM 2022", "https://arxiv.org/abs/2204.02311"),
    "pythia": ("Pythia 2023", "https://arxiv.org/abs/2304.01373"),
    "qlora": ("QLoRA 2023", "https://arxiv.org/abs/2305.14314"),
    "roberta": ("RoBERTa 2019", "https://arxiv.org/abs/1907.11692"),
    "sgd": ("Sutskever et al. 2013", "https://proceedings.mlr.press/v28/sutskever13.html"),
    "t5": ("T5 2020", "https://arxiv.org/abs/1910.10683"),
    "transformer": ("Transformer 2017", "https://arxiv.org/abs/1706.03762"),
}

TOO_SMALL_A_STEP = "below what is usual even for fine-tuning: training will be slow"
TOO_LARGE_A_STEP = "above what published runs of this size use: the loss may jump or turn NaN"
NOISY = "little memory: updates follow the noise of single batches"
LATE = "a long memory: updates turn late when the gradient turns"

WEIGHT_DECAY = Range(
    0.01,
    0.1,
    ("bert", "gpt-3"),
    below="weaker than language models use; with 0, weights may grow without a bound",
    above="stronger than language models use: it pulls against what is learnt",
    none="no weight decay: AdamW without it is Adam",
)
GLOBAL_CLIPNORM = Range(
    0.3,
    1.0,
    ("qlora", "gpt-3"),
    below="so short that many updates of a healthy run are shortened too",
    above="only the longest gradients are cut: it hardly protects",
)
ADAM = {
    "beta_1": Range(0.8, 0.9, ("nanochat", "adam"), below=NOISY, above=LATE),
    "beta_2": Range(
        0.95,
        0.999,
        ("gpt-3", "adam"),
        below="the size of a gradient is guessed from few batches: updates get noisy",
        above="the size of a gradient is remembered for so long that changes are noticed late",
    ),
    "epsilon": Range(
        1e-10,
        1e-5,
        ("nanochat", "llama-2"),
        below="so small that a float32 zero may be divided by it",
        above="larger than many gradients: their parameters then hardly learn",
    ),
}
OPTIMIZERS = {
    "Adam": ADAM,
    "AdamW": {**ADAM, "weight_decay": WEIGHT_DECAY},
    "Adafactor": {
        "beta_1": Range(
            0.9,
            0.9,
            ("palm",),
            below="little memory, for the price of a full copy of the parameters",
            above=LATE,
        ),
        "beta_2_decay": Range(
            -1.0,
            -0.5,
            ("adafactor",),
            below="the size of a gradient is soon remembered for ever",
            above="the size of a gradient is guessed from few batches: updates get noisy",
        ),
        "epsilon_1": Range(
            1e-30, 1e-30, ("adafactor",), above="it hides small gradients, which it is added to"
        ),
        "epsilon_2": Range(
            1e-3,
            1e-3,
            ("adafactor",),
            below="parameters that start at 0 hardly leave it",
            above="small parameters get large updates",
        ),
        "clip_threshold": Range(
            1.0,
            1.0,
            ("adafactor",),
            below="most updates are shortened",
            above="early updates may be too large",
        ),
    },
    "Lion": {
        "beta_1": Range(0.9, 0.95, ("lion",), below=NOISY, above=LATE),
        "beta_2": Range(0.98, 0.99, ("lion",), below=NOISY, above=LATE),
        "weight_decay": Range(
            0.03, 1.0, ("lion",), below="Lion needs 3 to 10 times AdamW's", none="Lion needs some"
        ),
    },
    "SGD": {
        "momentum": Range(
            0.9, 0.99, ("sgd",), below="without momentum, SGD hardly trains a transformer"
        ),
    },
}
LOSSES = {
    "label_smoothing": Range(
        0.0, 0.1, ("transformer",), above="so much smoothing that the right token hardly stands out"
    ),
    "z_loss": Range(0.0, 1e-4, ("palm",), above="it competes with the loss that it should help"),
    "gamma": Range(
        0.0, 5.0, ("focal",), above="hardly anything but the worst guesses is learnt from"
    ),
    "alpha": Range(0.25, 0.75, ("focal",), below="it makes every gradient small"),
    "temperature": Range(
        1.0,
        20.0,
        ("distillation",),
        below="it sharpens the teacher, who then teaches little more than the labels",
        above="it flattens the teacher until all tokens look alike",
    ),
}
# As a share of all updates: 375M of GPT-3's 300B tokens; BERT's fine-tuning a tenth.
WARMUP_SHARE = Range(
    0.001,
    0.1,
    ("gpt-3", "bert"),
    below="Adam's first updates rest on few gradients and are large: start lower",
    above="much of the training is spent below the peak",
)
# What is left of the peak at the end.
MIN_RATIO = Range(0.0, 0.1, ("bert", "llama"), above="the last updates are still large")


def settings_of(optimizer) -> dict[str, Range]:
    """The usual settings of an optimizer, by name; of its parent's where it is a subclass."""
    for cls in type(optimizer).__mro__:
        if cls.__name__ in OPTIMIZERS:
            return OPTIMIZERS[cls.__name__]
    return {}


def learning_rate_of(optimizer, parameters: int | None = None) -> Range | None:
    """The usual peak of an optimizer's learning rate; None where nothing is known.

    Args:
        optimizer: A Keras optimizer, ours or stock.
        parameters: How many numbers it updates, where that is known.

    >>> import keras_llm
    >>> str(learning_rate_of(keras_llm.optimizers.AdamW(), parameters=100_000_000))
    '1e-5 – 1e-3'
    """
    usual = usual_learning_rate(optimizer, parameters)
    return usual and Range(*usual, below=TOO_SMALL_A_STEP, above=TOO_LARGE_A_STEP)
