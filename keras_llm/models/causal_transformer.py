"""A decoder-only language model: every token is predicted from those before it."""

import os
from typing import Any, Self

import keras
import numpy as np
from keras import ops

from keras_llm.arguments import check_positive_int
from keras_llm.backend.repeated import size_of
from keras_llm.backend.sizes import rounded_up
from keras_llm.distribution import by_first_process
from keras_llm.generation.choice import Choice, chooser
from keras_llm.generation.decoder import Decoding
from keras_llm.generation.prompts import from_rows, pad_rows, to_rows
from keras_llm.generation.samplers import Sampler, check_top_k
from keras_llm.models.causal_backbone import CausalBackbone, CausalConfig
from keras_llm.models.checks import check_special_id
from keras_llm.models.llama_folder import read_folder, write_folder
from keras_llm.models.transformer import GENERATE_NAMES, Transformer
from keras_llm.names_elsewhere import names_elsewhere
from keras_llm.tensor import Tensor
from keras_llm.training import with_whole_weights


@keras.saving.register_keras_serializable(package="keras_llm")
class CausalTransformer(Transformer):
    """A decoder-only transformer with the architecture of Llama (Touvron et al. 2023,
    https://arxiv.org/abs/2302.13971): RMSNorm before each part, rotary position embedding, a gated
    feed-forward part, grouped-query attention, no biases.

        p(id_t | id_0 .. id_t-1) = softmax(head(backbone(id_0 .. id_t-1)))

    Matrices are initialised from N(0, 0.02); those whose output is added to the residual stream,
    from N(0, 0.02 / sqrt(2 num_layers)), as in GPT-2.

    Args:
        vocab_size: Number of ids.
        d_model: Width of the model, the size of a hidden vector.
        num_layers: Number of blocks.
        num_heads: Number of query heads; `d_model / num_heads` must be even.
        max_length: The most tokens that a sequence may have.
        num_key_value_heads: Number of key-value heads, a divisor of `num_heads`; None for
            `num_heads`.
        d_ff: Width of the feed-forward part's hidden layer; None for 8/3 d_model, rounded up to a
            multiple of 64.
        dropout: Probability of dropping an activation in training, in the embeddings and in the
            output of each part. Attention weights are not dropped.
        rope_theta: Base of the rotary wavelengths.
        epsilon: Added to the mean square in RMSNorm.
        tie_embeddings: Whether the head's kernel is the embedding table.
        pad_id: The id of padding, which attention then masks. Needed only where padding comes
            before tokens or between them. None is faster, and enough for padding at the end of a
            row, which causal attention hides from the tokens before it.
        document_end_id: The id that ends a document, where rows hold several documents, as
            `data.causal_lm` packs them. A token then attends only to its own document, and gets the
            hidden vector that it would get in a row without the others. On a CPU with PyTorch this
            is faster than attention over the whole row; elsewhere it needs a mask of all pairs.
            None: a token attends to the whole row before it.
        dtype: A dtype or policy, such as `"mixed_bfloat16"`; None for Keras's global policy.
        **kwargs: Keras's own: `name`, `trainable`.

    Call arguments:
        inputs: Integer ids, `[batch, length]`.

    Returns:
        Logits of the next token, `[batch, length, vocab_size]`.

    Raises:
        ValueError: sizes that do not fit together, ids outside the vocabulary, or a row longer than
            `max_length`.
        TypeError: ids that are not integers, or an argument by another library's name.

    Example:
    >>> import numpy as np
    >>> model = CausalTransformer(vocab_size=11, d_model=8, num_layers=1, num_heads=2)
    >>> tuple(model(np.array([[1, 2, 3]])).shape)
    (1, 3, 11)
    >>> len(model.generate([1, 2, 3], max_new_tokens=4))
    7
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int = 512,
        num_layers: int = 6,
        num_heads: int = 8,
        max_length: int = 1024,
        num_key_value_heads: int | None = None,
        d_ff: int | None = None,
        dropout: float = 0.0,
        rope_theta: float = 10_000.0,
        epsilon: float = 1e-6,
        tie_embeddings: bool = True,
        pad_id: int | None = None,
        document_end_id: int | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        config = CausalConfig(
            vocab_size=vocab_size,
            d_model=d_model,
            num_layers=num_layers,
            num_heads=num_heads,
            max_length=max_length,
            num_key_value_heads=num_key_value_heads,
            d_ff=d_ff,
            dropout=dropout,
            rope_theta=rope_theta,
            epsilon=epsilon,
            pad_id=pad_id,
            document_end_id=document_end_id,
        )
        backbone = CausalBackbone(config, dtype=dtype, name="backbone")
        super().__init__(backbone, backbone.token_embedding, tie_embeddings, dtype, **kwargs)

    @names_elsewhere(GENERATE_NAMES | {"input_ids": "ids", "inputs": "ids", "prompts": "ids"})
    @with_whole_weights
    def generate(
        self,
        ids: Tensor,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        end_id: int | None = None,
        seed: int | None = None,
    ) -> np.ndarray | list[np.ndarray]:
        """Continues each prompt, one token after another.

        Takes the most probable token, unless `temperature`, `top_k` or `top_p` is given. The keys
        and values of past tokens are kept, so the model computes one token per step.

        Args:
            ids: A prompt (a list or 1-D array of ids), a batch `[batch, length]`, or a list of
                prompts of any lengths. Each row continues as it would alone.
            max_new_tokens: The most tokens to add to a prompt; None for 60, or for as many as the
                model's `max_length` leaves room for.
            temperature: As in `keras_llm.generation.Sampler`, like the next two.
            top_k: Draw from the k most probable tokens.
            top_p: Draw from the smallest set of most probable tokens whose probability is at least
                `top_p`.
            end_id: The id at which a row ends; None to end no row early.
            seed: Makes the draws of a row repeatable: they depend on it and on the row's number.

        Returns:
            The prompts followed by their new tokens, `end_id` included, in the form of `ids`: a 1-D
            array, a batch padded on the right with `pad_id` (with `end_id` if the model has no
            `pad_id`), or a list of arrays. `pad_id` is never generated, unless it is `end_id`.

        Raises:
            ValueError: an empty prompt, an id outside the vocabulary, a prompt that leaves fewer
                than `max_new_tokens` of `max_length`, an option out of its range.
            TypeError: ids that are not integers.
        """
        config = self.backbone.config
        prompts = to_rows(ids, config.vocab_size, config.pad_id)
        longest = max(len(row) for row in prompts)
        most = config.max_length - longest
        if max_new_tokens is None:
            max_new_tokens = max(1, min(60, most))
        check_positive_int(max_new_tokens, "max_new_tokens")
        if max_new_tokens > most:
            raise ValueError(
                f"max_new_tokens must be at most {max(0, most)}: the longest prompt has {longest} "
                f"tokens, and the model's max_length is {config.max_length}. "
                f"Received: max_new_tokens={max_new_tokens}"
            )
        if end_id is not None:
            check_special_id(end_id, config.vocab_size, "end_id")
        sampler = Sampler(temperature, top_k, top_p, seed)
        check_top_k(top_k, config.vocab_size)
        ruled_out = config.pad_id if config.pad_id != end_id else None

        def make():
            def extend(ids, state):
                hidden, state = self.backbone.extend(ids, state)
                return self.head(hidden[:, -1]), state

            def example(batch, room):
                state = self.backbone.start(ops.zeros((batch,)), room)
                return Decoding(state, Choice.example(batch, room, not sampler.greedy))

            return extend, extend, chooser(sampler, ruled_out), example

        decoder = self.decoders.get((sampler.kind, ruled_out), make)
        # Prompts are padded on the left: the next token has one place in all rows.
        width = size_of(longest)
        capacity = rounded_up(width + max_new_tokens)
        state = self.backbone.start([width - len(row) for row in prompts], capacity)
        choice = Choice.start(sampler, len(prompts), capacity, max_new_tokens, end_id)
        padded = pad_rows(prompts, pad_id=0, side="left", width=width)
        new = decoder(ops.convert_to_tensor(padded, "int32"), Decoding(state, choice))
        rows = [np.concatenate(pair) for pair in zip(prompts, new, strict=True)]
        return from_rows(rows, ids, end_id if config.pad_id is None else config.pad_id)

    @names_elsewhere(
        {
            "save_directory": "folder",
            "safe_serialization": "nothing: the weights are always safetensors",
            "max_shard_size": "nothing: a file holds at most 5 GB",
        }
    )
    @by_first_process
    def save_pretrained(self, folder: str | os.PathLike, tokenizer: Any = None) -> None:
        """Writes a folder as Hugging Face's Llama has it, which transformers, vLLM, llama.cpp and
        their like read: `model.safetensors`, `config.json` and `generation_config.json`.

        The logits there are those here. Llama has no place for two options: where a row holds
        several documents it attends to all of them, whatever `document_end_id` says, and it needs
        an `attention_mask` to mask the padding of `pad_id`. The optimizer's state is not in the
        folder: to continue training, write `model.save("model.keras")`.

        Args:
            folder: Where to. It is made if it is missing; files of the same names are replaced,
                all at once when the new ones are written.
            tokenizer: A `data.Tokenizer` or one of transformers, to be written beside the model,
                with its special ids in the config; None for a folder of the model alone.

        Raises:
            TypeError: `tokenizer` is neither.
            ValueError: the tokenizer has more ids than the model, or the model is quantised.

        Example:
        >>> import pathlib, tempfile
        >>> model = CausalTransformer(vocab_size=11, d_model=8, num_layers=1, num_heads=2)
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> model.save_pretrained(folder)
        >>> sorted(path.name for path in folder.iterdir())
        ['config.json', 'generation_config.json', 'model.safetensors']
        """
        write_folder(self, folder, tokenizer)

    @classmethod
    @names_elsewhere(
        {
            "pretrained_model_name_or_path": "folder",
            "pad_token_id": "pad_id=...",
            "torch_dtype": "dtype=...",
            "trust_remote_code": "nothing: no code in a folder is ever run",
        }
    )
    def from_pretrained(cls, folder: str | os.PathLike, **options: Any) -> Self:
        """Reads a folder that `save_pretrained` wrote, or transformers' `save_pretrained` of a
        Llama, or of a Mistral without sliding window. Nothing in the folder is run.

        Everything is checked before the model is made. A model that is not exactly this
        architecture (biases, scaled rotary positions, a sliding window, another size of heads) is
        refused; `models.from_transformers` trains such a model in place.

        Args:
            folder: A folder with `config.json` and `model.safetensors`, or with an index and its
                files.
            **options: Those arguments of `CausalTransformer` that are no part of Llama: `dropout`,
                `pad_id`, `document_end_id`, `dtype`, `name`, `trainable`. The first three are kept
                in a folder of our own; in others they are 0, None and None, so that, as in Llama,
                padding is masked by nobody. `dtype` is not the folder's: it defaults to Keras's
                global policy.

        Raises:
            FileNotFoundError: there is no such folder, or no weights in it.
            ValueError: another architecture, weights that do not fit the config, a damaged file.
            TypeError: an option that the folder decides.

        Example:
        >>> import numpy as np, tempfile
        >>> model = CausalTransformer(vocab_size=11, d_model=8, num_layers=1, num_heads=2)
        >>> model.save_pretrained(folder := tempfile.mkdtemp())
        >>> again, ids = CausalTransformer.from_pretrained(folder), np.array([[1, 2, 3]])
        >>> bool(ops.all(again(ids) == model(ids)))
        True
        """
        return read_folder(cls, folder, options)

    def flops_per_token(self, length: int) -> float:
        """Floating-point operations of a training step per token, forward and backward:

            6 * parameters + 12 * num_layers * d_model * length

        A multiplication and an addition per parameter in the forward pass, and twice that in the
        backward pass; the second term is attention's two products, which count the whole length,
        causal or not (Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311, appendix B). An
        embedding table that is not tied to the head is left out: a look-up has no product.

        Args:
            length: The length of the sequences.
        """
        config, parameters = self.backbone.config, self.count_params()
        if not self.tie_embeddings:
            parameters -= self.backbone.token_embedding.count_params()
        return 6.0 * parameters + 12.0 * config.num_layers * config.d_model * length
