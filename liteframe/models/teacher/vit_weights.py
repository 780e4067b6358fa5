"""One naming for the weights of plain ViTs, whichever library built them.

The names are the student's own (`blocks.0.attn.qkv.weight`, ...), so that weight selection maps name to name. The
mapping is total: a tensor that finds no place, and is not known to be dispensable, is an error.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

REMEDY = (
    "so its weights cannot start a student; start the student from random weights (init: random) or from another ViT "
    "(--init_from timm/<name>)"
)

# Block-local names in timm (VisionTransformer, Eva) and transformers (InternVL, ViT, DINOv2, DINOv3, SigLIP, CLIP).
_BLOCK = re.compile(r"(?:(?:encoder|model)\.)?(?:blocks|layers?)\.(\d+)\.(.+)")
_ALIASES = (
    (r"(?:norm1|layernorm_before|layer_norm1)\.(weight|bias)", r"norm1.\1"),
    (r"(?:norm2|layernorm_after|layer_norm2)\.(weight|bias)", r"norm2.\1"),
    (r"attn\.qkv\.(weight|bias)", r"attn.qkv.\1"),
    (r"(?:attn|attention|self_attn)\.([qkv])_proj\.(weight|bias)", r"attn.\1.\2"),
    (r"attn\.([qkv])_bias", r"attn.\1.bias"),
    # DINOv2 in transformers up to 5.2x
    (r"attention\.attention\.([qkv])(?:uery|ey|alue)\.(weight|bias)", r"attn.\1.\2"),
    (r"attention\.output\.dense\.(weight|bias)", r"attn.proj.\1"),
    (
        r"(?:attn\.proj|attention\.projection_layer|attention\.o_proj|self_attn\.out_proj)\.(weight|bias)",
        r"attn.proj.\1",
    ),
    (r"(?:ls1\.gamma|gamma_1|lambda_1|layer_scale1\.lambda1)", "ls1"),
    (r"(?:ls2\.gamma|gamma_2|lambda_2|layer_scale2\.lambda1)", "ls2"),
    (r"mlp\.(?:fc1|up_proj)\.(weight|bias)", r"mlp.fc1.\1"),
    (r"mlp\.(?:fc2|down_proj)\.(weight|bias)", r"mlp.fc2.\1"),
)
_GATE = re.compile(r"mlp\.(?:gate_proj|fc1_g|weights_in)\.weight")  # of an MLP like SwiGLU
_PATCH = re.compile(r"patch_embed(?:\.proj|dings\.projection|dings|ding)\.(weight|bias)")
_CLS = re.compile(r"cls_token|class_embedding")
_POSITIONS = re.compile(r"pos_embed|position_embeddings|position_embedding\.weight")
_NORM_BEFORE = re.compile(r"(?:norm_pre|pre_layrnorm)\.(?:weight|bias)")
_DISPENSABLE = (
    r"(?:norm|fc_norm|layernorm|post_layernorm)\.(?:weight|bias)",  # after the last block: a student has none
    r"(?:attn_pool|head|pooler)\..+",  # make one vector of the features
    r"mask_token|embeddings\.mask_token",  # stands for patches hidden in pre-training
    r"reg_token|register_tokens",  # named among the differences
    r"rope\..+|rope_embeddings\..+",  # named among the differences
)


@dataclass(frozen=True)
class VitWeights:
    """A plain ViT's weights under the student's names.

    Attributes:
        tensors: patch_embed.{weight,bias}; cls_token [1,1,C] and pos_embed [1,1+h*w,C] where the ViT has them; and
            of each block norm1, attn.qkv [3C,C], attn.proj, ls1, norm2, mlp.fc1, mlp.fc2, ls2, with ones for a
            LayerScale and zeros for a bias that the ViT does not have. Without mlp and ls2 where its MLPs are gated.
        heads: attention heads. depth: blocks. dim: channels C.
        grid: rows and columns of pos_embed.
        differences: what the ViT computes otherwise than these tensors in a student do; a sentence each.
    """

    tensors: dict[str, Tensor]
    heads: int
    depth: int
    dim: int
    grid: tuple[int, int]
    differences: tuple[str, ...] = ()

    @property
    def mlp_dim(self) -> int | None:
        """Channels inside the MLP; None where there is none that a student's could be cut from."""
        layer = self.tensors.get("blocks.0.mlp.fc1.weight")
        return None if layer is None else layer.shape[0]


