"""One tail number in, one row out, fetched over HTTP.

Before each call the worker waits for the job's rate limit. Errors of `urlopen` get their class
automatically: a 500 or a dropped connection is `network`, a 429 is `rate_limited`, a slow answer
is `timeout`, and a 404 is `not_found`.
"""

import json
import os
import urllib.parse
import urllib.request


def handle(item, context):
    """Fetch one plane."""
    name = urllib.parse.quote(item["tailnum"], safe="")
    # On the nodes of the compose stack, the server has another name.
    server = os.environ.get("PLANES_API_URL") or context.params["url"]
    url = f"{server}/planes/{name}"
    with urllib.request.urlopen(url, timeout=context.params["timeout_s"]) as reply:  # noqa: S310
        return json.load(reply)
