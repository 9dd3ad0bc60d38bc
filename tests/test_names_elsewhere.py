"""Arguments by other libraries' names: the error says what to write here."""

import pytest

from keras_llm.generation import Sampler
from keras_llm.models import CausalTransformer, Seq2SeqTransformer
from keras_llm.names_elsewhere import names_elsewhere
from keras_llm.optimizers import Adafactor, AdamW

pytestmark = pytest.mark.backend_free

SIZES = dict(vocab_size=11, d_model=8, num_layers=1, num_heads=2, max_length=8)


@pytest.mark.parametrize(
    ("call", "name", "write"),
    [
        (CausalTransformer, "hidden_size", "d_model"),
        (CausalTransformer, "n_embd", "d_model"),
        (CausalTransformer, "num_hidden_layers", "num_layers"),
        (CausalTransformer, "n_layer", "num_layers"),
        (CausalTransformer, "num_attention_heads", "num_heads"),
        (CausalTransformer, "intermediate_size", "d_ff"),
        (CausalTransformer, "max_position_embeddings", "max_length"),
        (CausalTransformer, "pad_token_id", "pad_id"),
        (CausalTransformer, "bias", "nothing"),
        (Seq2SeqTransformer, "nhead", "num_heads"),
        (Seq2SeqTransformer, "dim_feedforward", "d_ff"),
        (CausalTransformer.generate, "do_sample", "temperature, top_k or top_p"),
        (CausalTransformer.generate, "eos_token_id", "end_id"),
        (CausalTransformer.generate, "max_length", "max_new_tokens"),
        (CausalTransformer.generate, "num_return_sequences", "each prompt several times"),
        (CausalTransformer.generate, "num_beams", "nothing: beam search is for targets"),
        (CausalTransformer.generate, "repetition_penalty", "nothing: tokens are drawn by"),
        (Seq2SeqTransformer.generate, "stop_strings", "end_id, which is one id"),
        (CausalTransformer.generate, "input_ids", "ids"),
        (Seq2SeqTransformer.generate, "input_ids", "encoder_ids"),
        (Seq2SeqTransformer.generate, "decoder_start_token_id", "start_id"),
        (AdamW, "max_grad_norm", "global_clipnorm"),
        (AdamW, "betas", "beta_1=... and beta_2"),
        (AdamW, "eps", "epsilon"),
        (Adafactor, "decay_rate", "beta_2_decay"),
        (Adafactor, "max_grad_norm", "global_clipnorm"),
        (Sampler, "do_sample", "temperature"),
        (Sampler, "k", "top_k"),
    ],
)
def test_the_error_says_what_to_write(call, name, write):
    with pytest.raises(TypeError, match=rf"has no argument {name}; write {write}.*{name}=3"):
        call(**{name: 3})


def generate(**named):
    return CausalTransformer(**SIZES).generate([1], **named)


@pytest.mark.parametrize("call", [CausalTransformer, generate, AdamW, Sampler])
def test_a_name_from_nowhere_is_an_error_too(call):
    with pytest.raises((TypeError, ValueError), match="nowhere"):
        call(*[11] * (call is CausalTransformer), nowhere=3)


def test_a_subclass_may_have_the_name_for_itself():
    class Mine(CausalTransformer):
        def __init__(self, hidden_size=8):
            super().__init__(**{**SIZES, "d_model": hidden_size})

    assert Mine(hidden_size=4).backbone.config.d_model == 4


def test_a_decorated_function_is_called_as_it_is():
    @names_elsewhere({"block_size": "seq_len=..."})
    def rows(text, *, seq_len=4):
        """Docstring."""
        return text, seq_len

    assert rows("a") == ("a", 4) and rows(text="b", seq_len=2) == ("b", 2)
    assert rows.__doc__ == "Docstring."
    with pytest.raises(TypeError, match="rows has no argument block_size; write seq_len="):
        rows("a", block_size=3)
