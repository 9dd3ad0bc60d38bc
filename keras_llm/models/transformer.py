"""What both transformers share: the head, the config, and the answers to other libraries' names."""

from typing import Any, ClassVar

import keras

from keras_llm.arguments import check_bool
from keras_llm.layers.token_embedding import TokenEmbedding
from keras_llm.layers.vocabulary_head import VocabularyHead
from keras_llm.models.backbone import Backbone, quantized_dtype
from keras_llm.models.decoders import Decoders
from keras_llm.models.language_model import LanguageModel
from keras_llm.names_elsewhere import NamesElsewhere


def by_name(names: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """For each name elsewhere, what to write instead."""
    return {name: write for write, elsewhere in names.items() for name in elsewhere}


# What to write here, and the names of the same argument in Hugging Face transformers, PyTorch,
# KerasHub and nanoGPT.
CONSTRUCTOR_NAMES = by_name(
    {
        "vocab_size=...": ("vocabulary_size", "n_vocab", "num_tokens"),
        "d_model=...": ("hidden_size", "hidden_dim", "n_embd", "embed_dim", "embedding_dim", "dim"),
        "num_layers=...": (
            "num_hidden_layers",
            "n_layer",
            "n_layers",
            "encoder_layers",
            "decoder_layers",
            "num_encoder_layers",
            "num_decoder_layers",
        ),
        "num_heads=...": ("num_attention_heads", "num_query_heads", "n_head", "n_heads", "nhead"),
        "num_key_value_heads=...": ("n_kv_head", "n_kv_heads", "num_kv_heads"),
        "d_ff=...": (
            "intermediate_size",
            "intermediate_dim",
            "dim_feedforward",
            "n_inner",
            "ffn_dim",
        ),
        "max_length=...": (
            "max_position_embeddings",
            "max_sequence_length",
            "max_seq_len",
            "seq_len",
            "n_positions",
            "n_ctx",
            "block_size",
            "context_length",
        ),
        "dropout=...": ("dropout_rate", "hidden_dropout_prob", "resid_pdrop", "embd_pdrop"),
        "dropout=...; attention weights are not dropped": (
            "attention_dropout",
            "attn_pdrop",
            "attention_probs_dropout_prob",
        ),
        "epsilon=...": ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "eps"),
        "rope_theta=...": ("rope_max_wavelength", "rope_base"),
        "tie_embeddings=...": ("tie_word_embeddings", "tie_weights"),
        "pad_id=...": ("pad_token_id", "padding_idx"),
        "dtype=...": ("torch_dtype",),
        "nothing: the feed-forward part is SwiGLU": ("hidden_act", "activation"),
        "nothing: there are no biases": ("bias", "use_bias", "attention_bias"),
        "nothing: give end_id to generate": ("eos_token_id", "end_token_id"),
        "nothing: give start_id to generate": ("bos_token_id", "decoder_start_token_id"),
    }
)
# The same for `generate`.
GENERATE_NAMES = by_name(
    {
        "max_new_tokens": ("max_tokens", "max_gen_len"),
        "max_new_tokens, which does not count the prompt": ("max_length",),
        "temperature, top_k or top_p, each of which turns sampling on": ("do_sample",),
        "end_id": ("eos_token_id", "eos_id", "end_token_id", "stop_token_ids"),
        "nothing: the model's pad_id is used": ("pad_token_id", "pad_id"),
        "nothing: rows of different lengths can be given as a list": ("attention_mask",),
        "each prompt several times in the batch: rows are drawn independently": (
            "num_return_sequences",
            "num_samples",
        ),
        "nothing: the keys and values of past tokens are always kept": ("use_cache",),
        "nothing: beam search is for targets, by Seq2SeqTransformer": ("num_beams",),
        "nothing: tokens are drawn by temperature, top_k and top_p alone": (
            "repetition_penalty",
            "no_repeat_ngram_size",
            "frequency_penalty",
            "presence_penalty",
        ),
        "end_id, which is one id": ("stop", "stop_strings"),
    }
)


# Ids of any number of rows and any length.
IDS = keras.InputSpec(shape=(None, None), dtype="int32")


class Transformer(NamesElsewhere, LanguageModel):
    """Base class: a backbone, a `VocabularyHead`, and the config of both.

    Args:
        backbone: The backbone.
        output_embedding: The embedding of the ids that are predicted.
        tie_embeddings: Whether its table is the head's kernel.
        dtype: A dtype or policy.
        **kwargs: Keras's own: `name`, `trainable`.
    """

    write_instead: ClassVar[dict[str, str]] = CONSTRUCTOR_NAMES
    backbone: Backbone
    # What `export` says of the inputs.
    exported_inputs: ClassVar[Any] = IDS

    def __init__(
        self,
        backbone: Backbone,
        output_embedding: TokenEmbedding,
        tie_embeddings: bool,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        check_bool(tie_embeddings, "tie_embeddings")
        head = VocabularyHead(
            output_embedding.vocab_size,
            output_embedding.d_model,
            tied_to=output_embedding if tie_embeddings else None,
            dtype=dtype,
            name="head",
        )
        head.build()
        super().__init__(backbone, head, dtype=dtype, **kwargs)
        self.tie_embeddings = tie_embeddings
        self.decoders = Decoders(self)
        self.built = True

    def export(
        self,
        filepath: str,
        format: str = "tf_saved_model",
        verbose: bool | None = None,
        input_signature: Any = None,
        **kwargs: Any,
    ) -> None:
        """Keras's `export`, by default for ids of any number of rows and any length.

        Keras would take the lengths of the first call, and floats for ids.

        Args:
            filepath, format, verbose, **kwargs: As of `keras.Model.export`.
            input_signature: What the exported function takes; by default int32 ids
                `[batch, length]`, of an encoder-decoder a dictionary of `encoder_ids` and
                `decoder_ids`. It returns the logits `[batch, length, vocab]`. On JAX the length
                must be given: `[keras.InputSpec(shape=(None, 64), dtype="int32")]`.
        """
        signature = input_signature or [self.exported_inputs]
        super().export(filepath, format, verbose, signature, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        # Not LanguageModel's backbone and head: the constructor makes them.
        keras_arguments = super(LanguageModel, self).get_config()
        return {
            **self.backbone.get_config(),
            **keras_arguments,
            **quantized_dtype(self),
            "tie_embeddings": self.tie_embeddings,
        }
