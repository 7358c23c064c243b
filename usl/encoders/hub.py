"""Weights that the libraries of encoders publish: from their caches, or downloaded."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from usl.errors import InputError

log = logging.getLogger("usl")

# Seconds to wait for the hub's first answer: without a network its own client tries for a minute.
PATIENCE = 5


def from_hub(name: str, repository: str, files: Sequence[str]) -> Path:
    """The first of these files of a Hugging Face repository that there is.

    Parameters
    ----------
    name : str
        Of the encoder, for the error.
    repository : str
        ``owner/name``.
    files : sequence of str
        The best first.

    Raises
    ------
    InputError
        Not in the cache, and not to be downloaded.
    """
    import huggingface_hub as hub

    for file in files:
        found = hub.try_to_load_from_cache(repository, file)
        if isinstance(found, str):
            return Path(found)
    try:
        hub.get_session().head(hub.constants.ENDPOINT, timeout=PATIENCE)
        for file in files:
            try:
                log.info("downloading %s of %s", file, repository)
                return Path(hub.hf_hub_download(repository, file))
            except hub.errors.LocalEntryNotFoundError:
                raise
            except hub.errors.EntryNotFoundError:
                continue
        reason = f"it has none of {', '.join(files)}"
    except Exception as error:  # network libraries raise errors of any kind
        reason = f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(".")
    place = Path(hub.constants.HF_HUB_CACHE)
    raise _absent(name, f"{files[0]} of {repository}, in the hub's cache {place}", reason)


def from_url(name: str, url: str) -> Path:
    """A file that torchvision or timm publish, in torch's cache.

    Raises
    ------
    InputError
        Not in the cache, and not to be downloaded.
    """
    import torch.hub

    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file():
        return path
    # The names of the files end with the beginning of their SHA-256.
    found = re.search(r"-([a-f0-9]{8,})\.", path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log.info("downloading %s", path.name)
        torch.hub.download_url_to_file(
            url, str(path), hash_prefix=found and found[1], progress=False
        )
        return path
    except Exception as error:  # network libraries raise errors of any kind
        reason = f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(".")
    raise _absent(name, f"{path.name}, in {path.parent}", reason)


def _absent(name: str, where: str, reason: str) -> InputError:
    return InputError(
        f"the weights of {name} are not on this machine: looked for {where}; they cannot be "
        f"downloaded ({reason}); give the file as `checkpoint`, or try `architecture` pixels, "
        "which has no weights"
    )
