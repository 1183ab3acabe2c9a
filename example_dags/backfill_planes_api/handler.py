"""One tail number in, one row out, fetched over HTTP.

The worker keeps within the job's rate limit before each call; whatever `urlopen` raises is
classified by itself (a 500 or a dropped connection is `network`, a 429 `rate_limited`, a
slow answer `timeout`, a 404 `not_found`).
"""

import json
import os
import urllib.parse
import urllib.request


def handle(item, context):
    """Fetch one plane."""
    name = urllib.parse.quote(item["tailnum"], safe="")
    # The nodes of the compose stack have the server under another name.
    server = os.environ.get("PLANES_API_URL") or context.params["url"]
    url = f"{server}/planes/{name}"
    with urllib.request.urlopen(url, timeout=context.params["timeout_s"]) as reply:  # noqa: S310
        return json.load(reply)