def vit_weights(
    state: Mapping[str, Tensor],
    *,
    heads: int,
    cls: bool,
    registers: int,
    grid: tuple[int, int],
    rotary: bool,
    activation: Callable[[Tensor], Tensor],
) -> VitWeights:
    """Rename a timm or transformers state dict.

    Args:
        state: the ViT's own state dict.
        heads: its attention heads.
        cls: whether it has a cls token.
        registers: its register tokens, between cls and patches.
        grid: patch rows and columns that its position table covers.
        rotary: whether it turns queries and keys by their position.
        activation: of its MLPs.

    Raises:
        ValueError: the ViT is not a plain pre-norm one (it normalizes before its blocks, its MLP has another activation
            than a GELU, it normalizes queries, ...), or lacks a tensor; the message names it.
    """
    blocks: dict[int, dict[str, Tensor]] = {}
    gated = any((match := _BLOCK.fullmatch(name)) and _GATE.fullmatch(match[2]) for name in state)
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        # Older versions of transformers keep CLIP and SigLIP in a module of this name.
        local = name.removeprefix("vision_model.")
        embedding = local.removeprefix("embeddings.")
        if match := _BLOCK.fullmatch(local):
            if gated and match[2].startswith("mlp."):
                continue  # named among the differences
            blocks.setdefault(int(match[1]), {})[_block_name(name, match[2])] = tensor
        elif match := _PATCH.fullmatch(embedding):
            tensors[f"patch_embed.{match[1]}"] = tensor
        elif _CLS.fullmatch(embedding):
            tensors["cls_token"] = tensor.reshape(1, -1, tensor.shape[-1])[:, :1]  # [1,1,C], the first of several
        elif _POSITIONS.fullmatch(embedding):
            positions = tensor.reshape(1, -1, tensor.shape[-1])  # [1,tokens,C]
            tensors["pos_embed"] = _cls_and_patches(positions, cls + registers, grid)  # [1,1+h*w,C]
        elif _NORM_BEFORE.fullmatch(local):
            raise ValueError(f"the teacher normalizes tokens before its first block ({name}), a student not, {REMEDY}")
        elif not any(re.fullmatch(pattern, embedding) for pattern in _DISPENSABLE):
            raise ValueError(f"the teacher's tensor {name} has no counterpart in a student, {REMEDY}")
    dim = tensors["patch_embed.weight"].shape[0]
    tensors.setdefault("patch_embed.bias", tensors["patch_embed.weight"].new_zeros(dim))
    rms = "norm1.weight" in blocks[0] and not {"norm1.bias", "norm2.bias"} & blocks[0].keys()
    for number, block in blocks.items():
        if rms:
            block |= {f"{name}.bias": torch.zeros_like(block[f"{name}.weight"]) for name in ("norm1", "norm2")}
        for name, tensor in _whole_block(number, block, dim, gated).items():
            tensors[f"blocks.{number}.{name}"] = tensor
    differences = [
        "its MLPs are gated, which a student's are not: those start at random, and norms and attention are taken"
        if gated
        else _activation_difference(activation)
    ]
    differences += ["its norms leave the mean of a token (RMSNorm), the student's subtract it"] if rms else []
    differences += ["it has no cls token, the student's is random and takes part in attention"] if not cls else []
    differences += [f"its {registers} register tokens take part in attention"] if registers else []
    differences += ["its attention is rotary"] if rotary else []
    return VitWeights(tensors, heads, len(blocks), dim, grid, tuple(filter(None, differences)))


