"""One naming for the weights of plain ViTs, whichever library built them.

The names are the student's own (`blocks.0.attn.qkv.weight`, ...), so that weight selection maps name to name.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

# Block-local names in timm (VisionTransformer, Eva) and transformers (InternVL, ViT, DINOv2, DINOv3, SigLIP, CLIP).
_BLOCK = re.compile(r"(?:^|\.)(?:blocks|layers?)\.(\d+)\.(.+)$")
_ALIASES = (
    (r"(?:norm1|layernorm_before|layer_norm1)\.(weight|bias)", r"norm1.\1"),
    (r"(?:norm2|layernorm_after|layer_norm2)\.(weight|bias)", r"norm2.\1"),
    (r"attn\.qkv\.(weight|bias)", r"attn.qkv.\1"),
    (r"(?:attn|attention|self_attn)\.([qkv])_proj\.(weight|bias)", r"attn.\1.\2"),
    (r"attn\.([qkv])_bias", r"attn.\1.bias"),
    (
        r"(?:attn\.proj|attention\.projection_layer|attention\.o_proj|self_attn\.out_proj)\.(weight|bias)",
        r"attn.proj.\1",
    ),
    (r"(?:ls1\.gamma|gamma_1|lambda_1|layer_scale1\.lambda1)", "ls1"),
    (r"(?:ls2\.gamma|gamma_2|lambda_2|layer_scale2\.lambda1)", "ls2"),
    (r"mlp\.(?:fc1|up_proj)\.(weight|bias)", r"mlp.fc1.\1"),
    (r"mlp\.(?:fc2|down_proj)\.(weight|bias)", r"mlp.fc2.\1"),
)
_PATCH = re.compile(r"(?:patch_embed\.proj|patch_embeddings\.projection|patch_embeddings?)\.(weight|bias)$")
_CLS = re.compile(r"(?:^|\.)(?:cls_token|class_embedding)$")
_POSITIONS = re.compile(r"(?:^|\.)(?:pos_embed|position_embeddings|position_embedding\.weight)$")


@dataclass(frozen=True)
class VitWeights:
    """A plain ViT's weights under the student's names.

    Attributes:
        tensors: patch_embed.{weight,bias}; cls_token [1,1,C] and pos_embed [1,1+h*w,C] where the ViT has them; and
            of each block norm1, attn.qkv [3C,C], attn.proj, ls1, norm2, mlp.fc1, mlp.fc2, ls2, with ones for a
            LayerScale and zeros for a bias that the ViT does not have.
        heads: attention heads. depth: blocks. dim: channels.
        grid: rows and columns of pos_embed.
    """

    tensors: dict[str, Tensor]
    heads: int
    depth: int
    dim: int
    grid: tuple[int, int]


def vit_weights(state: dict[str, Tensor], *, heads: int, prefix_tokens: int, grid: tuple[int, int]) -> VitWeights:
    """Rename a timm or transformers state dict.

    Args:
        state: the ViT's own state dict.
        heads: its attention heads.
        prefix_tokens: tokens before the patches (cls and registers).
        grid: patch rows and columns that its position table covers.

    Raises:
        ValueError: a block holds a tensor that a plain pre-norm ViT does not have (gated MLP, qk-norm, ...).
    """
    blocks: dict[int, dict[str, Tensor]] = {}
    tensors: dict[str, Tensor] = {}
    cls = positions = None
    for name, tensor in state.items():
        if match := _BLOCK.search(name):
            blocks.setdefault(int(match[1]), {})[_block_name(name, match[2])] = tensor
        elif match := _PATCH.search(name):
            tensors[f"patch_embed.{match[1]}"] = tensor
        elif _CLS.search(name):
            cls = tensor.reshape(1, 1, -1)
        elif _POSITIONS.search(name):
            positions = tensor.reshape(1, -1, tensor.shape[-1])
    dim = tensors["patch_embed.weight"].shape[0]
    tensors.setdefault("patch_embed.bias", tensors["patch_embed.weight"].new_zeros(dim))
    if cls is not None:
        tensors["cls_token"] = cls
    if positions is not None:
        tensors["pos_embed"] = _cls_and_patches(positions, prefix_tokens, grid)
    for number in range(len(blocks)):
        for name, tensor in _whole_block(blocks[number], dim).items():
            tensors[f"blocks.{number}.{name}"] = tensor
    return VitWeights(tensors, heads=heads, depth=len(blocks), dim=dim, grid=grid)


def _block_name(name: str, local: str) -> str:
    for pattern, ours in _ALIASES:
        if match := re.fullmatch(pattern, local):
            return match.expand(ours)
    raise ValueError(
        f"the teacher's tensor {name} has no counterpart in a plain pre-norm ViT block, so its weights cannot start "
        "a student; start the student from random weights"
    )


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


def _whole_block(block: dict[str, Tensor], dim: int) -> dict[str, Tensor]:
    if "attn.qkv.weight" not in block:
        block["attn.qkv.weight"] = torch.cat([block.pop(f"attn.{x}.weight") for x in "qkv"])
    like = block["attn.qkv.weight"]
    if "attn.qkv.bias" not in block:
        parts = [block.pop(f"attn.{x}.bias", None) for x in "qkv"]
        block["attn.qkv.bias"] = torch.cat([like.new_zeros(dim) if x is None else x for x in parts])
    for name, size in (("attn.proj", dim), ("mlp.fc1", block["mlp.fc1.weight"].shape[0]), ("mlp.fc2", dim)):
        block.setdefault(f"{name}.bias", like.new_zeros(size))
    for name in ("ls1", "ls2"):
        block.setdefault(name, like.new_ones(dim))
    return block
