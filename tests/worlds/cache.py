"""What tests of the target cache build from: a YAML with a tiny teacher and nine videos, one of them broken."""

from worlds.ctd import make_vlm_folder, write_ctd_config, write_video


def make_world(folder):
    """Write teacher, videos and configuration below `folder`; returns the YAML."""
    (folder / "vlm").mkdir()
    (folder / "videos").mkdir()
    make_vlm_folder(folder / "vlm")
    for number in range(8):
        write_video(folder / "videos" / f"clip{number}.mp4", frames=5 if number == 2 else 24, seed=number)
    whole = (folder / "videos" / "clip1.mp4").read_bytes()
    (folder / "videos" / "broken.mp4").write_bytes(whole[: len(whole) // 2])
    return write_ctd_config(
        folder / "tiny.yaml",
        folder / "vlm",
        folder / "videos",
        run=folder / "run",
        data={"val_fraction": 0.2, "max_failure_rate": 0.5},
        trainer={"max_steps": 1},
    )


def contents(folder):
    """Bytes of all files of a cache by name; the list of bad videos may grow in another order."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (".lock", "bad_videos.jsonl")
    }
