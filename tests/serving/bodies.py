"""Parts of requests to the server's application, and how it rejects one."""

import json

JSON = {"content-type": "application/json"}
BINARY = {"content-type": "application/octet-stream"}
V1 = "/v1/models/spiral:predict"
V2 = "/v2/models/spiral/infer"


def binary(head, tail):
    """The content and headers of a V2 request with bytes after its JSON."""
    content = json.dumps(head).encode()
    length = {"inference-header-content-length": str(len(content))}
    return content + tail, {**BINARY, **length}


def assert_rejected(answer):
    assert 400 <= answer.status_code < 500, (answer.request.content[:80], answer.text)
    (sentence,) = answer.json().values()
    assert isinstance(sentence, str) and 0 < len(sentence) < 300
    assert "\n" not in sentence and "Traceback" not in sentence
