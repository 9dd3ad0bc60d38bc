"""Layers of transformers' models whose weights are quantised."""


def keep_trainable(model):
    """Has layers of 4 bits of bitsandbytes give gradients after an evaluation too.

    When such a layer is evaluated on a CPU that multiplies bfloat16, it packs its weights for these
    products. From then on it gives no gradients, in no mode, and what unpacks the weights again, to
    save them, has rounded their scales and mixed them up.

    Raises:
        ValueError: weights have been packed.
    """
    for layer in model.modules():
        if not hasattr(layer, "support_avx512bf16_for_cpu"):
            continue
        if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
            raise ValueError(
                "model must not have been evaluated on this CPU before, where bitsandbytes packs "
                "weights of 4 bits and then gives no gradients: load it again and wrap it first. "
                f"Received: a packed {type(layer).__name__}"
            )
        layer.support_avx512bf16_for_cpu = False
