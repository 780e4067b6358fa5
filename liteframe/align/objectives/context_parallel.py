"""Supervised fine-tuning on devices that share the tokens of each conversation."""

from typing import Any

import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn

from liteframe.align.batch import ChatBatch
from liteframe.align.context_parallel import ContextShares
from liteframe.align.objectives.sft import SupervisedFineTuning, answer_loss, embeddings_of, features_of
from liteframe.models.vlm.attention import FULL, takes_causal_masks
from liteframe.models.vlm.context_parallel import CONTEXT_PARALLEL, attend_together, columns_of


class ContextParallelTuning(SupervisedFineTuning):
    """The loss of SupervisedFineTuning, of which each device has the part of the answer tokens that it reads.

    Sums over devices are those of one device, and so are sums of gradients.

    Args:
        shares: the devices.
        model: the Video LLM with LoRA layers, whose encoder is frozen.

    Raises:
        ValueError: its language model has attention of another kind than causal in all layers.
    """

    def __init__(self, shares: ContextShares, model: PeftModel) -> None:
        super().__init__()
        self.shares, base = shares, model.get_base_model()
        config = base.model.language_model.config  # type: ignore[union-attr]
        if not takes_causal_masks(config):
            raise ValueError(
                f"data.context_parallel: a {config.model_type} has attention that cannot be shared between devices; "
                "it can where all layers have causal attention in full (Qwen2 and Qwen3 without windows)"
            )
        shares.share_clips(base.model.vision_tower)  # type: ignore[union-attr, arg-type]
        attend_together(shares.group)
        config._attn_implementation = CONTEXT_PARALLEL

    def loss(self, model: nn.Module, inputs: dict[str, Any], batch: ChatBatch) -> tuple[Tensor, Tensor]:
        """Summed loss of this device's answer tokens, and their logits [R,K',vocabulary]; see Objective.

        Waits for the device: how many of them are its own is read from it.
        """
        base = model.get_base_model()  # type: ignore[operator]
        embeddings = embeddings_of(base, batch, features_of(inputs))  # [R,L,D]
        length, ways = embeddings.shape[1], 2 * self.shares.group.size()
        behind = -length % ways  # nobody who is asked sees what stands behind the rows
        columns = columns_of(self.shares.rank, self.shares.group.size(), length + behind).to(embeddings.device)
        positions = columns.expand(len(embeddings), -1)  # [R,L/S]
        if batch.position_ids is not None:
            positions = F.pad(batch.position_ids, (0, behind))[..., columns]  # [3,R,L/S]
        place, answer = (columns[:, None] == batch.answers).nonzero(as_tuple=True)
        logits = model(
            inputs_embeds=F.pad(embeddings, (0, 0, 0, behind))[:, columns],
            attention_mask={FULL: None},
            position_ids=positions,
            logits_to_keep=place,
            use_cache=False,
        ).logits
        loss = answer_loss(logits, batch.labels, batch.answers[answer])
        self._losses.append(loss._replace(total=loss.total.detach()))
        return loss.total, logits
