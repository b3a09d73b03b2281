"""Checkpoints from the Hugging Face hub, through its own client: its cache and its variables."""

from __future__ import annotations

import re
from pathlib import Path

from cvt.system.errors import InputError
from cvt.weights.card import CONFIG
from cvt.weights.huggingface import PREPROCESSOR
from cvt.weights.native import WEIGHTS
from cvt.weights.tensors import INDEX, read_index


def fetch(repo: str, revision: str = "main") -> Path:
    """The directory in the hub's cache that holds `repo` (org/name) at `revision`.

    In it are config.json, preprocessor_config.json if the repository has one, and its weights,
    safetensors by preference; what is not there yet is downloaded. revision: a branch, a tag or a
    commit. The client's variables hold: HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE. Where the
    hub does not answer, the cache alone will do. Raises InputError for what cannot be had.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII):
        raise InputError(f"{repo!r} is no repository of the hub; write hf-hub:org/name, such as "
                         "hf-hub:microsoft/cvt-13")
    if not re.fullmatch(r"[\w.+/-]+", revision, re.ASCII) or ".." in revision:
        raise InputError(f"{revision!r} is no revision; write hf-hub:{repo}@REVISION with a "
                         "branch, a tag or a commit")
    if re.fullmatch("[0-9a-f]{40}", revision):  # a commit never changes
        directory, missing = _cached(repo, revision)
        if directory is not None:
            return directory
    try:
        return _download(repo, revision)
    except InputError:
        raise
    except Exception as error:  # requests, httpx and httpx2, as the client had them, share no class
        error = _cause(error)
        silence = _silence(error)
        directory, missing = _cached(repo, revision) if silence else (None, "")
        if directory is not None:
            return directory
        raise InputError(_unavailable(repo, revision, silence, missing) if silence
                         else _reason(error, repo, revision)) from error


def _download(repo: str, revision: str) -> Path:
    """The directory, with every file in it, after asking the hub."""
    from huggingface_hub import (  # slow to import
        _CACHED_NO_EXIST,
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        try_to_load_from_cache,
    )
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    # Asks once. A download would ask a hub that does not answer for minutes.
    get_hf_file_metadata(hf_hub_url(repo, CONFIG, revision=revision))
    directory = Path(hf_hub_download(repo, CONFIG, revision=revision)).parent
    commit = directory.name  # of which all files are to be, whatever is pushed meanwhile

    def get(name: str) -> bool:
        if try_to_load_from_cache(repo, name, revision=commit) is _CACHED_NO_EXIST:
            return False
        try:
            hf_hub_download(repo, name, revision=commit)
        except LocalEntryNotFoundError:  # the hub fell silent
            raise
        except EntryNotFoundError:
            return False
        return True

    get(PREPROCESSOR)
    weights = next((name for name in WEIGHTS if get(name)), None)
    if weights is None:
        raise InputError(f"{repo} at {revision} has no weights ({', '.join(WEIGHTS)}); choose a "
                         "repository that has, or give the path of a file")
    for part in _parts(directory / weights):
        if not get(part):
            raise InputError(f"{repo} at {revision} has no {part}, which its {weights} names; "
                             "choose another revision")
    return directory


def _cached(repo: str, revision: str) -> tuple[Path | None, str]:
    """The directory if all is in the cache, else what is missing there."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo, CONFIG, revision=revision)
    if not isinstance(config, str):
        return None, CONFIG
    directory = Path(config).parent
    weights = next((name for name in WEIGHTS if (directory / name).is_file()), None)
    if weights is None:
        return None, WEIGHTS[0]
    missing = [part for part in _parts(directory / weights) if not (directory / part).is_file()]
    return (None, missing[0]) if missing else (directory, "")


def _parts(weights: Path) -> list[str]:
    """The files that an index names; none for weights in one file."""
    return sorted(set(read_index(weights).values())) if weights.name.endswith(INDEX) else []


def _cause(error: Exception) -> Exception:
    """What kept the client from asking, where it says only that its cache has no such file."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    cause = error.__cause__
    return cause if isinstance(error, LocalEntryNotFoundError) and isinstance(
        cause, Exception) else error


def _silence(error: Exception) -> str:
    """Why the hub gave no answer; empty if it gave one."""
    from huggingface_hub import errors

    kind = type(error).__name__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if status is not None:
        return f"it answers {status}" if status >= 500 or status in (408, 429) else ""
    if "Timeout" in kind:
        return "it does not answer in time"
    if kind.endswith(("ConnectError", "ConnectionError", "SSLError", "ProxyError", "NetworkError",
                      "ReadError", "ProtocolError", "ChunkedEncodingError")):
        return f"there is no connection, or it breaks off ({_line(error)})"
    return ""


def _unavailable(repo: str, revision: str, silence: str, missing: str) -> str:
    from huggingface_hub import constants

    online = ("unset it to download" if "OFFLINE" in silence
              else "try again, or check the connection and HF_ENDPOINT")
    return (f"{repo} at {revision} cannot be had from {constants.ENDPOINT}: {silence}, and "
            f"{missing} is not in the cache, {constants.HF_HUB_CACHE}; {online}, or download the "
            "repository elsewhere and give the path of its directory")


def _reason(error: Exception, repo: str, revision: str) -> str:
    """What went wrong and what to do, of an answer that was no file."""
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return (f"{repo} is given to those who accepted its terms; do so at {hub}/{repo}, then set "
                "HF_TOKEN to a token of yours")
    if isinstance(error, errors.RepositoryNotFoundError):
        return (f"{hub} has no repository {repo}, or does not show it to you; check the name, or "
                "set HF_TOKEN to a token that may read it")
    if isinstance(error, errors.RevisionNotFoundError):
        return (f"{repo} has no revision {revision!r}; choose a branch, a tag or a commit of "
                f"{hub}/{repo}")
    if isinstance(error, errors.EntryNotFoundError):
        return (f"{repo} at {revision} has no {CONFIG}, which says what its weights are of; "
                "download the weights and give the path of their file")
    if status in (401, 403):
        return f"{hub} answers {status} to {repo}; set HF_TOKEN to a token that may read it"
    if status is not None or isinstance(error, errors.FileMetadataError):
        return (f"{hub} does not answer as a hub does ({_line(error)}); check HF_ENDPOINT and the "
                "proxy")
    if isinstance(error, OSError) and error.errno is not None:
        return (f"{repo} cannot be written to the cache, {constants.HF_HUB_CACHE}: "
                f"{error.strerror}; make room, or set HF_HOME to a directory that can hold it")
    return f"{repo} at {revision} cannot be downloaded: {_line(error)}; try again"


def _line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return "".join(c for c in (lines or [type(error).__name__])[0][:200] if c.isprintable())
