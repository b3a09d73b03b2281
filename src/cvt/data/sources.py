"""What kind of source a path is, where nobody says."""

from __future__ import annotations

from pathlib import Path


def guess_source(root: str) -> str:
    """The `name` of `DataConfig` that suits `root`: manifest for a table, shards for a directory
    of tar archives, huggingface for what `save_to_disk` wrote, else folder."""
    path = Path(root)
    if path.suffix in (".csv", ".tsv", ".parquet") and not path.is_dir():
        return "manifest"
    if any(path.glob("*.tar")) or any(path.glob("train/*.tar")):
        return "shards"
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return "huggingface"
    return "folder"
