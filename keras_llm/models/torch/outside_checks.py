"""Which models are refused, by name, before anything is done to them."""

import torch


def inner_model(hf):
    """The transformers model inside a `PeftModel`; any other model itself.

    Raises:
        TypeError: it is no transformers model.
        ValueError: it cannot be trained here.
    """
    import transformers

    model = hf
    if hasattr(hf, "peft_config") and hasattr(hf, "get_base_model"):
        check_adapters(hf)
        model = hf.get_base_model()
    if not isinstance(model, transformers.PreTrainedModel):
        raise TypeError(
            "model must be a model of Hugging Face transformers, such as "
            "AutoModelForCausalLM.from_pretrained(...), or a peft model of one. "
            f"Received: {type(hf).__name__}"
        )
    check_head(model)
    check_in_one_place(model)
    return model


def check_adapters(hf):
    """Raises `ValueError` for prompt learning, which changes the inputs and not the layers."""
    for name, config in hf.peft_config.items():
        if config.is_prompt_learning:
            raise ValueError(
                f"{config.peft_type.value} learns a prompt, which only its own forward adds. "
                "Use an adapter of the layers, such as peft.LoraConfig. "
                f"Received: the adapter {name!r}"
            )


def check_adds_nothing(hf, model, inputs: dict, labels):
    """Raises `ValueError` where a `PeftModel` makes another loss than the model inside of it.

    Args:
        hf: The `PeftModel`, in evaluation mode.
        model: The model inside.
        inputs, labels: A few rows of tokens.
    """
    batch = {**inputs, "labels": labels, "use_cache": False}
    try:
        theirs, own = (each(**batch).loss for each in (hf, model))
    except TypeError:  # it takes no labels
        return
    if theirs is None or own is None or torch.isclose(theirs, own, rtol=1e-5, atol=0.0):
        return
    kinds = sorted({config.peft_type.value for config in hf.peft_config.values()})
    raise ValueError(
        "An adapter must be trained by the loss of the labels alone, as peft.LoraConfig is. "
        f"Received: {', '.join(kinds)}, whose own forward makes the loss {float(theirs):.6g} "
        f"where the layers make {float(own):.6g}"
    )


def check_head(model):
    """Raises `ValueError` for a model without a head over the vocabulary."""
    head = model.get_output_embeddings()
    if head is None and not model.can_generate():
        raise ValueError(
            "model must have a head over its vocabulary: AutoModelForCausalLM or "
            f"AutoModelForSeq2SeqLM makes one. Received: {type(model).__name__}"
        )
    if getattr(head, "weight", None) is None:
        raise ValueError(
            f"model, a {type(model).__name__}, does not tell its head: get_output_embeddings() "
            f"must return one matrix. Received: {type(head).__name__}"
        )
    if not head.weight.is_floating_point():
        raise ValueError(
            "The head of model must not be quantised: leave it out, as "
            "BitsAndBytesConfig(..., llm_int8_skip_modules=['lm_head']) does. "
            f"Received: a head of {str(head.weight.dtype).removeprefix('torch.')}"
        )


def check_in_one_place(model):
    """Raises `ValueError` for parameters that are spread over devices, or nowhere yet."""
    places = {parameter.device for parameter in model.parameters()}
    if torch.device("meta") in places or len(places) > 1:
        raise ValueError(
            "model must be on one device. Load it without device_map, or with device_map={'': 0}. "
            f"Received: parameters on {sorted(map(str, places))}"
        )
