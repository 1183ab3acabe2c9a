// The list of jobs.

import { $, ago, badge, copyable, count, duration, fill, freshness, get, h, jobAddress, number, percent, poll, progressBar, rate, sum, when } from "./lib.js";

const EVERY_MS = 5_000;
const LIMIT = 20;
let offset = 0;

$("command").append(copyable("slurmctl submit config.yaml --wait"));

const list = poll(
  async () => {
    const found = await get("/jobs", { offset, limit: LIMIT });
    const none = found.jobs.length === 0 && offset === 0;
    $("none").hidden = !none;
    $("list").hidden = none;
    $("list").setAttribute("aria-busy", "false");
    fill($("rows"), found.jobs, (jobs) => jobs.map(row));
    for (const time of document.querySelectorAll("td > time")) time.textContent = ago(Date.parse(time.dateTime));
    $("pager").hidden = !offset && !found.more;
    $("newer").disabled = !offset;
    $("older").disabled = !found.more;
    const running = found.jobs.some((job) => job.state === "running" || job.state === "planning");
    return running ? EVERY_MS : 3 * EVERY_MS;
  },
  { everyMs: EVERY_MS, report: freshness() },
);

for (const [id, step] of [["newer", -LIMIT], ["older", LIMIT]]) {
  $(id).addEventListener("click", () => {
    offset = Math.max(0, offset + step);
    list.now();
  });
}

function row(job) {
  const failed = sum(job.failed);
  return h(
    "tr",
    {},
    h("td", { class: "name" }, h("a", { href: jobAddress(job.job_id), id: `job-${job.job_id}` }, job.job_id)),
    h("td", {}, badge(job.state)),
    h("td", {}, progressBar(job, true)),
    h("td", { class: "n" }, percent(job.ok + failed, job.items)),
    h("td", { class: "n" }, number(job.items)),
    h("td", { class: failed ? "n failing" : "n zero" }, number(failed)),
    count(job.pending),
    h("td", { class: "n" }, rate(job.rate)),
    h("td", { class: "n" }, job.eta_s === null ? "–" : duration(job.eta_s * 1000)),
    h("td", { class: "n muted" }, when(job.created_ms)),
  );
}
