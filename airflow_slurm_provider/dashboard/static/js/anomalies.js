// Alerts of the newest jobs.

import { $, fill, freshness, get, poll } from "./lib.js";
import { alertRow } from "./alerts.js";

const EVERY_MS = 10_000;

poll(
  async () => {
    const found = await get("/anomalies");
    $("none").hidden = found.length > 0;
    $("list").hidden = found.length === 0;
    $("list").setAttribute("aria-busy", "false");
    fill($("rows"), found, (alerts) => alerts.map((alert) => alertRow(alert, true)));
  },
  { everyMs: EVERY_MS, report: freshness() },
);
