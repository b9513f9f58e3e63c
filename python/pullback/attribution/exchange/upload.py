"""A graph JSON to Neuronpedia, in its three steps: ask for a place, put the file there, say that it is there."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from pullback.attribution.graph import Graph

NEURONPEDIA = "https://www.neuronpedia.org"
TIMEOUT = 60
SMALLEST = 1024  # bytes; it refuses smaller files


def upload_neuronpedia(
    graph: Graph | Mapping[str, Any], *, api_key: str | None = None, server: str = NEURONPEDIA, **metadata: Any
) -> str:
    """Upload a graph, or its payload, and return the address at which Neuronpedia shows it.

    Args:
        graph: prune it first; a page shows a few thousand nodes.
        api_key: from one's account there; else $NEURONPEDIA_API_KEY.
        metadata: as for `Graph.to_neuronpedia`. `scan` is Neuronpedia's id of the model (such as "gemma-2-2b"). The
            time is added to a `slug` that is not given: two graphs may not share one.

    Raises:
        ValueError: no key, or a graph that is refused (the sentence is the server's). OSError: the server cannot be
            reached.
    """
    key = api_key or os.environ.get("NEURONPEDIA_API_KEY")
    if not key:
        raise ValueError("upload_neuronpedia: api_key is needed (from your account there), or $NEURONPEDIA_API_KEY")
    payload = graph.to_neuronpedia(**metadata) if isinstance(graph, Graph) else {**graph}
    payload["metadata"] = {**payload["metadata"], **metadata}
    if "slug" not in metadata:
        payload["metadata"]["slug"] += f"-{int(time.time())}"
    body = json.dumps(payload, allow_nan=False).encode().ljust(SMALLEST)
    asked = {
        "filename": f"{payload['metadata']['slug']}.json",
        "contentLength": len(body),
        "contentType": "application/json",
    }
    place = _post(f"{server}/api/graph/signed-put", asked, key)
    _send(Request(_field(place, "url"), data=body, method="PUT"))  # the address is signed: the key stays here
    done = _post(f"{server}/api/graph/save-to-db", {"putRequestId": _field(place, "putRequestId")}, key)
    return _field(done, "url")


def _post(url: str, content: dict[str, Any], key: str) -> Any:
    request = Request(url, data=json.dumps(content).encode(), method="POST", headers={"x-api-key": key})
    answer = _send(request)
    try:
        return json.loads(answer)
    except json.JSONDecodeError as error:
        raise ValueError(f"upload_neuronpedia: {url} answered no JSON: {answer[:200]!r}") from error


def _send(request: Request) -> bytes:
    request.add_header("Content-Type", "application/json")
    where = request.full_url.split("?")[0]  # a signed address holds its signature behind the mark
    if not where.startswith(("http://", "https://")):
        raise ValueError(f"upload_neuronpedia: {where} is no address of a server")
    try:
        with urlopen(request, timeout=TIMEOUT) as answer:
            return answer.read()
    except HTTPError as error:
        said = error.read()[:500].decode(errors="replace")
        raise ValueError(f"upload_neuronpedia: {where} refused ({error.code} {error.reason}): {said}") from error
    except URLError as error:
        raise OSError(f"upload_neuronpedia: {where} cannot be reached: {error.reason}") from error


def _field(answer: Any, name: str) -> Any:
    if not isinstance(answer, dict) or name not in answer:
        raise ValueError(f"upload_neuronpedia: the server's answer lacks '{name}': {str(answer)[:300]}")
    return answer[name]
