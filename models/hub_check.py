"""Whether the Hugging Face hub can be asked for what is not in its cache, found out at once."""


def check_hub(repo_id: str, *files: str) -> None:
    """Return if one of `files` of a repository is in the hub's cache, or the hub answers at all.

    One request, without retries: the hub's library itself tries six times, for half a minute. What
    is wrong with the repository is for the library to say. Raises ConnectionError if there is no
    answer (no network, `HF_HUB_OFFLINE`), ValueError if `repo_id` is none.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    if any(isinstance(try_to_load_from_cache(repo_id, file), str) for file in files):
        return
    url = hf_hub_url(repo_id, files[0])
    try:
        get_hf_file_metadata(url)
    except HfHubHTTPError:  # an answer, such as 404
        return
    except Exception as error:  # the types are those of the library's own HTTP client
        reason = str(error) or type(error).__name__
        message = f"it is not in the hub's cache, and the hub does not answer: {reason}"
        raise ConnectionError(message) from None
