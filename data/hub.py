"""The Hugging Face hub: one quick request first, since its clients retry for a minute."""

import urllib.error
import urllib.request

from huggingface_hub import constants

CONNECT_SECONDS = 10


def require_hub() -> None:
    """Raise ConnectionError if the hub does not answer."""
    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=CONNECT_SECONDS).close()
    except urllib.error.HTTPError:
        return  # it answered
    except OSError as error:
        raise ConnectionError(f"the Hugging Face hub cannot be reached: {error}") from error