def _activation_difference(activation: Callable[[Tensor], Tensor]) -> str:
    """How the activation differs from the student's (erf) GELU; empty if it does not.

    Raises:
        ValueError: it is no GELU: the tanh approximation is off by less than 5e-4 anywhere, x * sigmoid(1.702 x),
            CLIP's quick_gelu, by 2e-2.
    """
    x = torch.linspace(-8, 8, 4097, dtype=torch.float64)
    largest = (activation(x) - F.gelu(x)).abs().max().item()
    if largest > 1e-3:
        raise ValueError(f"the teacher's MLPs have another activation ({activation}) than GELU, {REMEDY}")
    return f"its GELU is an approximation, off by up to {largest:.0e}" if largest > 1e-9 else ""


def _block_name(name: str, local: str) -> str:
    for pattern, ours in _ALIASES:
        if match := re.fullmatch(pattern, local):
            return match.expand(ours)
    raise ValueError(f"the teacher's tensor {name} has no counterpart in a plain pre-norm ViT block, {REMEDY}")


def _cls_and_patches(positions: Tensor, prefix_tokens: int, grid: tuple[int, int]) -> Tensor:
    """Keep cls and patch positions: registers are dropped, a table without prefix gets a zero row for cls."""
    patches = grid[0] * grid[1]
    if positions.shape[1] == patches + prefix_tokens and prefix_tokens:
        return torch.cat([positions[:, :1], positions[:, prefix_tokens:]], dim=1)
    if positions.shape[1] == patches + 1:  # cls has a position, registers have none
        return positions
    if positions.shape[1] == patches:
        return torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    raise ValueError(f"{positions.shape[1]} positions fit neither a {grid[0]}x{grid[1]} grid nor that with prefixes")


def _whole_block(number: int, block: dict[str, Tensor], dim: int, gated: bool) -> dict[str, Tensor]:
    """A block with one joint layer for q, k and v, and with every tensor that a student's has, but for a gated MLP.

    Raises:
        ValueError: a tensor is missing that stands for neither a bias nor a LayerScale, or has another shape.
    """
    if "attn.qkv.weight" not in block:
        block["attn.qkv.weight"] = torch.cat([block.pop(f"attn.{x}.weight") for x in "qkv"])  # [3C,C]
    like = block["attn.qkv.weight"]
    if "attn.qkv.bias" not in block:
        parts = [block.pop(f"attn.{x}.bias", None) for x in "qkv"]
        block["attn.qkv.bias"] = torch.cat([like.new_zeros(dim) if x is None else x for x in parts])  # [3C]
    hidden = 0 if gated else block["mlp.fc1.weight"].shape[0]
    biases = {"attn.proj": dim, **({} if gated else {"mlp.fc1": hidden, "mlp.fc2": dim})}
    for name, size in biases.items():
        block.setdefault(f"{name}.bias", like.new_zeros(size))
    block.setdefault("ls1", like.new_ones(dim))
    if gated:
        block.pop("ls2", None)
    else:
        block.setdefault("ls2", like.new_ones(dim))
    mlp = {} if gated else {"mlp.fc1.weight": (hidden, dim), "mlp.fc2.weight": (dim, hidden)}
    shapes: dict[str, tuple[int, ...]] = {
        "attn.qkv.weight": (3 * dim, dim), "attn.proj.weight": (dim, dim), **mlp,
        "norm1.weight": (dim,), "norm1.bias": (dim,), "norm2.weight": (dim,), "norm2.bias": (dim,),
    }  # fmt: skip
    for name, shape in shapes.items():
        if name not in block or block[name].shape != shape:
            there = list(block[name].shape) if name in block else "missing"
            raise ValueError(
                f"block {number} of the teacher is not that of a plain pre-norm ViT: {name} is {there}, expected "
                f"{list(shape)}, {REMEDY}"
            )
    return block
