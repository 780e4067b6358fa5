"""Which teacher a run learns from."""

from dataclasses import dataclass, field
from typing import Any

from liteframe.models.teacher import Teacher, load_teacher


@dataclass
class TeacherSettings:
    """Which teacher, as `load_teacher` takes it.

    Attributes:
        name: "timm/<model>", a Hugging Face id, or a local folder (a ViT or a whole VLM).
        pretrained: False takes random weights (to try things out).
        options: further keyword arguments.
    """

    name: str
    pretrained: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    def load(self) -> Teacher:
        """The teacher, frozen, on the CPU; raises as load_teacher."""
        return load_teacher(self.name, pretrained=self.pretrained, **self.options)
