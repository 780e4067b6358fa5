"""What tests of the target cache build from: a YAML with a tiny teacher and nine videos, one of them broken."""

from ctd_world import make_vlm_folder, write_video


def make_world(folder):
    """Write teacher, videos and configuration below `folder`; returns the YAML."""
    (folder / "vlm").mkdir()
    (folder / "videos").mkdir()
    make_vlm_folder(folder / "vlm")
    for number in range(8):
        write_video(folder / "videos" / f"clip{number}.mp4", frames=5 if number == 2 else 24, seed=number)
    whole = (folder / "videos" / "clip1.mp4").read_bytes()
    (folder / "videos" / "broken.mp4").write_bytes(whole[: len(whole) // 2])
    path = folder / "tiny.yaml"
    path.write_text(
        f"""
seed_everything: 3
run: {folder}/run
model:
  teacher: {{name: "{folder}/vlm"}}
  student: {{dim: 16, depth: 2, heads: 2, mlp_dim: 32, patch_size: 8, image_size: 64, teacher_dim: 32,
            downsample: {{1: [2, 2, 2], 2: [2, 1, 1]}}, clip_frames: 8}}
  target: {{statistics_clips: 4}}
  optimizer: {{lr: 1.0e-3, warmup_steps: 2}}
data: {{videos: "{folder}/videos", batch_size: 2, workers: 0, min_fps: 4, val_fraction: 0.2, max_failure_rate: 0.5}}
trainer: {{max_steps: 1, accelerator: cpu, log_every_n_steps: 1}}
"""
    )
    return path


def contents(folder):
    """Bytes of all files of a cache by name; the list of bad videos may grow in another order."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (".lock", "bad_videos.jsonl")
    }
