"""What LMA's objectives for memories of a session share: a part of the language model that is trained beside LoRA."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel

from liteframe.align.conversation_rows import Conversation
from liteframe.align.objectives.sft import SupervisedFineTuning
from liteframe.models.vlm.adapter import trained_for
from liteframe.models.vlm.processor import LiteFrameProcessor
from liteframe.models.vlm.trained_memory import TRAINED, load_weights, part_of


class MemoryTuning(SupervisedFineTuning, ABC):
    """The loss of SupervisedFineTuning on conversations whose videos are read as a memory shows them.

    Args:
        settings: of the memory's training, with `train_lora`.
        processor: of the Video LLM.

    Attributes:
        memory: its name, which is that of the option of LMA.
        keys: of rows, that are read for it alone.
        conversations: rows of the run.
        progress: share of the run's steps that are done, to be set before each batch.

    Raises:
        ValueError: the language model counts positions on three axes.
    """

    memory: str
    keys: frozenset[str] = frozenset()

    def __init__(self, settings: Any, processor: LiteFrameProcessor) -> None:
        super().__init__()
        if processor.mrope is not None:
            raise ValueError(
                f"model.{self.memory}: what is read is numbered on one axis, and this language model counts on three; "
                "take an InternVL or a LLaVA-OneVision"
            )
        self.settings, self.processor, self.progress = settings, processor, 0.0

    def begin(self, model: PeftModel, start_from: str | None, conversations: Sequence[Conversation]) -> None:
        """Give a Video LLM with LoRA layers the memory's part, that of an adapter to go on from if it has one.

        Raises:
            ValueError: the model can have none, or conversations cannot be read so.
        """
        self.conversations = conversations
        base = model.get_base_model()
        part = TRAINED[self.memory].add(base, self.processor, self.settings)
        if start_from is not None and trained_for(start_from) == self.memory:
            load_weights(base, start_from)
        part.float().requires_grad_(True)
        if not self.settings.train_lora:
            for name, parameter in model.named_parameters():
                if ".lora_" in name:
                    parameter.requires_grad_(False)

    def describe(self, model: PeftModel) -> str:
        """What of it will be trained, to be read before a run starts."""
        count = sum(parameter.numel() for parameter in part_of(model.get_base_model()).parameters())
        lora = "trained" if self.settings.train_lora else "frozen"
        return f"{TRAINED[self.memory].words}: {count:,} of these parameters; LoRA: {lora}"

    @abstractmethod
    def room(self, limit: int, frames: Sequence[int], device: torch.device) -> tuple[Sequence[int], int, str]:
        """Frames that the language model reads in full, and with them how many tokens, as check_lengths takes it.

        Args:
            limit: tokens that the language model reads.
            frames: that a conversation's videos have at most, see ChatDataModule.
            device: on which they are read.

        Returns:
            Frames of videos in full, tokens that a conversation may have with them, and who says so.
        """
