"""Files that are made before the site is built."""

from pathlib import Path


def replace(folder: Path, contents: dict[str, str | bytes]) -> None:
    """Make these the files of a folder; those that stay as they are need not be read again."""
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        if old.name not in contents:
            old.unlink()
    for name, content in contents.items():
        new = content.encode() if isinstance(content, str) else content
        path = folder / name
        if not path.exists() or path.read_bytes() != new:
            path.write_bytes(new)
