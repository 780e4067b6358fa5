"""The frozen linear layers of a language model in 4 bits (NF4, QLoRA, arXiv 2305.14314), so that it fits small GPUs.

The update is trained on rounded weights; export merges it into the original ones.
"""

from peft import PeftModel
from torch import nn

# Values that share a scale; rows are cut into blocks of so many.
BLOCK = 64


def quantise_frozen(model: PeftModel) -> int:
    """Replace what LoRA is put on by its 4-bit form, in place; returns how many layers.

    Raises:
        ValueError: bitsandbytes is not installed.
    """
    try:
        import bitsandbytes as bnb
    except ImportError as error:
        raise ValueError("model.quantize: nf4 needs bitsandbytes: pip install 'liteframe[quantize]'") from error
    count = 0
    for wrapper in list(model.modules()):
        base = getattr(wrapper, "base_layer", None)
        if isinstance(base, nn.Linear) and hasattr(wrapper, "lora_A"):
            dtype = base.weight.dtype
            small = bnb.nn.Linear4bit(
                base.in_features, base.out_features, bias=base.bias is not None, compute_dtype=dtype, quant_type="nf4"
            )
            small.weight = bnb.nn.Params4bit(
                base.weight.data, requires_grad=False, quant_type="nf4", blocksize=BLOCK, module=small
            )
            small.bias = base.bias
            wrapper.base_layer = small.to("cpu")  # rounds; later moves only copy
            count += 1
    return count
