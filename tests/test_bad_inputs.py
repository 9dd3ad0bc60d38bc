# ruff: noqa: E501  (a table has one line a case)
"""What a stranger may hand to a public name by mistake, and the error that it gives.

Each error names the argument, what was expected and what was received.
`tests/models/test_bad_inputs.py` has the table of models and batches.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from keras_llm import (
    callbacks,
    data,
    generation,
    layers,
    losses,
    metrics,
    optimizers,
    schedules,
)

pytestmark = pytest.mark.backend_free

NAN, INF = float("nan"), float("inf")
CE = losses.MaskedSparseCategoricalCrossentropy
FOCAL = losses.MaskedSparseCategoricalFocalCrossentropy
LABELS, LOGITS = np.array([[1, 2]]), np.zeros((1, 2, 5), "float32")
ROWS = [{"prompt": "a b", "completion": " c"}]


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    """A tokenizer of words, files, and a loader; made once."""
    folder = tmp_path_factory.mktemp("files")
    tokenizer = data.train_tokenizer(["a b c d"], unit="word")
    tokenizer.save(folder / "tokenizer.json")
    whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))

    def file(content, name="file.json"):
        content = content if isinstance(content, bytes | str) else json.dumps(content)
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def with_token(number):
        vocabulary = whole["model"]["vocab"] | {"z": number}
        return {**whole, "model": {**whole["model"], "vocab": vocabulary}}

    def tokenizer_folder(**files):
        tokenizer.save_pretrained(folder / "tokenizer")
        for name, content in files.items():
            file(content, f"tokenizer/{name}.json")
        return folder / "tokenizer"

    return SimpleNamespace(
        tokenizer=tokenizer,
        whole=whole,
        file=file,
        with_token=with_token,
        tokenizer_folder=tokenizer_folder,
        text=file("a\n\nb\n\nc\n\nd", "text.txt"),
        loader=data.causal_lm(["a b c d a b"] * 4, tokenizer, 2, 2),
    )


# name, call, error, what its message says
TABLE = [
    # losses
    ("smoothing of all", lambda t: CE(label_smoothing=1), ValueError, r"label_smoothing must be a number in \[0, 1\). Received: label_smoothing=1"),
    ("smoothing NaN", lambda t: CE(label_smoothing=NAN), ValueError, "label_smoothing=nan"),
    ("smoothing as text", lambda t: CE(label_smoothing="0.1"), ValueError, "label_smoothing='0.1'"),
    ("z_loss NaN", lambda t: CE(z_loss=NAN), ValueError, r"z_loss must be a number in \[0, inf\)"),
    ("ignore_index of a float", lambda t: CE(ignore_index=0.0), TypeError, "ignore_index must be an integer.*ignore_index=0.0"),
    ("from_logits as text", lambda t: CE(from_logits="no"), TypeError, "from_logits must be True or False.*'no'"),
    ("unknown reduction", lambda t: CE(reduction="max"), ValueError, "reduction must be one of.*reduction='max'"),
    ("gamma below 0", lambda t: FOCAL(gamma=-1), ValueError, r"gamma must be a number in \[0, inf\)"),
    ("gamma None", lambda t: FOCAL(gamma=None), ValueError, "gamma=None"),
    ("alpha NaN", lambda t: FOCAL(alpha=[0.5, NAN]), ValueError, "alpha must be a number or a vector"),
    ("alpha of nothing", lambda t: FOCAL(alpha=[]), ValueError, "alpha must be a number or a vector"),
    ("temperature 0", lambda t: losses.MaskedKLDivergence(temperature=0), ValueError, r"temperature must be a number in \(0, inf\)"),
    ("temperature infinite", lambda t: losses.MaskedKLDivergence(temperature=INF), ValueError, "temperature=inf"),
    ("no pair of teacher and labels", lambda t: losses.MaskedKLDivergence()((LOGITS, LABELS, LABELS), LOGITS), ValueError, "y_true must be the teacher's targets, or a pair"),
    ("labels of floats", lambda t: CE()(LABELS * 1.0, LOGITS), TypeError, "Labels must be integers.*dtype=float"),
    ("labels of booleans", lambda t: CE()(LABELS > 1, LOGITS), TypeError, "Labels must be integers.*dtype=bool"),
    ("labels None", lambda t: CE()(None, LOGITS), ValueError, "needs labels.*y=None"),
    ("labels of another shape", lambda t: CE()(LABELS.T, LOGITS), ValueError, r"Labels must be integers of shape \(1, 2\).*\(2, 1\)"),
    ("one-hot labels", lambda t: CE()(np.eye(5, dtype=int)[LABELS], LOGITS), ValueError, "One-hot labels are not needed"),
    ("label beyond the vocabulary", lambda t: CE()(LABELS + 3, LOGITS), ValueError, r"Labels must be in \[0, 5\).*Received: 5 at position \(0, 1\)"),
    ("label below 0", lambda t: CE()(LABELS - 2, LOGITS), ValueError, r"Labels must be in \[0, 5\).*Received: -1"),
    ("weight NaN", lambda t: CE()(LABELS, LOGITS, [[NAN, 1.0]]), ValueError, r"sample_weight must be finite. Received: nan at position \(0, 0\)"),
    ("weight infinite", lambda t: CE()(LABELS, LOGITS, [[1.0, INF]]), ValueError, "sample_weight must be finite. Received: inf"),
    ("weight below 0", lambda t: CE()(LABELS, LOGITS, [[1.0, -1.0]]), ValueError, "sample_weight must not be negative"),
    ("weight NaN of a sum", lambda t: CE(reduction="sum")(LABELS, LOGITS, [[NAN, 1.0]]), ValueError, "sample_weight must be finite"),
    ("weights of three axes", lambda t: CE()(LABELS, LOGITS, np.ones((1, 2, 3))), ValueError, "sample_weight must have the labels' shape"),
    # metrics
    ("k of 0", lambda t: metrics.MaskedTokenAccuracy(top_k=0), ValueError, "top_k must be a positive integer. Received: top_k=0"),
    ("ignore_index of a metric", lambda t: metrics.Perplexity(ignore_index="0"), TypeError, "ignore_index must be an integer.*'0'"),
    ("bytes of no id", lambda t: metrics.BitsPerByte(np.zeros(0, int)), ValueError, "token_bytes must be a vector"),
    ("bytes of other ids", lambda t: metrics.BitsPerByte([1, 2]).update_state(LABELS, LOGITS), ValueError, "token_bytes needs one number for each of the 5 ids"),
    # optimizers and schedules
    ("learning rate NaN", lambda t: optimizers.AdamW(NAN), ValueError, r"learning_rate must be a number in \[0, inf\)"),
    ("learning rate as text", lambda t: optimizers.AdamW("1e-3"), TypeError, "learning_rate must be a float or a schedule"),
    ("learning rate assigned", lambda t: setattr(optimizers.AdamW(1e-3), "learning_rate", -1.0), ValueError, "learning_rate=-1.0"),
    ("beta of 1", lambda t: optimizers.AdamW(beta_1=1), ValueError, r"beta_1 must be a number in \[0, 1\)"),
    ("epsilon below 0", lambda t: optimizers.AdamW(epsilon=-1e-8), ValueError, "epsilon must be a number"),
    ("clip below 0", lambda t: optimizers.AdamW(global_clipnorm=-1.0), ValueError, r"global_clipnorm must be a number in \(0, inf\)"),
    ("clip NaN", lambda t: optimizers.Adafactor(clipvalue=NAN), ValueError, "clipvalue=nan"),
    ("half a batch accumulated", lambda t: optimizers.AdamW(gradient_accumulation_steps=2.5), ValueError, "gradient_accumulation_steps must be a positive integer"),
    ("half an expression", lambda t: optimizers.AdamW(exclude_from_weight_decay="("), ValueError, "exclude_from_weight_decay must be regular expressions"),
    ("two learning rates", lambda t: optimizers.Adafactor(1e-3), ValueError, "relative_step=True exclude each other"),
    ("clip threshold 0", lambda t: optimizers.Adafactor(clip_threshold=0), ValueError, "clip_threshold must be a number"),
    ("warm-up beyond the end", lambda t: schedules.WarmupCosineDecay(1e-3, 20, 10), ValueError, "warmup_steps must not exceed total_steps.*20.*10"),
    ("rate below 0", lambda t: schedules.WarmupLinearDecay(-1e-3, 1, 10), ValueError, "learning_rate must be a number"),
    ("half a step", lambda t: schedules.WarmupConstant(1e-3, 1.5), ValueError, "warmup_steps must be a non-negative integer"),
    ("unknown decay", lambda t: schedules.WarmupStableDecay(1e-3, 1, 1, 1, "exp"), ValueError, "decay_type must be one of"),
    # layers, generation
    ("heads of half a number", lambda t: layers.Attention(7, 2), ValueError, "d_model must be a multiple of num_heads"),
    ("key-value heads", lambda t: layers.Attention(8, 4, 3), ValueError, "num_heads must be a multiple of num_key_value_heads"),
    ("odd head", lambda t: layers.RotaryEmbedding(3), ValueError, "head_dim.*must be even"),
    ("stddev below 0", lambda t: layers.GatedFeedForward(8, output_stddev=-1), ValueError, "output_stddev must be a number"),
    ("temperature below 0", lambda t: generation.Sampler(temperature=-1), ValueError, "temperature must be a number"),
    ("top_p above 1", lambda t: generation.Sampler(top_p=1.1), ValueError, r"top_p must be a number in \(0, 1\]"),
    ("no beams", lambda t: generation.beam_search(0), ValueError, "num_beams must be a positive integer"),
    ("logits of one row", lambda t: generation.Sampler()(np.zeros(3, "float32")), ValueError, r"logits must be \[batch, vocab\].*\(3,\)"),
    # tokenizers
    ("text of numbers", lambda t: t.tokenizer.encode(3), TypeError, "text must be a string. Received: text=3"),
    ("ids of two rows", lambda t: t.tokenizer.decode([[1], [2]]), ValueError, "ids must be one row"),
    ("ids of floats", lambda t: t.tokenizer.decode([1.5]), TypeError, "ids must be integers"),
    ("id beyond the tokenizer", lambda t: t.tokenizer.decode([99]), ValueError, r"ids must be in \[0, 8\).*99"),
    ("no tokenizer to wrap", lambda t: data.Tokenizer(None), TypeError, "tokenizer must be a tokenizers.Tokenizer.*NoneType"),
    ("unknown special token", lambda t: data.Tokenizer(t.tokenizer._tokenizer, "[PAD]"), ValueError, "pad_token must be one of the tokenizer's special tokens"),
    ("no texts", lambda t: data.train_tokenizer([]), ValueError, "texts must hold at least one string"),
    ("one text for a list", lambda t: data.train_tokenizer("abc"), TypeError, "texts must be a split, or an iterable of strings"),
    ("more ids than there is memory", lambda t: data.train_tokenizer(["a"], 10**12), ValueError, "vocab_size must be at least 259.*at most 10,000,000"),
    ("unknown unit", lambda t: data.train_tokenizer(["a"], unit="bpe"), ValueError, "unit must be one of"),
    ("tokenizer file of half a JSON", lambda t: data.load_tokenizer(t.file("{")), ValueError, "path must be a JSON file of the tokenizers library"),
    ("tokenizer file that is not UTF-8", lambda t: data.load_tokenizer(t.file(b"\xff\xfe")), ValueError, "path must be a JSON file of the tokenizers library.*file.json"),
    ("tokenizer file that is deep", lambda t: data.load_tokenizer(t.file("[" * 100_000)), ValueError, "path must be a JSON file"),
    ("tokenizer without a model", lambda t: data.load_tokenizer(t.file({**t.whole, "model": None})), ValueError, "path must be a JSON file"),
    ("an id that int32 cannot hold", lambda t: data.load_tokenizer(t.file(t.with_token(2**31))).vocab_size, ValueError, "tokenizer must have ids below 2.31. Received: id 2147483648"),
    ("the class for a tokenizer", lambda t: data.causal_lm(["a"], data.Tokenizer, 4, 2), TypeError, "tokenizer must come from data.train_tokenizer.*a type"),
    ("tokenizer folder of a list", lambda t: data.Tokenizer.from_pretrained(t.tokenizer_folder(tokenizer_config=[])), ValueError, "tokenizer_config.json must hold a dictionary"),
    ("tokenizer folder of half a JSON", lambda t: data.Tokenizer.from_pretrained(t.tokenizer_folder(special_tokens_map="{")), ValueError, "special_tokens_map.json is not JSON"),
    ("special token of a number", lambda t: data.Tokenizer.from_pretrained(t.tokenizer_folder(tokenizer_config={"eos_token": 3})), ValueError, "must name the eos_token by a string.*eos_token=3"),
    # batches
    ("no text to learn from", lambda t: data.causal_lm([], t.tokenizer, 4, 2), ValueError, "texts must hold at least one token to predict"),
    ("rows of no token", lambda t: data.causal_lm(["a b"], t.tokenizer, 0, 2), ValueError, "seq_len must be a positive integer"),
    ("batches of no row", lambda t: data.causal_lm(["a b"], t.tokenizer, 4, 0), ValueError, "batch_size must be a positive integer"),
    ("shuffle as text", lambda t: data.causal_lm(["a b"], t.tokenizer, 4, 2, shuffle="no"), TypeError, "shuffle must be True or False"),
    ("seed below 0", lambda t: data.causal_lm(["a b"], t.tokenizer, 4, 2, seed=-1), ValueError, "seed must be a non-negative integer"),
    ("half a worker", lambda t: data.causal_lm(["a b"], t.tokenizer, 4, 2, num_workers=0.5), ValueError, "num_workers must be a non-negative integer"),
    ("three fields", lambda t: data.seq2seq([("a", "b", "c")], t.tokenizer, batch_size=2), ValueError, r"Every row of pairs must be \(source, target\).*3 fields"),
    ("empty sources", lambda t: data.seq2seq([("", "a")], t.tokenizer, batch_size=2), ValueError, "at least one pair whose source is not empty"),
    ("a chat without a template", lambda t: data.instruction([{"messages": [{"role": "user", "content": "a"}]}], t.tokenizer, 8), ValueError, "tokenizer must have a chat template"),
    ("a row of other fields", lambda t: data.instruction([{"x": 1}], t.tokenizer, 8), ValueError, "Every row of rows must have"),
    ("JSON lines of half a line", lambda t: data.instruction(t.file("{", "rows.jsonl"), t.tokenizer, 8), ValueError, "rows.jsonl, whose line 1 is not JSON"),
    ("JSON lines that are not UTF-8", lambda t: data.instruction(t.file(b'{"text": "\xff"}', "rows.jsonl"), t.tokenizer, 8), ValueError, "rows.jsonl, whose line 1 is not JSON"),
    ("JSON lines that are deep", lambda t: data.instruction(t.file("[" * 100_000, "rows.jsonl"), t.tokenizer, 8), ValueError, "nested too deeply"),
    ("JSON lines of lists", lambda t: data.instruction(t.file("[1]", "rows.jsonl"), t.tokenizer, 8), TypeError, "Every row of rows must be a dictionary"),
    ("targets of floats", lambda t: data.teacher_forcing([[1.5]]), TypeError, "target_ids must be integers"),
    ("targets of one row", lambda t: data.teacher_forcing([1, 2]), ValueError, r"target_ids must have the shape \[batch, length\]"),
    ("start id that the dtype cannot hold", lambda t: data.teacher_forcing(np.array([[1]], "uint8"), start_id=300), ValueError, "start_id and pad_id must be at most 255"),
    ("no path", lambda t: data.load_text(None), TypeError, "path must be the path of a file, or several"),
    ("all held out", lambda t: data.load_text(t.text, validation=0.6, test=0.6), ValueError, "validation and test must leave something"),
    ("separator of a number", lambda t: data.load_text(t.text, separator=3), ValueError, "separator must be a string"),
    ("position None", lambda t: t.loader.load_state_dict(None), ValueError, "state must be a dictionary"),
    ("position that is true", lambda t: t.loader.load_state_dict({"seed": True, "epoch": 0, "step": 0}), ValueError, r"state\['seed'\] must be a non-negative integer"),
    ("position beyond the data", lambda t: t.loader.load_state_dict({"seed": 0, "epoch": 0, "step": 99}), ValueError, "state must be of this data"),
    ("a batch of another tokenizer", lambda t: data.show((LABELS + 9, LABELS), t.tokenizer), ValueError, r"batch must have ids in \[0, 8\), the tokenizer's. Received: 10"),
    # callbacks
    ("evaluation of nothing", lambda t: callbacks.Evaluation(None, 2), ValueError, "data must be what to evaluate on"),
    ("evaluation at no step", lambda t: callbacks.Evaluation((1, 2), 0), ValueError, "every_steps must be a positive integer"),
    ("prompts that are ids", lambda t: callbacks.Evaluation((1, 2), 2, [1, 2], t.tokenizer), TypeError, "prompts must be a text or several"),
    ("tokenizer by its name", lambda t: callbacks.TrainingReport("x.html", "a", "bert"), TypeError, r"tokenizer must have encode\(text\) and decode\(ids\)"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "error", "match"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_the_error(tools, call, error, match):
    with pytest.raises(error, match=match):
        call(tools)


def test_there_are_enough():
    assert len(TABLE) >= 60
