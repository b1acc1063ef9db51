"""What a git checkout holds beyond its commit, as a diff."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

_MAX_BYTES = 2**20
_SECONDS = 30.0
_DIFF = ("diff", "--no-ext-diff", "--no-textconv", "--no-color")


@dataclass(frozen=True, slots=True)
class Checkout:
    """A working tree of git.

    Attributes:
        commit: that is checked out; None before the first.
    """

    folder: Path
    commit: str | None


def checkout_of(folder: Path, *, must_hold: bool = False) -> Checkout | None:
    """The checkout that a folder is in; None outside git.

    Args:
        must_hold: only if git tracks files of the folder: an environment may lie in a checkout and be no part of it.
    """
    top = _git(folder, "rev-parse", "--show-toplevel").strip()
    if not top or (must_hold and not _git(folder, "ls-files", "--", ".")):
        return None
    return Checkout(Path(top), _git(folder, "rev-parse", "--verify", "--quiet", "HEAD").strip() or None)


def diff_of(checkout: Checkout) -> str:
    """Changes of tracked files, staged ones too, and Python files that git does not know, as additions.

    What is longer than 1 MiB is cut, and says so. Empty for a clean checkout.
    """
    parts = [_git(checkout.folder, *_DIFF, "HEAD")] if checkout.commit else []
    listed = _git(checkout.folder, "ls-files", "-z", "--others", "--exclude-standard", "--", "*.py")
    for name in filter(None, listed.split("\0")):
        parts.append(_git(checkout.folder, *_DIFF, "--no-index", "--", "/dev/null", name))
        if sum(map(len, parts)) > _MAX_BYTES:
            break
    changes = "".join(parts)
    if not changes:
        return ""
    if len(changes) > _MAX_BYTES:
        changes = f"{changes[:_MAX_BYTES]}\n[cut here: a diff is kept up to {_MAX_BYTES >> 20} MiB]\n"
    return f"# {checkout.folder.name}, beyond commit {checkout.commit or 'none'}\n{changes}"


def _git(folder: Path, *arguments: str) -> str:
    """What git prints; nothing where it fails. Its `diff --no-index` ends with 1 where there is a difference."""
    try:
        command = ["git", "-C", str(folder), "-c", "core.quotePath=off", *arguments]
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace") if done.returncode in (0, 1) else ""
