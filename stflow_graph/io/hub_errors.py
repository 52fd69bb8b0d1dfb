"""Errors of the Hugging Face hub's client, often of many lines, as one line with a remedy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from stflow_graph.errors import BadConfig, StflowError, StorageFailed, reason_of

_NETWORK_MODULES = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")


@contextlib.contextmanager
def hub_errors(repo_id: str, kind: str, endpoint: str | None = None) -> Iterator[None]:
    """Turn errors of the hub's client into this package's.

    Args:
        repo_id: the repository that the body asks for.
        kind: ``"dataset"`` or ``"model"``.
        endpoint: the hub's address; None takes ``HF_ENDPOINT`` or huggingface.co.

    Raises:
        BadConfig: no such repository or revision, or no access to it.
        StorageFailed: the hub cannot be reached.
    """
    from huggingface_hub import constants, errors

    endpoint = endpoint or constants.ENDPOINT
    page = f"{endpoint}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
    try:
        yield
    except (StflowError, MemoryError):
        raise
    except errors.HFValidationError:
        raise BadConfig(f"repository {repo_id!r}: expected owner/name") from None
    except errors.OfflineModeIsEnabled:
        raise BadConfig(f"{page}: HF_HUB_OFFLINE is set. Fix: unset it") from None
    except errors.RevisionNotFoundError:
        raise BadConfig(f"{page}: no such revision. Fix: a branch, tag or commit") from None
    except errors.LocalEntryNotFoundError:
        raise StorageFailed(
            f"{page}: no answer, and nothing in the cache. "
            "Fix: check the network and HF_ENDPOINT, or give a folder on this machine"
        ) from None
    except errors.EntryNotFoundError as error:
        raise StorageFailed(f"{page}: a listed file is gone: {_short(error)}") from None
    except errors.HfHubHTTPError as error:
        raise _refusal(error.response.status_code, page) from None
    except Exception as error:
        # the client's HTTP library is an implementation detail that has changed twice
        module = type(error).__module__.split(".")[0]
        if module not in _NETWORK_MODULES and not isinstance(error, ConnectionError):
            raise
        raise StorageFailed(
            f"{endpoint} cannot be reached or broke off ({_short(error)}). "
            "Fix: run it again when the network is back; a download resumes"
        ) from None


def _refusal(status: int, page: str) -> StflowError:
    if status not in (401, 403, 404):
        fix = "run it again later; a download resumes"
        return StorageFailed(f"{page}: the hub answered {status}. Fix: {fix}")
    log_in = "log in with `hf auth login`, set HF_TOKEN or give --token-file"
    if status == 404:
        return BadConfig(
            f"{page}: no such repository, or it is private. Fix: its name; or {log_in}"
        )
    return BadConfig(
        f"{page}: no access, or no such repository (HTTP {status}). "
        f"Fix: accept the licence on that page, and {log_in}"
    )


def _short(error: BaseException) -> str:
    return reason_of(error)[:160]
