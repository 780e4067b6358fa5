"""Uses two exports as a stranger would: no liteframe, another folder. `python -P stranger.py ROOT INPUTS OUTPUTS`."""

import contextlib
import io
import os
import re
import sys
from pathlib import Path

for package in ("liteframe", "liteframe_kernels", "liteframe_export"):
    sys.modules[package] = None  # importing it raises ImportError

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import (  # noqa: E402
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoVideoProcessor,
    pipeline,
)

root, inputs, outputs = sys.argv[1:]
os.chdir(root)
videos = load_file(inputs)
found = {}

encoder = AutoModel.from_pretrained("my-encoder.v1", trust_remote_code=True).eval()
pixels = AutoVideoProcessor.from_pretrained("my-encoder.v1", trust_remote_code=True)(
    videos=[videos["long"].numpy()], return_tensors="pt"
)
with torch.no_grad():
    found["features"] = encoder(pixels["pixel_values_videos"]).last_hidden_state

model = AutoModelForImageTextToText.from_pretrained("my-vlm", trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained("my-vlm", trust_remote_code=True)
assert type(model.model.vision_tower).__module__ != type(encoder).__module__, "each export runs its own code"
prompt = "<|im_start|>user\n<video>\nand then <video>\nWhich colour?<|im_end|>\n<|im_start|>assistant\n"
batch = processor(text=prompt, videos=[videos["long"].numpy(), videos["short"].numpy()])
with torch.no_grad():
    found["logits"] = model(**batch).logits
    found["answer"] = model.generate(**batch, do_sample=False, max_new_tokens=12)

# What a stranger changes can be saved and loaded again, code and all.
model.save_pretrained("my-vlm-again")
processor.save_pretrained("my-vlm-again")
again = AutoModelForImageTextToText.from_pretrained("my-vlm-again", trust_remote_code=True).eval()
with torch.no_grad():
    found["logits_again"] = again(**batch).logits
base = AutoModel.from_pretrained("my-vlm", trust_remote_code=True).eval()
with torch.no_grad():
    found["hidden"] = base(**batch).last_hidden_state
    found["hidden_of_whole"] = model.model(**batch).last_hidden_state

# As pipelines find it, by either of its classes; a video by its name.
content = [{"type": "video", "path": "a.mp4"}, {"type": "text", "text": "Which colour?"}]
for task in ("image-text-to-text", "any-to-any"):
    (answer,) = pipeline(task, model="my-vlm", trust_remote_code=True)(
        text=[{"role": "user", "content": content}], max_new_tokens=8, return_full_text=False, num_frames=6
    )
    found[f"said.{task}"] = torch.tensor(list(answer["generated_text"].encode()), dtype=torch.uint8)

for name in ("my-encoder.v1", "my-vlm"):
    (code,) = re.findall(r"```python\n(.*?)```", Path(name, "README.md").read_text(), flags=re.DOTALL)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code, f"{name}/README.md", "exec"), {})
    found[f"said.{name}"] = torch.tensor(list(said.getvalue().encode()), dtype=torch.uint8)

save_file({name: tensor.contiguous() for name, tensor in found.items()}, outputs)
