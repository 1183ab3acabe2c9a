// A job's page: the headline every few seconds, what costs more to look at more rarely.

import { $, badge, duration, fill, freshness, get, h, number, percent, poll, rate, setBar, sum, text } from "./lib.js";
import { regroup, runningSums, stackedBars, steps } from "./charts.js";
import { alertRow, kind, open } from "./alerts.js";
import { offer } from "./actions.js";
import { failures, watchFailures } from "./failures.js";
import { cost, events, limits, phases, rounds, shares, taskStates, workerStates } from "./tables.js";
import { watchTasks } from "./tasks.js";

const { job, mayAct } = document.documentElement.dataset;
const path = `/jobs/${encodeURIComponent(job)}`;
const EVERY_MS = 3_000;
const SLOW_MS = 10_000;
const COST_MS = 30_000;
let detail = null;
let workers = null;
let alerts = [];

const tasks = watchTasks(path, job);
watchFailures(path);

const main = poll(
  async () => {
    detail = await get(path);
    headline(detail.job);
    drawCharts(detail);
    fill($("failures"), [detail.job.failed, detail.job.task_errors, detail.job.items], () => failures(detail.job));
    fill($("task-states"), [detail.job.tasks, detail.times, detail.lost], () => taskStates(detail));
    fill($("phases"), [detail.phases, detail.job.state === "complete" ? 0 : Math.floor(detail.at_ms / 5000)], () => phases(detail));
    fill($("rounds"), [detail.rounds, detail.submissions], () => rounds(detail));
    tasks.update(detail);
    notes();
    if (mayAct) actions.update(detail.job, gone());
    return pace(EVERY_MS);
  },
  { everyMs: EVERY_MS, report: freshness() },
);
const actions = mayAct ? offer(path, main) : null;

// Parts of the page that may be away without the rest: they say so in their place.
part("worker-states", async () => {
  workers = await get(`${path}/workers`);
  const over = detail?.job.state === "complete";
  text("n-workers", workers.known ? number(workers.alive) : over ? "0" : "unknown");
  $("arrays").textContent = workers.slurm_job_ids.length ? `array ${workers.slurm_job_ids.join(", ")}` : "";
  fill($("worker-states"), workers, workerStates);
  fill($("nodes"), workers.nodes, (rows) => shares(rows, "Node"));
  fill($("workers"), workers.workers, (rows) => shares(rows, "Worker"));
  const left = workers.worker_count - workers.workers.length;
  $("worker-count").textContent = left > 0 ? `the ${workers.workers.length} most notable of ${number(workers.worker_count)}` : "";
  notes();
});
part("limits", async () => fill($("limits"), await get(`${path}/limits`), limits));
part("cost", async () => {
  const found = await get(`${path}/cost`);
  $("prices").textContent = `AWS requests by the list prices of ${found.prices_of}, ${found.region}`;
  fill($("cost"), found, cost);
}, COST_MS);
part("events", async () => fill($("events"), await get(`${path}/events`), events));
part("alerts", async () => {
  alerts = await get(`${path}/anomalies`);
  $("alerts-card").hidden = !alerts.length;
  fill($("alerts"), alerts, (found) => found.map((alert) => alertRow(alert, false)));
  notes();
});

function part(id, ask, everyMs = SLOW_MS) {
  poll(
    async () => {
      await ask();
      return pace(everyMs);
    },
    {
      everyMs,
      report: (error) => {
        if (error) fill($(id), error.message, (message) => h("p", { class: "failing" }, `${message}. Trying again.`));
      },
    },
  );
}

// What is over changes seldom.
function pace(everyMs) {
  return detail?.job.state === "complete" ? 5 * everyMs : everyMs;
}

function headline(found) {
  const failed = sum(found.failed);
  document.title = `${percent(found.ok + failed, found.items, 0)} · ${found.job_id} · Slurm backfills`;
  fill($("state"), found.state, badge);
  text("percent", percent(found.ok + failed, found.items));
  text("percent-of", found.items ? `of ${number(found.items)} items have an outcome` : "no item is planned yet");
  setBar($("bar"), found);
  text("n-ok", number(found.ok));
  text("n-failed", number(failed));
  text("n-running", number(found.running_items));
  text("n-pending", number(found.pending - found.running_items));
  text("n-rate", rate(found.rate));
  text("n-eta", found.eta_s === null ? "–" : duration(found.eta_s * 1000));
  text("n-rows", number(found.rows));
}

function drawCharts({ job: found, timeline, at_ms: atMs }) {
  const lasts = found.state === "running" && sum(timeline.ok) > 0;
  const grid = steps(timeline, lasts ? atMs / 1000 - timeline.width_s : 0);
  const ok = regroup(timeline.ok, grid);
  const classes = Object.entries(timeline.failed).map(([name, values]) => [name, regroup(values, grid)]);
  const failed = ok.map((_, place) => sum(classes.map(([, values]) => values[place])));
  const perSecond = (values) => values.map((value) => value / grid.width);
  const empty = "No task is done yet";
  stackedBars($("chart-rate"), grid.times, [
    { label: "ok", colour: "--ok", values: perSecond(ok) },
    { label: "failed", colour: "--fail", values: perSecond(failed) },
  ], { unit: "/s", empty });
  runningSums($("chart-sum"), grid.times, [
    { label: "ok", colour: "--ok", fill: true, values: ok },
    { label: "failed", colour: "--fail", values: failed },
  ], { goal: found.items, empty });
  const byClass = classes.map(([name, values], place) => ({ label: name, colour: `--c${(place % 8) + 1}`, values }));
  stackedBars($("chart-failures"), byClass.length ? grid.times : [], byClass, { empty: "No failure over time" });
}

function notes() {
  if (!detail) return;
  const { job: found } = detail;
  const shown = {
    stop: found.stop,
    paused: found.paused,
    away: workers?.problem ?? "",
    gone: gone(),
    alerts: alerts.filter(open),
  };
  fill($("notes"), shown, note);
}

/** Whether tasks are left and nobody is there to do them. */
function gone() {
  const { tasks: states, paused, stop } = detail.job;
  const left = (states.ready ?? 0) + (states.leased ?? 0) > 0;
  return Boolean(workers?.known && !workers.alive && left && !paused && !stop);
}

function note({ stop, paused, away, gone: left, alerts: raised }) {
  const line = (level, title, message, sub) =>
    h("div", { class: `note ${level}` }, h("strong", {}, title), h("span", {}, message, sub ? h("div", { class: "sub" }, sub) : null));
  return [
    stop ? line("fail", "Stopped", stop, "Fix the cause, then resume.") : null,
    paused ? line("warn", "Paused", `by ${paused}`, "Workers finish their current task, then exit.") : null,
    away ? line("warn", "The cluster can't be reached", away, "Progress comes from the table and is up to date. Trying again.") : null,
    left ? line("warn", "No worker is left", "but tasks are not done.", "Resume to submit new workers, or submit the job again.") : null,
    ...raised.map((alert) => line("warn", kind(alert), alert.message, alert.advice)),
  ];
}

