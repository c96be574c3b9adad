"""What a launch would start, shown by --dry-run instead of starting it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Preview:
    """Commands or a manifest, to the letter as they would be used, but for credentials, which are named only."""

    commands: Sequence[Sequence[str]] = ()
    """Programs with their arguments, in the order in which they are run."""
    script: str = ""
    """The batch script, where the first command reads one."""
    manifest: str = ""
    """The YAML documents, for Kubernetes."""
    environment: Sequence[str] = ()
    """NAME=VALUE of each variable that is set; of what may be a credential, NAME=(hidden)."""
