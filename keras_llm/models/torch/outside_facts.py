"""What has to be known of a transformers model before it is trained, found by calling it."""

import warnings

import torch

from keras_llm.models.torch.hidden_vectors import HiddenVectors
from keras_llm.models.torch.labels_rule import DecoderInputs, shifts_labels
from keras_llm.models.torch.logits_rule import LogitsRule, logits_rule, plain_linear
from keras_llm.models.torch.modes import modes_kept
from keras_llm.models.torch.outside_checks import check_adds_nothing

ROWS, LENGTH = 2, 6


class OutsideFacts:
    """Its head, its hidden vectors, how it reads labels.

    Args:
        model: A transformers model that has output embeddings. It is called a few times with a few
            tokens, in evaluation mode.
        hf: The `PeftModel` that it is in, or the model itself.

    Attributes:
        head: The output embeddings.
        sample: A few inputs and labels.
        vocab_sizes: The number of ids there are, by the name of the input.
        head_parameters: Those that are only the head's, by name.
        rule: The `LogitsRule`.
        hidden_vectors: The `HiddenVectors`.
        why_logits: Why its logits have to be made; empty where the head is a matrix.
        shifts_labels: Whether its own loss compares a position with the next label; None where its
            loss is not the cross entropy of either.
        decoder_inputs: The `DecoderInputs` of an encoder-decoder, else None.

    Raises:
        ValueError: the model cannot be called with ids alone, or looks at later tokens, or adapters
            add to its loss.
    """

    def __init__(self, model, hf):
        self.model, self.head = model, model.get_output_embeddings()
        self.head_parameters = parameters_of(model, self.head)
        with modes_kept(hf), torch.no_grad():
            hf.eval()
            self.look()
            if hf is not model:
                check_adds_nothing(hf, model, *self.sample)

    def look(self):
        """Finds all that numbers show."""
        model, head = self.model, self.head
        self.vocab_sizes = vocab_sizes(model)
        device, size = model.get_input_embeddings().weight.device, head.weight.shape[0]
        ids = sample(min(size, self.vocab_sizes["input_ids"])).to(device)
        labels = sample(size, seed=1).to(device)
        self.decoder_inputs = None
        inputs = {"input_ids": ids}
        try:
            if model.config.is_encoder_decoder:
                self.decoder_inputs = DecoderInputs(model, inputs, labels)
                inputs["decoder_input_ids"] = self.decoder_inputs.shifted(labels)
            logits = model(**inputs, use_cache=False).logits
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
            raise ValueError(
                f"model, a {type(model).__name__}, must make logits of token ids. Called with "
                f"{sorted(inputs)} it raised {type(error).__name__}: {error}"
            ) from error
        self.sample = inputs, labels
        self.check_looks_back_only(inputs, logits)
        self.rule = LogitsRule(reason=plain_linear(head))
        if not self.rule.reason:
            self.rule = logits_rule(model, head, inputs)
        is_scale = self.rule._replace(scale=1.0) == LogitsRule()
        self.hidden_vectors = HiddenVectors(model, head, inputs, is_scale)
        self.why_logits = self.rule.reason or self.hidden_vectors.reason
        self.shifts_labels = shifts_labels(model, inputs, labels, self.hidden_vectors.penalty_of)
        if self.shifts_labels is None:
            warnings.warn(
                f"The loss that {type(model).__name__} computes of its labels is not their cross "
                "entropy, with or without shifting them: it adds something, such as the loss of a "
                "router, which is not trained here. Labels inside a batch are taken as they are, "
                "unless shift_labels=True says that each position predicts the next of them.",
                stacklevel=5,
            )

    def check_looks_back_only(self, inputs: dict, logits):
        """Raises `ValueError` where a token's logits depend on the tokens after it."""
        name = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
        ids = inputs[name].clone()
        ids[:, -1] = (ids[:, -1] + 1) % self.head.weight.shape[0]
        changed = self.model(**{**inputs, name: ids}, use_cache=False).logits[:, :-1]
        before = logits[:, :-1]
        # Experts see other groups of tokens then, and round otherwise.
        tolerance = max(1e-5, 4 * torch.finfo(before.dtype).eps)
        if (changed - before).abs().max() > tolerance * before.abs().max():
            raise ValueError(
                f"model, a {type(self.model).__name__}, must predict a token from those before it. "
                "Its logits depend on later tokens: it is an encoder. Use AutoModelForCausalLM or "
                "AutoModelForSeq2SeqLM, for BERT and its like with is_decoder=True"
            )


def vocab_sizes(model) -> dict:
    """The number of ids there are, by the name of the input."""
    sizes = {"input_ids": model.get_input_embeddings().weight.shape[0]}
    if model.config.is_encoder_decoder:
        sizes["decoder_input_ids"] = model.get_output_embeddings().weight.shape[0]
    return sizes


def sample(vocab_size: int, seed: int = 0):
    """A few ids, `[rows, length]`, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(min(3, vocab_size - 1), vocab_size, (ROWS, LENGTH), generator=generator)


def parameters_of(model, head) -> dict:
    """The parameters that are in the head only, by the model's name of them."""
    prefix = next(name for name, part in model.named_modules() if part is head) + "."
    every = list(model.named_parameters(remove_duplicate=False))
    elsewhere = {id(p) for name, p in every if not name.startswith(prefix)}
    return {n: p for n, p in every if n.startswith(prefix) and id(p) not in elsewhere}
