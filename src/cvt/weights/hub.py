"""Download checkpoints with the client of the Hugging Face hub, its cache and its variables."""

from __future__ import annotations

import re
from pathlib import Path

from cvt.system.errors import InputError, first_line
from cvt.weights.card import CONFIG
from cvt.weights.huggingface import PREPROCESSOR
from cvt.weights.tensors import INDEX, WEIGHT_FILES, read_index


def fetch(repo: str, revision: str = "main") -> Path:
    """The directory of `repo` (org/name) at `revision` in the hub's cache, downloaded if needed.

    It contains config.json, preprocessor_config.json if the repository has one, and the weights,
    preferably safetensors. revision: a branch, a tag or a commit. The environment variables of the
    client apply: HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE. If the hub is unavailable, the
    cache is used. Raises InputError if the files are not available.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII):
        raise InputError(f"{repo!r} is not a repository name; write hf-hub:org/name, such as "
                         "hf-hub:microsoft/cvt-13")
    if not re.fullmatch(r"[\w.+/-]+", revision, re.ASCII) or ".." in revision:
        raise InputError(f"{revision!r} is not a revision; write hf-hub:{repo}@REVISION with a "
                         "branch, a tag or a commit")
    if re.fullmatch("[0-9a-f]{40}", revision):  # a commit never changes
        directory, missing = _cached(repo, revision)
        if directory is not None:
            return directory
    try:
        return _download(repo, revision)
    except InputError:
        raise
    except Exception as error:  # the HTTP libraries of the client's versions share no class
        from huggingface_hub.errors import LocalEntryNotFoundError

        # Without the network, this only says that the cache has no such file.
        if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
            error = error.__cause__
        outage = _outage(error)
        directory, missing = _cached(repo, revision) if outage else (None, "")
        if directory is not None:
            return directory
        raise InputError(_unavailable(repo, revision, outage, missing) if outage
                         else _reason(error, repo, revision)) from error


def _download(repo: str, revision: str) -> Path:
    """Request all files from the hub; returns their directory."""
    from huggingface_hub import (  # slow to import
        _CACHED_NO_EXIST,
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        try_to_load_from_cache,
    )
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    # One request. hf_hub_download would retry for minutes if the hub is unavailable.
    get_hf_file_metadata(hf_hub_url(repo, CONFIG, revision=revision))
    directory = Path(hf_hub_download(repo, CONFIG, revision=revision)).parent
    commit = directory.name  # for all files, even if something is pushed meanwhile

    def get(name: str) -> bool:
        if try_to_load_from_cache(repo, name, revision=commit) is _CACHED_NO_EXIST:
            return False
        try:
            hf_hub_download(repo, name, revision=commit)
        except LocalEntryNotFoundError:  # the hub is unavailable
            raise
        except EntryNotFoundError:
            return False
        return True

    get(PREPROCESSOR)
    weights = next((name for name in WEIGHT_FILES if get(name)), None)
    if weights is None:
        raise InputError(f"{repo} at {revision} has no weights ({', '.join(WEIGHT_FILES)}); choose "
                         "another repository, or give the path of a file")
    for part in _parts(directory / weights):
        if not get(part):
            raise InputError(f"{repo} at {revision} has no {part}, which its {weights} names; "
                             "choose another revision")
    return directory


def _cached(repo: str, revision: str) -> tuple[Path | None, str]:
    """The directory if all files are in the cache; else None and a missing file."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo, CONFIG, revision=revision)
    if not isinstance(config, str):
        return None, CONFIG
    directory = Path(config).parent
    weights = next((name for name in WEIGHT_FILES if (directory / name).is_file()), None)
    if weights is None:
        return None, WEIGHT_FILES[0]
    missing = [part for part in _parts(directory / weights) if not (directory / part).is_file()]
    return (None, missing[0]) if missing else (directory, "")


def _parts(weights: Path) -> list[str]:
    """The files of an index; none for weights in one file."""
    return sorted(set(read_index(weights).values())) if weights.name.endswith(INDEX) else []


def _outage(error: Exception) -> str:
    """Why the hub is unavailable; empty if it responded."""
    from huggingface_hub import errors

    kind = type(error).__name__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if status is not None:
        return f"it responds with {status}" if status >= 500 or status in (408, 429) else ""
    if "Timeout" in kind:
        return "the request timed out"
    if kind.endswith(("ConnectError", "ConnectionError", "SSLError", "ProxyError", "NetworkError",
                      "ReadError", "ProtocolError", "ChunkedEncodingError")):
        return f"the connection failed ({first_line(error)})"
    return ""


def _unavailable(repo: str, revision: str, outage: str, missing: str) -> str:
    from huggingface_hub import constants

    online = ("unset it to download" if "OFFLINE" in outage
              else "try again, or check the connection and HF_ENDPOINT")
    return (f"{repo} at {revision} cannot be downloaded from {constants.ENDPOINT}: {outage}, and "
            f"{missing} is not in the cache, {constants.HF_HUB_CACHE}; {online}, or download the "
            "repository elsewhere and give the path of its directory")


def _reason(error: Exception, repo: str, revision: str) -> str:
    """The message for a response that was not a file: what is wrong, and what to do."""
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return (f"{repo} is gated; accept its terms at {hub}/{repo}, then set HF_TOKEN to your "
                "access token")
    if isinstance(error, errors.RepositoryNotFoundError):
        return (f"{hub} has no repository {repo}, or it is private; check the name, or set "
                "HF_TOKEN to a token with read access")
    if isinstance(error, errors.RevisionNotFoundError):
        return (f"{repo} has no revision {revision!r}; choose a branch, a tag or a commit of "
                f"{hub}/{repo}")
    if isinstance(error, errors.EntryNotFoundError):
        return (f"{repo} at {revision} has no {CONFIG}, which describes the network; download the "
                "weights and give the path of their file")
    if status in (401, 403):
        return (f"{hub} responds with {status} for {repo}; set HF_TOKEN to a token with read "
                "access")
    if status is not None or isinstance(error, errors.FileMetadataError):
        return (f"{hub} does not respond like the hub ({first_line(error)}); check HF_ENDPOINT and "
                "the proxy")
    if isinstance(error, OSError) and error.errno is not None:
        return (f"{repo} cannot be written to the cache, {constants.HF_HUB_CACHE}: "
                f"{error.strerror}; free some space, or set HF_HOME to another directory")
    return f"{repo} at {revision} cannot be downloaded: {first_line(error)}; try again"
