"""What a run was made with."""

from __future__ import annotations

import platform
from importlib import metadata


def versions(*libraries: str) -> dict[str, str]:
    """Versions of glulens, Python and some libraries, for a manifest."""
    from .. import __version__

    return {
        "glulens": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in libraries},
    }
