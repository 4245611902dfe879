"""Restricts what the DVC files of a registry may refer to: content by hash, and imports from git servers.

DVC builds paths from hashes and opens any file that an import names, so an untrusted registry could have any file of
this machine read as rows.
"""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from sft.errors import InvalidDataset

MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")
GIT_SERVER = re.compile(r"(https?|ssh|git)://[^-/][^/]*/|[A-Za-z0-9_][\w.-]*@[A-Za-z0-9][\w.-]*:[^-]")


def check_md5(md5: str, what: str) -> str:
    """Return the hash if it is valid. Raises InvalidDataset."""
    if not isinstance(md5, str) or not MD5.fullmatch(md5):
        raise InvalidDataset(
            f"{what} has md5 {str(md5)[:80]!r} in the registry, which is not an md5; add it to DVC again"
        )
    return md5


def check_outputs(repo: Any, name: str) -> None:
    """Refuse a revision whose DVC files refer to files outside of its cache, its remote or a git server.

    Args:
        repo: `dvc.repo.Repo` at the revision.
        name: the requested dataset; imports of other datasets are not checked.

    Raises:
        InvalidDataset: naming the file.
    """
    for out in repo.index.outs:
        if out.hash_info and str(out.hash_info.name).startswith("md5"):
            check_md5(out.hash_info.value, str(out))
        if out.stage.is_import and _overlap(_parts_of(out), PurePosixPath(name).parts):
            _check_import(out)


def _check_import(out: Any) -> None:
    dependency = out.stage.deps[0]
    if out.stage.is_repo_import:
        url = str(dependency.def_repo.get("url"))
        if not GIT_SERVER.match(url):
            raise InvalidDataset(
                f"{out} is imported from {url[:200]!r}; a registry may import from git servers only (https, ssh), so "
                "add the file itself with `dvc add`"
            )
    elif not out.hash_info:
        raise InvalidDataset(
            f"{out} is imported from {str(dependency)[:200]!r} without its content; run `dvc update` and `dvc push` in "
            "the registry"
        )


def _parts_of(out: Any) -> tuple[str, ...]:
    return tuple(out.index_key[1])


def _overlap(place: Iterable[str], name: Iterable[str]) -> bool:
    """Whether one path contains the other; the name may lack the suffix."""
    pairs = [*zip(place, name, strict=False)]
    return all(one == other or one.rsplit(".", 1)[0] == other for one, other in pairs)
