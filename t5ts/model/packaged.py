"""Checkpoints that come with t5ts: `packaged:NAME` is a folder beside this module.

A prefix rather than an absolute path, so that a run's configuration, and with it its identity, is
the same in a checkout and in an installed wheel.
"""

from pathlib import Path

from t5ts.errors import WeightsError

PREFIX = "packaged:"
_HERE = Path(__file__).resolve().parent


def packaged_names() -> list[str]:
    """Names of the checkpoints that come with t5ts."""
    return sorted(config.parent.name for config in _HERE.glob("*/config.json"))


def checkpoint_folder(path: str | Path) -> Path:
    """The folder that a path means: `packaged:NAME`, or any other with its ~ expanded.

    Raises:
        WeightsError: if no checkpoint of that name comes with t5ts.
    """
    text = str(path)
    if not text.startswith(PREFIX):
        return Path(text).expanduser()
    name = text.removeprefix(PREFIX)
    if name not in packaged_names():
        raise WeightsError(
            f"No checkpoint named {name!r} comes with t5ts; there are: "
            f"{', '.join(packaged_names()) or 'none'}. For a folder of your own use "
            "backbone=local backbone.path=DIR."
        )
    return _HERE / name
