"""One flight in, one row out: great-circle distance, speed, and the weather at departure.

Runs on the compute nodes with only the standard library. A flight that was cancelled, or whose
destination is not in the airports table, can't be computed. It fails as bad input.
"""

import csv
import gzip
from math import asin, cos, radians, sin, sqrt

from slurm_worker import ItemError

EARTH_RADIUS_KM = 6371.0088
NEEDED = ("dep_time", "arr_time", "air_time", "arr_delay")


def setup(context):
    """Load the reference tables once per worker."""
    airports = {
        row["faa"]: (float(row["lat"]), float(row["lon"]))
        for row in _rows(context.fetch(context.params["airports"]))
    }
    weather = {
        (row["origin"], row["time_hour"]): row
        for row in _rows(context.fetch(context.params["weather"]))
    }
    return airports, weather


def handle(item, context):
    """Compute one flight."""
    airports, weather = context.state
    missing = [name for name in NEEDED if item[name] is None]
    if missing:
        raise ItemError("bad_input", f"no value for {', '.join(missing)}")
    for airport in (item["origin"], item["dest"]):
        if airport not in airports:
            raise ItemError("bad_input", f"airport {airport} is not in the airports table")
    distance = great_circle_km(airports[item["origin"]], airports[item["dest"]])
    at_departure = weather.get((item["origin"], item["time_hour"]), {})
    return {
        "flight_id": item["flight_id"],
        "carrier": item["carrier"],
        "origin": item["origin"],
        "dest": item["dest"],
        "departure": item["time_hour"],
        "distance_km": round(distance, 3),
        "speed_kmh": round(distance / (item["air_time"] / 60), 3),
        "arrival_delay_min": item["arr_delay"],
        "temperature_f": _number(at_departure.get("temp")),
        "wind_mph": _number(at_departure.get("wind_speed")),
        "precipitation_in": _number(at_departure.get("precip")),
        "visibility_mi": _number(at_departure.get("visib")),
    }


def great_circle_km(start, end):
    """Haversine distance between two (latitude, longitude) pairs in degrees."""
    (lat1, lon1), (lat2, lon2) = (tuple(map(radians, point)) for point in (start, end))
    half = sin((lat2 - lat1) / 2) ** 2 + cos(lat1) * cos(lat2) * sin((lon2 - lon1) / 2) ** 2
    return 2 * EARTH_RADIUS_KM * asin(sqrt(half))


def _rows(path):
    with gzip.open(path, "rt", newline="") as file:
        yield from csv.DictReader(file)


def _number(text):
    return float(text) if text else None
