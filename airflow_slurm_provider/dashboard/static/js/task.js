// One task: its row, its attempts, what it committed, what workers logged.

import { $, badge, byClass, bytes, duration, fill, freshness, get, h, number, poll, when } from "./lib.js";

const { job, task } = document.documentElement.dataset;
const path = `/jobs/${encodeURIComponent(job)}/tasks/${task}`;
const EVERY_MS = 4_000;
let state = "";

poll(
  async () => {
    const found = await get(path);
    show(found);
    if (found.task.state !== state) {
      state = found.task.state;
      readLog();
    }
    return found.task.state === "leased" || found.task.state === "ready" ? EVERY_MS : 5 * EVERY_MS;
  },
  { everyMs: EVERY_MS, report: freshness() },
);
$("reload").addEventListener("click", readLog);

function show(found) {
  const row = found.task;
  fill($("state"), row.state, badge);
  fill($("problem"), [row.error_class, row.error], ([name, message]) =>
    name ? h("div", { class: "note fail" }, h("strong", {}, name), h("span", {}, message)) : "",
  );
  fill($("facts"), found, facts);
  fill($("history"), [found.history, found.crashes, row.attempt], ([history, crashes, attempt]) => attempts(history, crashes, attempt));
  fill($("marker"), found.marker, (marker) => (marker ? committed(marker) : h("p", { class: "muted" }, "Nothing yet: a task is committed when all of its items have an outcome.")));
}

function facts(found) {
  const row = found.task;
  const rows = [
    ["Round", String(found.round)],
    ["Items", `${number(row.items)}: ${number(row.ok)} ok, ${number(row.failed)} failed`],
    ["Failed", byClass(found.failed_by) || "–"],
    ["Attempt", `${row.attempt}${row.lost ? `, ${row.lost} leases lost` : ""}${found.reopened ? `, put back ${found.reopened} times` : ""}`],
    ["Worker", row.worker || "–"],
    ["Node", row.node || found.marker?.node || "–"],
    ["Last lease", when(row.started_ms)],
    row.state === "leased" ? ["Lease until", when(found.lease_until_ms)] : ["Finished", when(found.finished_ms)],
    ["Took", row.took_ms ? duration(row.took_ms) : "–"],
    ["Input", h("code", {}, found.segment)],
  ];
  if (found.checkpoint) rows.push(["Checkpoint", h("code", {}, found.checkpoint)]);
  return rows.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]);
}

function attempts(history, crashes, attempt) {
  if (!history.length && !crashes.length) return h("p", { class: "muted" }, attempt ? "None: its first attempt is its only one." : "None: no worker has leased it yet.");
  const rows = history.map((entry) =>
    h("tr", {}, h("td", { class: "muted nowrap" }, when(entry.at_ms)), h("td", { class: "wrap" }, entry.text)),
  );
  const bad = crashes.length ? h("p", { class: "note warn" }, h("strong", {}, "Crashed a worker"), h("span", {}, crashes.join(", "))) : null;
  return [bad, h("table", {}, h("tbody", {}, rows))];
}

function committed(marker) {
  const split = marker.split.length
    ? h("p", { class: "note warn" }, h("strong", {}, "Bisected"), h("span", {}, `This task killed its workers repeatedly; its items are now in ${marker.split.join(" and ")}.`))
    : null;
  const line = `Attempt ${marker.attempt} by ${marker.worker} on ${marker.node || "an unnamed node"}: ${number(marker.ok)} ok, ${number(marker.rows)} rows${byClass(marker.failed) ? `, failed: ${byClass(marker.failed)}` : ""}.`;
  const head = h("tr", {}, ["Part", "Kind", "Size", "SHA-256"].map((name) => h("th", { scope: "col", class: name === "Size" ? "n" : null }, name)));
  const rows = marker.parts.map((part) =>
    h("tr", {}, h("td", { class: "wrap" }, h("code", {}, part.key)), h("td", {}, part.kind), h("td", { class: "n" }, bytes(part.size)), h("td", { class: "mono muted" }, part.sha256.slice(0, 12))),
  );
  return [split, h("p", { class: "muted" }, line), rows.length ? h("div", { class: "scroll" }, h("table", {}, h("thead", {}, head), h("tbody", {}, rows))) : null];
}

async function readLog() {
  const button = $("reload");
  button.disabled = true;
  try {
    const found = await get(`${path}/log`);
    fill($("log"), found, log);
  } catch (error) {
    fill($("log"), error.message, (message) => h("p", { class: "failing" }, message));
  } finally {
    button.disabled = false;
  }
}

function log(found) {
  if (!found.lines.length) {
    return h("p", { class: "muted" }, "No lines yet. A worker uploads its log when it ends, or when the log has grown large.");
  }
  const lines = found.lines.map((line) => h("span", { class: / (ERROR|CRITICAL|WARNING) /.test(line) ? "bad" : null }, `${line}\n`));
  return [h("pre", { class: "log", tabindex: 0, "aria-label": "Log lines" }, lines), found.more ? h("p", { class: "muted small" }, `The first ${number(found.lines.length)} lines; all: slurmctl logs ${job} --task ${task}`) : null];
}
