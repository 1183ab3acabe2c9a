"""Takes as long as each item says."""

import time


def handle(item, context):
    time.sleep(item["seconds"])
    return {"slept": item["seconds"]}
